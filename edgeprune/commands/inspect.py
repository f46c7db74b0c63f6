"""`edgeprune inspect`: how each weight of a file is stored, as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from converters.facts import FileFacts
from converters.format import format_of

SCHEMA = 1
LONGEST_NAME = 50  # Other converters name a layer by its whole path.
COLUMNS: dict[str, Literal["left", "right"]] = {
    "layer": "left", "kind": "left", "shape": "right", "zeros": "right", "bits/weight": "right",
    "stored as": "left", "note": "left",
}  # fmt: skip


def print_facts(path: Path, console: Console) -> None:
    """Print the facts of a file.

    Raises:
        UserError: no such file, of no format, or damaged.
    """
    facts = format_of(path).inspect(path)
    console.print(_table(facts))
    for line in facts.lines:
        console.print(line, highlight=False, markup=False)


def to_json(path: Path) -> str:
    """The facts of a file as JSON text.

    Raises:
        UserError: see `print_facts`.
    """
    plain = {"schema": SCHEMA, "path": str(path), **format_of(path).inspect(path).plain}
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def _table(facts: FileFacts) -> Table:
    """A row for each layer."""
    table = Table(title=str(facts.path), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in COLUMNS.items():
        table.add_column(heading, justify=justify, no_wrap=heading in ("layer", "shape"))
    for heading in facts.marks:
        table.add_column(heading)
    for layer in facts.layers:
        table.add_row(
            layer.name if len(layer.name) <= LONGEST_NAME else f"…{layer.name[1 - LONGEST_NAME :]}",
            layer.kind,
            "x".join(map(str, layer.shape)),
            f"{100 * layer.zero_fraction:.1f} %",
            f"{layer.bits_per_weight:.2f}",
            layer.encoding,
            layer.note or "",
            *("yes" if layer.name in marked else "" for marked in facts.marks.values()),
        )
    return table
