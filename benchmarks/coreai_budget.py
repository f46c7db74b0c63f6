"""Budgets of bytes for Core AI files: what the solver asks for, what the size model says, what is written.

    python benchmarks/coreai_budget.py               measure what has not been measured yet
    python benchmarks/coreai_budget.py MODEL ...     measure these (again)

Needs the extra: pip install 'edgeprune[coreai]'. Results go to docs/results/coreai_budget.json, a model at a
time, and from there to coreai_budget.md. Weights are random; for each model and storage a budget is a share
of the dense file's bytes, met by zeros in 1x4 blocks wherever they cost least.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from coreml_models import build

from converters import coreai
from converters.files import write_text
from converters.sizes import SizeModel, calibrated
from edgeprune.pruning import Block, OneShot, Sparsifier
from edgeprune.pruning.allocation.limits import to_budget
from edgeprune.pruning.allocation.result import Allocation

MODELS = {"mobilenet_v3_small": 64, "mobilenet_v2": 64, "mobilenetv4_conv_small": 96}
SHARES = {
    "coreai-ios27": 0.45,
    "coreai-ios27-int8": 0.6,
    "coreai-ios27-6bit": 0.7,
    "coreai-ios27-4bit": 0.8,
}
PATTERN = Block(1, 4)
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "coreai_budget.json"

Row = dict[str, Any]


def measure(name: str, size: int) -> list[Row]:
    """A row for each target."""
    dense, example = build(name, 0.0), torch.rand(1, 3, size, size)
    prepared = coreai.prepare(dense, example)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.aimodel"
        for target, share in SHARES.items():
            made = coreai.write(prepared, target, path)
            sizes = calibrated(made)
            budget = round(share * made.bytes)
            allocation = to_budget(dense, PATTERN, {target: budget}, {target: sizes})
            pruned = copy.deepcopy(dense)
            Sparsifier(pruned, allocation.rules, OneShot()).finalize()
            file = coreai.convert(pruned, example, path, target=target)
            rows.append(
                {
                    "model": name,
                    "size_px": size,
                    "target": target,
                    "dense_bytes": made.bytes,
                    "budget_bytes": budget,
                    "predicted_bytes": predicted(sizes, allocation),
                    "bytes": file.bytes,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def predicted(sizes: SizeModel, allocation: Allocation) -> int:
    """By the size model."""
    zeros = torch.tensor([allocation.sparsities.get(layer.name, 0.0) for layer in sizes.layers]).numpy()
    return int(sizes.bytes(sizes.counts * (1 - zeros), (PATTERN.out, PATTERN.in_)))


def page(rows: list[Row]) -> str:
    """The results as text."""
    lines = [
        "# Core AI: budgets of bytes, and the files that meet them",
        "",
        "Written by `python benchmarks/coreai_budget.py`. Random weights; zeros in 1x4 blocks, shared out",
        "over the layers by the budget solver with the size model of the dense file.",
        "",
        "| model | target | dense bytes | budget | predicted | file | of the budget | size model |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} {row['size_px']} px | `{row['target']}` | {row['dense_bytes']:,} "
            f"| {row['budget_bytes']:,} | {row['predicted_bytes']:,} | {row['bytes']:,} "
            f"| {row['bytes'] / row['budget_bytes']:.1%} | {row['predicted_bytes'] / row['bytes'] - 1:+.2%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in options.models or [name for name in MODELS if all(row["model"] != name for row in rows)]:
        torch.manual_seed(0)
        rows = [row for row in rows if row["model"] != name] + measure(name, MODELS[name])
        write_text(RESULTS, json.dumps(rows, indent=1) + "\n")
    rows.sort(key=lambda row: list(MODELS).index(row["model"]))
    write_text(RESULTS.with_suffix(".md"), page(rows))


if __name__ == "__main__":
    main()
