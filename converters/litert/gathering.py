"""A dense convolution as a 1x1 convolution of gathered windows, where nothing else keeps a network from the
sparse kernels.

The sparse kernels take a dense 3x3 convolution as the first layer only. Any other is the same as three steps
that they do take: each channel is written as many times as the kernel has places (a 1x1 convolution with one
entry a row), each of these copies is moved by its place (a depthwise convolution with one entry a channel,
which has the stride), and a 1x1 convolution with the old weights, in their old order, adds up. Every value is
multiplied by one and added to zeros. What it gains and costs is in docs/formats/litert.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert.graph import PLACING, Graph, root_constant
from converters.litert.joining import placing
from converters.litert.kernels import nodes
from converters.litert.mirror import Conv, conv_of, even_pad

# Depthwise kernels that there are, by how far they reach.
SIDES = {0: 3, 1: 3, 2: 5}


def gather_windows(graph: Graph) -> bool:
    """Replace the dense convolutions that no sparse kernel takes, in place; whether there were any."""
    wanted = {id(n.op) for n in nodes(graph) if n.kind == "CONV_2D" and n.verdict.rule and not n.role}
    found = [
        conv
        for op in graph.ops
        if id(op) in wanted and (conv := conv_of(graph, op)) is not None and _can_be_gathered(graph, conv)
    ]
    before = {id(conv.op): _gathered(graph, conv) for conv in found}
    graph.subgraph.operators = [made for op in graph.ops for made in [*before.get(id(op), ()), op]]
    graph.drop_unread("PAD")
    return bool(found)


def _can_be_gathered(graph: Graph, conv: Conv) -> bool:
    """Whether its places are within reach of a depthwise kernel, and it alone reads its weight."""
    weight = int(conv.op.inputs[1])
    grouped = graph.shape(weight)[3] != graph.shape(conv.source)[3]
    readers = sum(list(op.inputs).count(weight) for op in graph.ops)
    reach = _reach(conv)
    if grouped or readers != 1 or reach not in SIDES or conv.stride not in ((1, 1), (2, 2)):
        return False
    stored = graph.tensors[root_constant(graph, weight, graph.producers())]
    if stored.sparsity is not None and conv.kernel != (1, 1):  # Its indices are those of its shape.
        return False
    margin = SIDES[reach] // 2
    return all(
        (size + 2 * margin - SIDES[reach]) // step + 1 == out
        for size, step, out in zip(conv.sizes, conv.stride, conv.outs, strict=True)
    )


def _offsets(conv: Conv) -> list[tuple[int, int]]:
    """How far from a window's middle each place of the kernel looks, row by row."""
    (top, _), (left, _) = conv.padding
    return [(row - top, column - left) for row in range(conv.kernel[0]) for column in range(conv.kernel[1])]


def _reach(conv: Conv) -> int:
    return max(abs(side) for offset in _offsets(conv) for side in offset)


def _gathered(graph: Graph, conv: Conv) -> list[Any]:
    """Make a convolution a 1x1 one, in place; the ops that gather what it reads."""
    offsets, name = _offsets(conv), graph.name(int(conv.op.inputs[1]))
    batch, height, width, channels = graph.shape(conv.source)
    kind = graph.tensors[conv.source].type
    copies, made = conv.source, []
    if len(offsets) > 1:
        shape = (batch, height, width, channels * len(offsets))
        copies = graph.add_tensor(f"{name}:copies", shape, kind)
        # All places of one channel's neighbours lie together, in the order of the weight's own memory.
        rows = np.tile(np.arange(channels), len(offsets))
        made += placing(graph, conv.source, copies, np.arange(len(rows)), rows)
    gathered = graph.add_tensor(f"{name}:gathered", (batch, *conv.outs, channels * len(offsets)), kind)
    made += _moving(graph, conv, copies, gathered)
    _make_pointwise(graph, conv.op, gathered)
    return made


def _moving(graph: Graph, conv: Conv, copies: int, gathered: int) -> list[Any]:
    """The depthwise convolution that moves each copy by its place."""
    side = SIDES[_reach(conv)]
    margin, name = side // 2, graph.name(gathered)
    channels = graph.shape(copies)[3]
    weight = np.zeros((1, side, side, channels), np.float32)
    offsets = _offsets(conv)
    for place, (row, column) in enumerate(offsets):
        each = channels // len(offsets)
        weight[0, row + margin, column + margin, place * each : (place + 1) * each] = 1
    pad, padded = even_pad(graph, copies, margin, name)
    options = schema.DepthwiseConv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideH, options.strideW = conv.stride
    options.depthMultiplier = options.dilationHFactor = options.dilationWFactor = 1
    kernel = graph.add_constant(f"{name}{PLACING}", weight)
    bias = graph.add_constant(f"{name}:bias", np.zeros(channels, np.float32))
    inputs = [padded, kernel, bias]
    return [
        pad,
        graph.make_op("DEPTHWISE_CONV_2D", inputs, [gathered], options=("DepthwiseConv2DOptions", options)),
    ]


def _make_pointwise(graph: Graph, op: Any, gathered: int) -> None:
    """Let a convolution read gathered windows: its weight keeps its values, in a flat kernel."""
    weight, producers = int(op.inputs[1]), graph.producers()
    out, height, width, channels = graph.shape(weight)
    flat = np.array([out, 1, 1, height * width * channels], np.int32)
    graph.tensors[weight].shape = flat
    while weight in producers:  # What is stored as integers becomes this weight at load time.
        weight = int(producers[weight].inputs[0])
        graph.tensors[weight].shape = flat
    op.inputs = np.array([gathered, *op.inputs[1:]], np.int32)
    op.builtinOptions.padding = schema.Padding.VALID
    op.builtinOptions.strideH = op.builtinOptions.strideW = 1
