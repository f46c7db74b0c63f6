"""What is really stored in a `.tflite` file, weight by weight, decoded and counted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.facts import LayerFacts, zero_fraction
from converters.litert import sparse
from converters.litert.graph import TYPE_NAMES, Graph, read_file, weights

# Share of zeros from which a dense layer gets a note.
NOTEWORTHY_ZEROS = 0.05


@dataclass(frozen=True)
class Inspection:
    """A file's weights and their totals.

    Attributes:
        path: the file.
        bytes: its size.
        layers: one entry for each stored weight, in execution order.
        weights: number of weights in all layers.
        zero_fraction: of all those weights, 0 to 1.
        bits_per_weight: stored bits over their number.
    """

    path: Path
    bytes: int
    layers: tuple[LayerFacts, ...]
    weights: int
    zero_fraction: float
    bits_per_weight: float


def inspect(path: Path | str) -> Inspection:
    """Decode and count every weight of a file.

    Raises:
        UserError: it is not a `.tflite` that holds together.
    """
    path = Path(path)
    graph = read_file(path)
    layers = layer_facts(graph)
    sizes = [int(np.prod(layer.shape)) for layer in layers]
    total = sum(sizes)
    zeros = sum(layer.zero_fraction * size for layer, size in zip(layers, sizes, strict=True))
    bits = sum(layer.bits_per_weight * size for layer, size in zip(layers, sizes, strict=True))
    return Inspection(
        path,
        path.stat().st_size,
        layers,
        total,
        zeros / total if total else 0.0,
        bits / total if total else 0.0,
    )


def layer_facts(graph: Graph) -> tuple[LayerFacts, ...]:
    """The facts of each weight in the graph, in execution order."""
    return tuple(_facts(graph, op, tensor) for op, tensor in weights(graph))


def torch_layout(op_name: str, weight: np.ndarray) -> np.ndarray:
    """A weight as torch lays it out: (out, in / groups, height, width) or (out, in)."""
    if weight.ndim != 4:
        return weight
    axes = (3, 0, 1, 2) if op_name == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
    return weight.transpose(axes)


def dequantized(graph: Graph, tensor: int) -> np.ndarray:
    """A constant's values as the op sees them, float32 for quantised integers."""
    values = graph.constant(tensor)
    quantization = graph.tensors[tensor].quantization
    if values.dtype.kind == "f" or quantization is None or quantization.scale is None:
        return values
    if len(quantization.scale) == 0:
        return values
    scale = np.asarray(quantization.scale, np.float32)
    offset = np.asarray([0] if quantization.zeroPoint is None else quantization.zeroPoint, np.int64)
    shape = [1] * values.ndim
    if len(scale) > 1:
        shape[quantization.quantizedDimension] = len(scale)
    offset = offset.reshape(shape) if len(offset) == len(scale) else offset[:1]
    return ((values.astype(np.int64) - offset) * scale.reshape(shape)).astype(np.float32)


def _facts(graph: Graph, op: Any, tensor: int) -> LayerFacts:
    op_name = graph.op_name(op)
    weight = torch_layout(op_name, dequantized(graph, tensor))
    zeros = zero_fraction(weight)
    layout = _layout(graph, tensor)
    dense_note = layout is None and zeros >= NOTEWORTHY_ZEROS
    return LayerFacts(
        name=graph.name(int(op.inputs[1])),
        kind=_kind(graph, op, weight),
        shape=tuple(int(d) for d in weight.shape),
        zero_fraction=zeros,
        bits_per_weight=8 * _stored_bytes(graph, tensor, layout) / max(weight.size, 1),
        encoding=_encoding(graph, tensor, layout),
        note=f"{zeros:.0%} zeros, stored dense" if dense_note else None,
    )


def _layout(graph: Graph, tensor: int) -> sparse.Layout | None:
    table = graph.tensors[tensor].sparsity
    return None if table is None else sparse.from_table(table)


def _kind(graph: Graph, op: Any, weight: np.ndarray) -> str:
    if graph.op_name(op) == "FULLY_CONNECTED":
        return "linear"
    if graph.op_name(op) == "DEPTHWISE_CONV_2D":
        return "depthwise"
    shape = graph.shape(int(op.inputs[0]))
    grouped = len(shape) == 4 and weight.ndim == 4 and shape[3] != weight.shape[1]
    return "conv1x1" if weight.shape[2:] == (1, 1) and not grouped else "conv"


def _stored_bytes(graph: Graph, tensor: int, layout: sparse.Layout | None) -> int:
    quantization = graph.tensors[tensor].quantization
    # Zero points are left out: all tensors of as many channels share one vector of them.
    scales = (
        0 if quantization is None or quantization.scale is None else np.asarray(quantization.scale).nbytes
    )
    return int(graph.stored(tensor).size + scales + (0 if layout is None else layout.index_bytes))


def _encoding(graph: Graph, tensor: int, layout: sparse.Layout | None) -> str:
    values = TYPE_NAMES[graph.tensors[tensor].type].lower()
    if layout is None:
        return values
    out, in_ = layout.block
    return f"sparse {values}" + (f", {out}x{in_} blocks" if out * in_ > 1 else "")
