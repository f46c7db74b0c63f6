"""A concatenation of channels as a sum, where nothing else keeps a network from the sparse kernels.

Each part goes through a 1x1 convolution that puts its channels in their places and leaves zeros in the
others; the results are added. That is exact: every value is multiplied by one and added to zeros. The weights
have one entry a channel, so that the sparse kernels have next to nothing to do for them; dense ones would
compute them all, which is why a network that runs dense anyway keeps its concatenation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert import storage
from converters.litert.graph import PLACING, Graph
from converters.targets import Storage

CHANNEL_AXIS = 3


def add_instead_of_joining(graph: Graph) -> bool:
    """Replace all concatenations of maps, in place; whether there were any."""
    found = any(_joins_maps(graph, op) for op in graph.ops)
    graph.subgraph.operators = [
        made for op in graph.ops for made in (_sum(graph, op) if _joins_maps(graph, op) else [op])
    ]
    return found


def _joins_maps(graph: Graph, op: Any) -> bool:
    """Whether an op joins maps of several pixels by their channels, and does nothing else."""
    if graph.op_name(op) != "CONCATENATION" or graph.type_name(int(op.outputs[0])) != "FLOAT32":
        return False
    shape, options = graph.shape(int(op.outputs[0])), op.builtinOptions
    return (
        len(shape) == 4
        and max(shape[1:3]) > 1
        and options is not None
        and options.axis % 4 == CHANNEL_AXIS
        and not options.fusedActivationFunction
        and len(op.inputs) > 1
        and not any(graph.is_constant(int(t)) for t in op.inputs)
    )


def _sum(graph: Graph, op: Any) -> list[Any]:
    """The ops that give what a concatenation gives."""
    joined, parts = int(op.outputs[0]), [int(t) for t in op.inputs]
    made: list[Any] = []
    total: int | None = None
    start = 0
    for number, part in enumerate(parts):
        name = f"{graph.name(joined)}:part_{number}"
        placed = graph.add_tensor(name, graph.shape(joined), graph.tensors[joined].type)
        channels = np.arange(graph.shape(part)[CHANNEL_AXIS])
        made += placing(graph, part, placed, start + channels, channels)
        start += len(channels)
        if total is not None:
            last = number == len(parts) - 1
            shape, kind = graph.shape(joined), graph.tensors[joined].type
            result = joined if last else graph.add_tensor(f"{name}:sum", shape, kind)
            options = ("AddOptions", schema.AddOptionsT())
            made.append(graph.make_op("ADD", [total, placed], [result], options=options))
            placed = result
        total = placed
    return made


def placing(graph: Graph, source: int, placed: int, to: np.ndarray, taken: np.ndarray) -> list[Any]:
    """A 1x1 convolution that writes some channels of `source` to some of `placed`, zeros to the others.

    Args:
        graph: that both tensors are in.
        source: tensor that is read.
        placed: tensor that is made, of the same height and width.
        to: numbers of channels, each once.
        taken: as many numbers.
    """
    width, channels = graph.shape(placed)[CHANNEL_AXIS], graph.shape(source)[CHANNEL_AXIS]
    weight = np.zeros((width, 1, 1, channels), np.float32)
    weight[to, 0, 0, taken] = 1
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    kernel = graph.add_constant(f"{graph.name(placed)}{PLACING}", weight)
    bias = graph.add_constant(f"{graph.name(placed)}:bias", np.zeros(width, np.float32))
    conv = graph.make_op("CONV_2D", [source, kernel, bias], [placed], 1, ("Conv2DOptions", options))
    return [*storage.store_weight(graph, conv, kernel, Storage.FLOAT32, {}), conv]
