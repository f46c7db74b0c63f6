"""Graph repairs without which the runtime silently runs a sparse model on its dense kernels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert.graph import Graph

ELEMENTWISE = ("ADD", "MUL", "SUB", "DIV", "MAXIMUM", "MINIMUM")
SPATIAL_AXES = (1, 2)


def lift_constants(graph: Graph) -> None:
    """Give the constants of 4-D elementwise ops four dimensions: a scalar `1/6` becomes [1, 1, 1, 1].

    Without this every hard-sigmoid, so every squeeze-and-excite block, is refused by the sparse kernels.
    """
    for op in graph.ops:
        if graph.op_name(op) not in ELEMENTWISE or len(graph.shape(int(op.outputs[0]))) != 4:
            continue
        op.inputs = np.array([_lifted(graph, int(t)) for t in op.inputs], np.int32)


def set_classifier_apart(graph: Graph) -> None:
    """Put a RESHAPE before every fully connected layer that follows 4-D values.

    The runtime counts a fully connected layer it can reach as part of the sparse network, and a dense
    classifier's weights then bring the share of zeros below its threshold. It cannot reach past a RESHAPE.
    A `MEAN` that drops its dimensions becomes one that keeps them, so that the RESHAPE has something to do.
    """
    producers = graph.producers()
    inserted: dict[int, Any] = {}
    for op in graph.ops:
        if graph.op_name(op) != "FULLY_CONNECTED":
            continue
        tensor = int(op.inputs[0])
        producer = producers.get(tensor)
        if producer is None or graph.op_name(producer) == "RESHAPE" or id(producer) in inserted:
            continue
        if graph.op_name(producer) == "MEAN" and _drops_spatial_axes(graph, producer):
            inserted[id(producer)] = _keep_dimensions(graph, producer)
    graph.subgraph.operators = [
        entry for op in graph.ops for entry in (op, inserted.get(id(op))) if entry is not None
    ]


def _lifted(graph: Graph, tensor: int) -> int:
    """The same constant with four dimensions; other ops may go on using the old one."""
    shape = graph.shape(tensor)
    if not graph.is_constant(tensor) or len(shape) >= 4:
        return tensor
    entry = copy.copy(graph.tensors[tensor])
    entry.shape = np.array([1] * (4 - len(shape)) + list(shape), np.int32)
    graph.tensors.append(entry)
    return len(graph.tensors) - 1


def _drops_spatial_axes(graph: Graph, mean: Any) -> bool:
    axes = int(mean.inputs[1])
    return (
        len(graph.shape(int(mean.inputs[0]))) == 4
        and len(graph.shape(int(mean.outputs[0]))) == 2
        and graph.is_constant(axes)
        and tuple(sorted(graph.constant(axes).reshape(-1).tolist())) == SPATIAL_AXES
    )


def _keep_dimensions(graph: Graph, mean: Any) -> Any:
    """Make a MEAN keep its dimensions; returns the RESHAPE that gives its old result."""
    flat = int(mean.outputs[0])
    batch, channels = graph.shape(flat)
    kept = graph.add_tensor(f"{graph.name(flat)}:4d", (batch, 1, 1, channels), graph.tensors[flat].type)
    mean.outputs = np.array([kept], np.int32)
    mean.builtinOptions.keepDims = True
    options = schema.ReshapeOptionsT()
    options.newShape = np.array([batch, channels], np.int32)
    shape = graph.add_constant("shape", np.array([batch, channels], np.int32))
    return graph.make_op("RESHAPE", [kept, shape], [flat], options=("ReshapeOptions", options))
