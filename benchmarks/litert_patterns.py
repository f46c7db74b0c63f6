"""How fast each pattern of zeros runs, and each way to store them, on the sparse kernels of LiteRT.

    python benchmarks/litert_patterns.py --work FOLDER [--size 224] [--runtimes arm64 browser] [--rounds 20]

MobileNetV3-Large, zeros in all 1x1 convolutions, the classifier dense. Writes litert_patterns.md and .json
into docs/results (--out). Files and timings are kept in FOLDER: a stopped run goes on.
"""

from __future__ import annotations

import argparse
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from litert_files import (
    RUNTIME_NAMES,
    build,
    files,
    percent,
    provenance,
    provenance_lines,
    pruned,
    row,
    shown_speed,
    table,
    timed,
    write,
)

from converters.files import replacing
from edgeprune.pruning import Block, Pattern, Unstructured

MODEL = "mobilenet_v3_large"
FLOAT32 = {"target": "litert-arm64"}
INT8 = {"target": "litert-arm64-int8"}
PATTERNS: dict[str, Pattern] = {
    "1x1": Unstructured(),
    "2x1": Block(out=2, in_=1),
    "4x1": Block(out=4, in_=1),
    "1x4": Block(out=1, in_=4),
}
# (percent of zeros, output x input channels of a block), as in the table of patterns.
SPARSE = ((80, "1x1"), (80, "2x1"), (80, "4x1"), (80, "1x4"), (90, "1x1"), (90, "4x1"), (90, "1x4"))
# Name of a file -> what the table of storage calls it.
STORAGE = {
    "dense": "dense, float32",
    "dense-int8-dynamic": "dense, dynamic int8 (litert-quantizer)",
    "dense-int8-static": "dense, static int8",
    "80-1x1": "80 % single zeros, float32",
    "80-1x1-int8": "80 % single zeros, stored as int8",
    "80-1x4": "80 % in 1x4 blocks, float32",
    "80-1x4-int8": "80 % in 1x4 blocks, stored as int8",
    "80-4x1-int8": "80 % in 4x1 blocks, stored as int8",
}
CALIBRATION_IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to keep files and timings in")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--runtimes", nargs="+", default=["arm64", "browser"], choices=RUNTIME_NAMES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    work = options.work / str(options.size)
    paths = list(make_files(work, options.size).values())
    runs = [
        timed(paths, name, options.rounds, work / f"{name}-{options.rounds}.json")
        for name in options.runtimes
    ]
    facts = provenance()
    plain = {"schema": 1, **facts, "model": MODEL, "size_px": options.size, "runs": runs}
    write(options.out, "litert_patterns", page(facts, options.size, runs), plain)


def make_files(work: Path, size_px: int) -> dict[str, Path]:
    """Every file of both tables; the dense one, which the others are compared with, first."""
    images = np.random.default_rng(0).standard_normal((CALIBRATION_IMAGES, 3, size_px, size_px), np.float32)
    static = {"target": "litert-arm64-static-int8", "calibration": images}
    paths = files(lambda: build(MODEL), work, size_px, {"dense": FLOAT32, "dense-int8-static": static})
    paths["dense-int8-dynamic"] = dynamic_int8(paths["dense"], work / "dense-int8-dynamic.tflite")
    for zeros, pattern in SPARSE:
        name = f"{zeros}-{pattern}"
        wanted: dict[str, dict[str, Any]] = {name: FLOAT32}
        if f"{name}-int8" in STORAGE:
            wanted[f"{name}-int8"] = INT8
        sparse = PATTERNS[pattern]
        paths |= files(lambda p=sparse, s=zeros / 100: pruned(MODEL, p, s), work, size_px, wanted)
    return paths


def dynamic_int8(dense: Path, path: Path) -> Path:
    """Weights as int8, activations quantised as they come: what Google's own quantiser gives by default."""
    from litert_quantizer import quantizer, recipe

    if not path.exists():
        work = quantizer.Quantizer(str(dense), recipe.dynamic_wi8_afp32())
        with replacing(path) as temporary, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            temporary.write_bytes(bytes(work.quantize().quantized_model))
    return path


def page(facts: dict[str, Any], size_px: int, runs: list[dict[str, Any]]) -> list[str]:
    """Both tables with where they come from."""
    return [
        "# Patterns of zeros and ways to store them, on LiteRT",
        "",
        f"{MODEL} at {size_px}x{size_px} px, batch 1; speed against the dense float32 file of the same run.",
        "A block is output x input channels. The classifier is dense in all files.",
        "",
        "## Patterns, float32",
        "",
        *patterns_table(runs),
        "",
        "## Storage",
        "",
        *storage_table(runs),
        "",
        *provenance_lines(facts, runs),
    ]


def patterns_table(runs: list[dict[str, Any]]) -> list[str]:
    columns = [f"{zeros}-{pattern}" for zeros, pattern in SPARSE]
    return table(
        ["pattern", "bytes", *(head(run) for run in runs)],
        [
            [name.replace("-", " % "), size(runs, name), *(shown_speed(row(run, name)) for run in runs)]
            for name in columns
        ],
    )


def storage_table(runs: list[dict[str, Any]]) -> list[str]:
    return table(
        ["file", "bytes", "of dense", *(head(run) for run in runs), "runs sparse"],
        [
            [
                words,
                size(runs, name),
                percent(row(runs[0], name)["bytes"] / row(runs[0], "dense")["bytes"]),
                *(cell(run, name) for run in runs),
                "yes" if row(runs[0], name)["sparse_kernels"] else "no",
            ]
            for name, words in STORAGE.items()
        ],
    )


def head(run: dict[str, Any]) -> str:
    return f"{run['runtime']}, {'emulated' if run['emulated'] else 'real time'}"


def cell(run: dict[str, Any], name: str) -> str:
    """The dense file's own time where that is real, else a speed."""
    if name == "dense":
        return "1" if run["emulated"] else f"1 ({row(run, name)['median_ms']:.1f} ms)"
    return shown_speed(row(run, name))


def size(runs: list[dict[str, Any]], name: str) -> str:
    return f"{row(runs[0], name)['bytes']:,}"


if __name__ == "__main__":
    main()
