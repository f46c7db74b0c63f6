"""`edgeprune inspect`: how each weight of a file is stored, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from converters.facts import FileFacts
from converters.files import explained, write_text
from converters.format import format_of
from edgeprune.commands.options import FILE_HELP, add_json
from edgeprune.commands.output import DONE, deliver, json_text, refuse_unwritable
from edgeprune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = 1
LONGEST_NAME = 50  # Other converters name a layer by its whole path.
COLUMNS: dict[str, Literal["left", "right"]] = {
    "layer": "left", "kind": "left", "shape": "right", "zeros": "right", "bits/weight": "right",
    "stored as": "left", "note": "left",
}  # fmt: skip
EXAMPLES = """\
  edgeprune inspect runs/mine/files/block80-litert-arm64.tflite
  edgeprune inspect Model.mlpackage --json -
  edgeprune inspect model.tflite --node-data overlays   # for Model Explorer
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    command.add_argument(
        "--node-data", type=Path, metavar="FOLDER", help="write what Model Explorer lays over the graph here"
    )
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Read the file and show what is in it."""
    refuse_unwritable(options.json)
    facts = format_of(options.file).inspect(options.file)
    if options.node_data is not None:
        write_node_data(facts, options.node_data)
    deliver(json_text(to_plain(facts)), options.json, lambda console: print_facts(facts, console))
    return DONE


def write_node_data(facts: FileFacts, folder: Path) -> None:
    """Write a file for each overlay.

    Raises:
        UserError: there are none for such a file, or the folder cannot be written to.
    """
    write_overlays(facts.overlays, facts.path, folder)


def write_overlays(overlays: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Write what Model Explorer lays over the graph of a file, a JSON file each.

    Raises:
        UserError: there is nothing for such a file, or the folder cannot be written to.
    """
    if not overlays:
        raise UserError(f"--node-data: Model Explorer has nothing to lay over a {path.suffix}")
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, overlay in overlays.items():
        write_text(folder / f"{name}.json", json_text(overlay))


def to_plain(facts: FileFacts) -> dict[str, Any]:
    """The facts of a file as plain data for JSON."""
    return {"schema": SCHEMA, "path": str(facts.path), **facts.plain}


def print_facts(facts: FileFacts, console: Console) -> None:
    """Print the facts of a file."""
    console.print(_table(facts))
    for line in facts.lines:
        console.print(line, highlight=False, markup=False)


def _table(facts: FileFacts) -> Table:
    """A row for each layer."""
    from rich import box
    from rich.table import Table

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
