"""Bytes, speed and exactness of the LiteRT files of the models that edgeprune is meant for.

    python benchmarks/litert_models.py --work FOLDER [--size 224] [--pattern 1x4] [--runtimes x86-sparse ...]

For each model four files: dense float32; 80 % of the 1x1 weights zero, float32 and stored as int8; stored as
int8 with 80 % of the classifier zero as well. Speed is that of the sparse files against the dense one, in
turns; error is that of their outputs, on the runtime timed, to the torch model's. Writes litert_models.md and
.json into docs/results (--out). Files and timings are kept in FOLDER: a stopped run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litert_files import (
    CLASSES,
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
from torch import nn

from converters.layers import kind_of
from converters.runtimes.environments import runtime
from converters.runtimes.running import FileRun, run_files
from edgeprune.pruning import Block, OneShot, Pattern, Sparsifier, Unstructured
from edgeprune.pruning.allocation.shares import by_multiplications

MODELS = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "mobilenet_v2",
    "timm/efficientnet_lite0",
    "timm/mobilenetv3_small_100",
)
SPARSITY = 0.8
PATTERNS: dict[str, Pattern] = {"1x4": Block(out=1, in_=4), "1x1": Unstructured()}
FLOAT32 = {"target": "litert-arm64"}
INT8 = {"target": "litert-arm64-int8"}
DENSE, SPARSE, STORED, CLASSIFIER = "dense", "sparse", "sparse-int8", "sparse-int8-classifier"
# As many zeros, but most of them where a weight is used for the most pixels.
PLACED = "sparse-by-multiplications"
IMAGES = 2


@dataclass(frozen=True)
class Bounds:
    """What the files are held against.

    Attributes:
        speed: of the sparse float32 file, times the dense one's, on x86 without AVX.
        error: of its outputs, of the largest.
        stored_fraction: of the dense float32 file's bytes, int8-stored, classifier dense.
        classifier_fraction: the same with the classifier pruned.
    """

    speed: float = 2.0
    error: float = 1e-4
    stored_fraction: float = 0.25
    classifier_fraction: float = 0.14


BOUNDS = Bounds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to keep files and timings in")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--pattern", default="1x4", choices=tuple(PATTERNS), help="output x input channels")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--runtimes", nargs="+", default=["x86-sparse"], choices=RUNTIME_NAMES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    results = [result(name, options) for name in options.models]
    facts = provenance()
    plain = {
        "schema": 1,
        **facts,
        "size_px": options.size,
        "pattern": options.pattern,
        "sparsity": SPARSITY,
        "bounds": vars(BOUNDS),
        "models": results,
    }
    write(options.out, "litert_models", page(facts, options, results), plain)


def result(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model, plain data."""
    work = options.work / f"{name.replace('/', '-')}-{options.size}-{options.pattern}"
    pattern = PATTERNS[options.pattern]
    paths = files(lambda: build(name), work, options.size, {DENSE: FLOAT32})
    paths |= files(
        lambda: pruned(name, pattern, SPARSITY), work, options.size, {SPARSE: FLOAT32, STORED: INT8}
    )
    paths |= files(
        lambda: pruned(name, pattern, SPARSITY, classifier=True), work, options.size, {CLASSIFIER: INT8}
    )
    paths |= files(lambda: placed(name, pattern, options.size), work, options.size, {PLACED: FLOAT32})
    in_turns = [paths[DENSE], paths[SPARSE], paths[STORED], paths[PLACED]]
    runs = [
        timed(in_turns, where, options.rounds, work / f"{where}-{options.rounds}.json")
        for where in options.runtimes
    ]
    errors = {where: error(name, pattern, paths, where, options.size) for where in options.runtimes}
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    return {"model": name, "bytes": sizes, "error": errors, "runs": runs}


def placed(name: str, pattern: Pattern, size_px: int) -> nn.Module:
    """The sparsity of the 1x1 convolutions shared out for speed."""
    model = build(name)
    names = [key for key, module in model.named_modules() if is_conv1x1(module)]
    example = torch.zeros(1, 3, size_px, size_px)
    rules = by_multiplications(model, example, pattern, SPARSITY, layers=names).rules
    Sparsifier(model, rules, OneShot()).finalize()
    return model.eval()


