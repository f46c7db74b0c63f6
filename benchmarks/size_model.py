"""Predicted against real file sizes of MobileNetV3-Small (1000 classes), for docs/results/size_model.md.

    python benchmarks/size_model.py --cache FOLDER [--targets NAME ...]

A conversion takes seconds to a minute; finished targets are kept in the cache folder.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from converters.facts import Converted
from converters.format import FORMATS, Format
from converters.sizes import SizeModel, calibrated
from converters.targets import TARGETS, Storage
from edgeprune.pruning import Block, OneShot, Sparsifier, Unstructured
from edgeprune.pruning.allocation.result import Allocation
from edgeprune.pruning.allocation.shares import by_importance, erdos_renyi, uniform

OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "size_model.md"
EXAMPLE = torch.zeros(1, 3, 224, 224)


def main() -> None:
    """Measure the targets asked for, and write the table of all that were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    names = [t.name for t in TARGETS.values() if t.storage is not Storage.STATIC_INT8]
    parser.add_argument("--targets", nargs="*", default=names, choices=names)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    dense = mobilenet_v3_small(weights=None).eval()
    for format in FORMATS.values():
        wanted = [t for t in options.targets if TARGETS[t].format == format.name]
        missing = [t for t in wanted if not (options.cache / f"{t}.json").exists()]
        if missing:
            measure(dense, format, missing, options.cache)
    rows = {t: json.loads(p.read_text()) for t in names if (p := options.cache / f"{t}.json").exists()}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(page(rows))
    print(page(rows))


def allocations(model: nn.Module) -> dict[str, Allocation]:
    return {
        "80 % in 1x4 blocks, uniform": uniform(model, Block(1, 4), 0.8),
        "70 % in 1x4 blocks, Erdős–Rényi": erdos_renyi(model, Block(1, 4), 0.7),
        "90 % single weights, one threshold": by_importance(model, Unstructured(), 0.9),
        "50 % single weights, uniform": uniform(model, Unstructured(), 0.5),
    }


def measure(dense: nn.Module, format: Format, targets: list[str], cache: Path) -> None:
    sizes = {t: calibrated(c) for t, c in convert(dense, format, targets, cache).items()}
    rows: dict[str, list[dict[str, Any]]] = {target: [] for target in targets}
    for title, allocation in allocations(dense).items():
        model = copy.deepcopy(dense)
        Sparsifier(model, allocation.rules, OneShot()).finalize()
        for target, converted in convert(model, format, targets, cache).items():
            row = {"zeros": title, "predicted": predict(sizes[target], allocation), "real": converted.bytes}
            rows[target].append(row)
            print(target, row, flush=True)
    for target in targets:
        (cache / f"{target}.json").write_text(json.dumps(rows[target]))


def convert(model: nn.Module, format: Format, targets: list[str], folder: Path) -> dict[str, Converted]:
    prepared = format.prepare(model, EXAMPLE, None)
    return {t: format.write(prepared, TARGETS[t], folder / f"{t}{format.suffix}") for t in targets}


def predict(sizes: SizeModel, allocation: Allocation) -> int:
    sparsities = [allocation.sparsities.get(layer.name, 0.0) for layer in sizes.layers]
    pattern = allocation.pattern
    block = (pattern.out, pattern.in_) if isinstance(pattern, Block) else (1, 1)
    return int(sizes.bytes(sizes.counts * (1 - torch.tensor(sparsities).numpy()), block))


def page(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "# The size model: predicted and real bytes",
        "",
        "torchvision MobileNetV3-Small, 1000 classes, 224 px, untrained weights. The fixed part of each",
        "target's file was measured on one conversion of the dense model; the rest is arithmetic on the",
        "number of zeros (`converters/sizes.py`). Written by",
        "`python benchmarks/size_model.py --cache FOLDER`.",
        "",
        "| target | zeros | predicted bytes | bytes on disk | error |",
        "|---|---|---:|---:|---:|",
    ]
    for target, measured in rows.items():
        for row in measured:
            error = 100 * (row["predicted"] / row["real"] - 1)
            numbers = f"{row['predicted']:,} | {row['real']:,} | {error:+.2f} %"
            lines.append(f"| {target} | {row['zeros']} | {numbers} |")
    worst = max(
        (abs(row["predicted"] / row["real"] - 1) for measured in rows.values() for row in measured), default=0
    )
    return "\n".join([*lines, "", f"Largest error: {worst:.2%}.", ""])


if __name__ == "__main__":
    main()
