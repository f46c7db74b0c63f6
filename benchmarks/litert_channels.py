"""What removed channels add to static int8, which is what one would ship on ARM otherwise.

    python benchmarks/litert_channels.py --work FOLDER [--size 224] [--runtimes arm64] [--rounds 20]

MobileNetV3-Large, dense and with channels removed, both as static int8, beside the dense float32 file and the
sparse ones; speed against the dense static int8 file. Writes litert_channels.md and .json into docs/results
(--out). Files and timings are kept in FOLDER: a stopped run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from litert_files import (
    RUNTIME_NAMES,
    build,
    files,
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

from edgeprune import pruning
from edgeprune.models import cost

MODEL = "mobilenet_v3_large"
FRACTIONS = (0.25, 0.35, 0.5)
CALIBRATION_IMAGES = 8
DENSE = "dense static int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to keep files and timings in")
    parser.add_argument("--size", type=int, default=224, help="image side in pixels")
    parser.add_argument("--runtimes", nargs="+", default=["arm64"], choices=RUNTIME_NAMES)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    work = options.work / str(options.size)
    paths = make_files(work, options.size)
    runs = [
        timed(list(paths.values()), name, options.rounds, work / f"{name}-{options.rounds}.json")
        for name in options.runtimes
    ]
    facts = provenance()
    macs = {fraction: cost.count_macs(shrunk(fraction, options.size), example(options.size))
            for fraction in FRACTIONS}  # fmt: skip
    dense_macs = cost.count_macs(build(MODEL), example(options.size))
    lines = [
        "# Removed channels and static int8",
        "",
        f"MobileNetV3-Large at {options.size}x{options.size}; speed is against the dense static int8 file.",
        "",
        *table(
            ["file", "bytes", *(f"{run['runtime']}, times as fast" for run in runs)],
            [
                [
                    name + _share(name, macs, dense_macs),
                    f"{paths[name].stat().st_size:,}",
                    *(shown_speed(row(run, paths[name].stem)) for run in runs),
                ]
                for name in paths
            ],
        ),
        "",
        *provenance_lines(facts, runs),
    ]
    plain = {"schema": 1, **facts, "model": MODEL, "size_px": options.size, "runs": runs}
    write(options.out, "litert_channels", lines, plain)


def make_files(work: Path, size_px: int) -> dict[str, Path]:
    """What the table calls each file -> the file; the one the others are compared with first."""
    images = np.random.default_rng(0).standard_normal((CALIBRATION_IMAGES, 3, size_px, size_px), np.float32)
    static = {"target": "litert-arm64-static-int8", "calibration": images}
    made = files(
        lambda: build(MODEL),
        work,
        size_px,
        {"dense-static-int8": static, "dense": {"target": "litert-arm64"}},
    )
    named = {DENSE: made["dense-static-int8"], "dense float32": made["dense"]}
    for fraction in FRACTIONS:
        name = f"channels-{100 * fraction:.0f}-static-int8"
        made = files(lambda fraction=fraction: shrunk(fraction, size_px), work, size_px, {name: static})
        named[_channels(fraction)] = made[name]
    sparse = {"80-1x4": {"target": "litert-arm64"}, "80-1x4-int8": {"target": "litert-arm64-int8"}}
    made = files(lambda: pruned(MODEL, pruning.Block(1, 4), 0.8), work, size_px, sparse)
    return named | {
        "80 % zeros in 1x4 blocks, float32": made["80-1x4"],
        "80 % zeros in 1x4 blocks, stored as int8": made["80-1x4-int8"],
    }


def shrunk(fraction: float, size_px: int) -> nn.Module:
    model = build(MODEL)
    pruning.shrink(model, example(size_px), fraction)
    return model.eval()


def example(size_px: int) -> torch.Tensor:
    return torch.zeros(1, 3, size_px, size_px)


def _channels(fraction: float) -> str:
    return f"{100 * fraction:.0f} % of channels removed, static int8"


def _share(name: str, macs: dict[float, int], dense_macs: int) -> str:
    found = next((fraction for fraction in FRACTIONS if name == _channels(fraction)), None)
    return "" if found is None else f" ({100 * macs[found] / dense_macs:.0f} % of the multiplications)"


if __name__ == "__main__":
    main()
