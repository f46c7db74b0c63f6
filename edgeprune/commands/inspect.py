"""`edgeprune inspect`: how each weight of a file is stored, as a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from converters.facts import InputSpec, LayerFacts
from converters.targets import FORMATS, Format
from edgeprune.errors import UserError

if TYPE_CHECKING:
    from converters import coreml
    from converters.litert.graph import Graph

SCHEMA = 1
LONGEST_NAME = 50  # Other converters name a layer by its whole path.
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
    format = _format(path)
    from converters import coreml, litert
    from converters.litert.graph import read_file
    from converters.litert.linter import lint_graph

    if format is Format.COREML:
        _print_package(coreml.inspect(path), console)
        return
    file, graph = litert.inspect(path), read_file(path)
    console.print(_table(path, file.layers))
    for line in (f"{file.bytes:,} bytes", _taken_by(graph, path)):
        console.print(line, highlight=False, markup=False)
    for runtime in LITERT_RUNTIMES:
        verdict = lint_graph(graph, runtime)
        console.print(f"sparse kernels on {runtime}: {'yes' if verdict.sparse else 'no'}", highlight=False)
        for problem in (*verdict.problems, *verdict.slow):
            console.print(f"  {problem}", highlight=False, markup=False)


def to_json(path: Path) -> str:
    """The facts of a file as JSON text.

    Raises:
        UserError: see `print_facts`.
    """
    plain = _package_to_plain if _format(path) is Format.COREML else _litert_to_plain
    return json.dumps({"schema": SCHEMA, "path": str(path), **plain(path)}, indent=2, allow_nan=False) + "\n"


def _package_to_plain(path: Path) -> dict[str, Any]:
    from converters import coreml

    package = coreml.inspect(path)
    return {
        "format": Format.COREML.value,
        "bytes": package.bytes,
        "lowest_os": package.lowest_os,
        "input": dataclasses.asdict(package.input),
        "layers": [dataclasses.asdict(layer) for layer in package.layers],
        "operations": dict(package.operations),
        "neural_engine_may_skip": dict(package.skipped),
        "leaves_neural_engine": list(package.leaving),
        "metadata": dict(package.metadata),
    }


def _litert_to_plain(path: Path) -> dict[str, Any]:
    from converters import litert
    from converters.litert.evaluation import image_input
    from converters.litert.graph import read_file
    from converters.litert.linter import lint_graph

    file, graph = litert.inspect(path), read_file(path)
    try:
        taken = dataclasses.asdict(image_input(graph, path)[0])
    except UserError:
        taken = None
    verdicts = {runtime: lint_graph(graph, runtime) for runtime in LITERT_RUNTIMES}
    return {
        "format": Format.LITERT.value,
        "bytes": file.bytes,
        "input": taken,
        "layers": [dataclasses.asdict(layer) for layer in file.layers],
        "runtimes": {
            runtime: {
                "sparse_kernels": verdict.sparse,
                "problems": [str(problem) for problem in verdict.problems],
                "slow": [str(problem) for problem in verdict.slow],
            }
            for runtime, verdict in verdicts.items()
        },
    }


def _format(path: Path) -> Format:
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: expected a {' or '.join(FORMATS)}")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    return FORMATS[path.suffix]


def _print_package(package: coreml.Inspection, console: Console) -> None:
    console.print(_table(package.path, package.layers, package.skipped))
    sparse = sum(layer.encoding.startswith("sparse") for layer in package.layers)
    lines = [
        f"{package.bytes:,} bytes; runs on {package.lowest_os} and later",
        _takes(package.input),
        f"zeros the Neural Engine may skip: {len(package.skipped)} of {sparse} sparse layers",
        f"known to leave the Neural Engine: {', '.join(package.leaving) or 'none'}",
        *(f"{key}: {text}" for key, text in package.metadata.items()),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)


def _taken_by(graph: Graph, path: Path) -> str:
    """What a `.tflite` expects, in words; one that is no image classifier can be inspected too."""
    from converters.litert.evaluation import image_input

    try:
        return _takes(image_input(graph, path)[0])
    except UserError:
        shapes = ["x".join(map(str, graph.shape(int(t)))) for t in graph.subgraph.inputs]
        return f"takes {', '.join(shapes)}, gives {len(graph.subgraph.outputs)} tensors"


def _takes(spec: InputSpec) -> str:
    """What a file expects, in words."""
    channels, height, width = spec.shape
    pixels = "normalised as for training: the file does not say how"
    if spec.range is not None:
        pixels = f"plain pixels from {spec.range[0]:g} to {spec.range[1]:g}"
    elif spec.normalization is not None:
        mean, std = (", ".join(f"{v:g}" for v in side) for side in dataclasses.astuple(spec.normalization))
        pixels = f"(pixel / 255 - mean) / std, mean {mean}, std {std}"
    labels = f"; names {len(spec.labels)} classes" if spec.labels else ""
    return f"takes {channels} channels of {height}x{width} px, {pixels}{labels}"


def _table(path: Path, layers: Sequence[LayerFacts], skipped: Collection[str] | None = None) -> Table:
    """A row for each layer; `skipped` names those whose zeros the Neural Engine may skip."""
    table = Table(title=str(path), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = COLUMNS if skipped is None else {**COLUMNS, "skips": "left"}
    for heading, justify in columns.items():
        table.add_column(heading, justify=justify, no_wrap=heading in ("layer", "shape"))
    for layer in layers:
        table.add_row(
            layer.name if len(layer.name) <= LONGEST_NAME else f"…{layer.name[1 - LONGEST_NAME :]}",
            layer.kind,
            "x".join(map(str, layer.shape)),
            f"{100 * layer.zero_fraction:.1f} %",
            f"{layer.bits_per_weight:.2f}",
            layer.encoding,
            layer.note or "",
            *([] if skipped is None else ["yes" if layer.name in skipped else ""]),
        )
    return table
