"""`edgeprune inspect`: how each weight of a file is stored, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from converters.facts import LayerFacts
from converters.targets import Format
from edgeprune.errors import UserError

SUFFIXES = {".mlpackage": Format.COREML, ".tflite": Format.LITERT}
LITERT_RUNTIMES = ("arm64", "web")
COLUMNS: dict[str, Literal["left", "right"]] = {
    "layer": "left", "kind": "left", "shape": "right", "zeros": "right", "bits/weight": "right",
    "stored as": "left", "note": "left",
}  # fmt: skip


def print_facts(path: Path, console: Console) -> None:
    """Print the facts of a `.tflite` file or `.mlpackage` folder.

    Raises:
        UserError: no such file, of another kind, or damaged.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a {' or '.join(SUFFIXES)}")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    from converters import coreml, litert

    if SUFFIXES[path.suffix] is Format.COREML:
        package = coreml.inspect(path)
        console.print(_table(path, package.layers))
        console.print(f"{package.bytes:,} bytes; runs on {package.lowest_os} and later", highlight=False)
        console.print(f"zeros the Neural Engine may skip: {len(package.skipped)} layers", highlight=False)
        leaving = ", ".join(package.leaving) or "none"
        console.print(f"known to leave the Neural Engine: {leaving}", highlight=False)
        return
    file = litert.inspect(path)
    console.print(_table(path, file.layers))
    console.print(f"{file.bytes:,} bytes", highlight=False)
    for runtime in LITERT_RUNTIMES:
        verdict = litert.lint(path, runtime=runtime)
        console.print(f"sparse kernels on {runtime}: {'yes' if verdict.sparse else 'no'}", highlight=False)
        for problem in verdict.problems:
            console.print(f"  {problem}", highlight=False, markup=False)


def _table(path: Path, layers: Sequence[LayerFacts]) -> Table:
    table = Table(title=str(path), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in COLUMNS.items():
        table.add_column(heading, justify=justify, no_wrap=heading in ("layer", "shape"))
    for layer in layers:
        table.add_row(
            layer.name,
            layer.kind,
            "x".join(map(str, layer.shape)),
            f"{100 * layer.zero_fraction:.1f} %",
            f"{layer.bits_per_weight:.2f}",
            layer.encoding,
            layer.note or "",
        )
    return table