def is_conv1x1(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and kind_of(module) == "conv1x1"


def error(name: str, pattern: Pattern, paths: dict[str, Path], where: str, size_px: int) -> dict[str, float]:
    """Largest difference to the torch model over its largest value, of the float32 and int8-stored files."""
    images = torch.randn(IMAGES, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = pruned(name, pattern, SPARSITY)(images).numpy()
    laid_out = images.permute(0, 2, 3, 1).contiguous().numpy()
    kinds = (SPARSE, STORED)
    answers = run_files([FileRun(paths[kind], laid_out) for kind in kinds], runtime(where)).answers
    return {kind: relative(answer.outputs, wanted) for kind, answer in zip(kinds, answers, strict=True)}


def relative(got: np.ndarray | None, wanted: np.ndarray) -> float:
    if got is None:
        raise SystemExit("a file was refused by the runtime")
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def page(facts: dict[str, Any], options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> list[str]:
    """The tables with where they come from."""
    return [
        "# LiteRT files: bytes, speed, exactness",
        "",
        f"{percent(SPARSITY)} of the weights of 1x1 convolutions zero, in {options.pattern} blocks (output x",
        f"input channels), {options.size}x{options.size} px, batch 1, {CLASSES} classes.",
        "Every layer alike; or, by multiplications, layers at 70 to 90 %, as many zeros, most where",
        "a weight is used for the most pixels (`allocation.by_multiplications`).",
        "",
        "## Bytes",
        "",
        *bytes_table(results),
        "",
        "## Speed and exactness",
        "",
        *speed_table(results),
        "",
        *verdict(results),
        "",
        *provenance_lines(facts, results[0]["runs"]),
    ]


def bytes_table(results: Sequence[dict[str, Any]]) -> list[str]:
    heading = (
        "model",
        "dense float32",
        "sparse float32",
        "int8-stored",
        "int8-stored, classifier pruned too",
    )
    return table(
        heading,
        [
            [
                entry["model"],
                f"{entry['bytes'][DENSE]:,}",
                *(
                    f"{entry['bytes'][kind]:,} ({percent(share(entry, kind))})"
                    for kind in (SPARSE, STORED, CLASSIFIER)
                ),
            ]
            for entry in results
        ],
    )


def speed_table(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each model and runtime."""
    heading = (
        "model",
        "runtime",
        "float32",
        "int8-stored",
        "float32, zeros by multiplications",
        "error float32",
        "error int8-stored",
        "runs sparse",
    )
    return table(
        heading,
        [
            [
                entry["model"],
                timing["runtime"],
                *(shown_speed(row(timing, kind)) for kind in (SPARSE, STORED, PLACED)),
                *(f"{entry['error'][timing['runtime']][kind]:.1e}" for kind in (SPARSE, STORED)),
                "yes" if row(timing, SPARSE)["sparse_kernels"] else "no",
            ]
            for entry in results
            for timing in entry["runs"]
        ],
    )


def verdict(results: Sequence[dict[str, Any]]) -> list[str]:
    """What the files are held against, and which miss it."""
    missed = [miss for entry in results for miss in misses(entry)]
    said = (
        f"Held against: {BOUNDS.speed:g} times the dense file's speed on x86 without AVX, float32; outputs "
        f"within {BOUNDS.error:g} of the largest, float32; at most {percent(BOUNDS.stored_fraction)} of the "
        f"dense float32 bytes as int8, {percent(BOUNDS.classifier_fraction)} with the classifier pruned too."
    )
    return [said, "", *(f"- missed: {miss}" for miss in missed)] if missed else [said + " All files meet it."]


def misses(entry: dict[str, Any]) -> list[str]:
    """The bounds that one model's files do not keep."""
    found = []
    for timing in entry["runs"]:
        where, speed = timing["runtime"], row(timing, SPARSE)["speed"]
        if where == "x86-sparse" and (speed is None or speed < BOUNDS.speed):
            shown = "no speed" if speed is None else f"{speed:.2f} times the dense file's speed"
            found.append(f"{entry['model']}: {shown} on {where}")
        if entry["error"][where][SPARSE] > BOUNDS.error:
            found.append(f"{entry['model']}: error {entry['error'][where][SPARSE]:.1e} on {where}")
    for kind, most in ((STORED, BOUNDS.stored_fraction), (CLASSIFIER, BOUNDS.classifier_fraction)):
        if share(entry, kind) > most:
            found.append(f"{entry['model']}: {kind} has {percent(share(entry, kind))} of the bytes")
    return found


def share(entry: dict[str, Any], kind: str) -> float:
    fraction: float = entry["bytes"][kind] / entry["bytes"][DENSE]
    return fraction


if __name__ == "__main__":
    main()
