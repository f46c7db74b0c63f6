"""TensorFlow's uneven padding made even, by running the network on the mirrored image.

TensorFlow's SAME padding at stride 2 puts the odd row at the bottom and the odd column at the right; the
sparse kernels take only padding alike on all sides. With image and kernels mirrored top to bottom and left
to right, the odd row is at the top and the odd column at the left. Over maps of even size, padding (1, 0)
and (1, 1) then read the same: the row that the second one adds at the bottom is never reached. Each map of
the network is the mirrored one; the mean over height and width at its end does not see the difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert.graph import Graph, root_constant
from converters.litert.kernels import (
    CONVOLUTIONS,
    ELEMENTWISE_BINARY,
    ELEMENTWISE_UNARY,
    SPATIAL_AXES,
    STATIC_OPS,
)

CHANNEL_AXIS = 3


@dataclass(frozen=True)
class Conv:
    """A convolution, with what lies along height and along width.

    Attributes:
        op: `schema.OperatorT`.
        source: the tensor it reads, before any padding.
        sizes, outs: of that tensor and of the result.
        kernel, stride: along both axes.
        padding: ((before, after), (before, after)), whoever does it.
    """

    op: Any
    source: int
    sizes: tuple[int, int]
    outs: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def is_even(self) -> bool:
        """Whether it is padded alike on all sides, in a way the sparse kernels can see."""
        implicit = self.op.builtinOptions.padding == schema.Padding.SAME and self.stride != (1, 1)
        return not implicit and len({side for pair in self.padding for side in pair}) == 1

    def even(self, mirrored: bool) -> int | None:
        """The padding alike on all sides that reads the same, mirrored or not; None: there is none."""
        amounts = {self._even(axis, mirrored) for axis in range(2)}
        return amounts.pop() if len(amounts) == 1 else None

    def _even(self, axis: int, mirrored: bool) -> int | None:
        size, out, kernel, stride = self.sizes[axis], self.outs[axis], self.kernel[axis], self.stride[axis]
        before, _ = self.padding[axis]
        after = (out - 1) * stride + kernel - size - before  # what the last window reads
        before, after = (after, before) if mirrored else (before, after)
        as_many = (size + 2 * before - kernel) // stride + 1 == out
        return before if before == kernel // 2 and after <= before and as_many else None


def even_padding(graph: Graph) -> None:
    """Pad every convolution alike on all sides, mirroring the network where only that makes it possible.

    Nothing is changed where it cannot be done for all, or something in the network sees the difference.
    """
    convs = [conv for op in graph.ops if (conv := conv_of(graph, op)) is not None]
    if all(conv.is_even for conv in convs):
        return
    if all(conv.even(mirrored=False) is not None for conv in convs):
        _pad_evenly(graph, convs, mirrored=False)
    elif all(conv.even(mirrored=True) is not None for conv in convs) and _can_be_mirrored(graph):
        _pad_evenly(graph, convs, mirrored=True)
        _mirror_kernels(graph, convs)
        _mirror_image(graph)


def conv_of(graph: Graph, op: Any) -> Conv | None:
    """A convolution that looks further than one pixel, or skips some; None for other ops."""
    options = op.builtinOptions
    if graph.op_name(op) not in CONVOLUTIONS or (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return None
    _, *kernel, _ = graph.shape(int(op.inputs[1]))
    stride = (options.strideH, options.strideW)
    if tuple(kernel) == (1, 1) and stride == (1, 1):
        return None
    source = int(op.inputs[0])
    outs = graph.shape(int(op.outputs[0]))[1:3]
    padding = np.zeros((2, 2), int)
    if options.padding == schema.Padding.SAME:
        sizes = np.array(graph.shape(source)[1:3])
        total = np.maximum((np.array(outs) - 1) * stride + np.array(kernel) - sizes, 0)
        padding = np.stack([total // 2, total - total // 2], axis=1)
    else:
        pad = graph.producers().get(source)
        amounts = _spatial_padding(graph, pad)
        if pad is not None and amounts is not None:
            source, padding = int(pad.inputs[0]), amounts
    height, width = graph.shape(source)[1:3]
    (top, bottom), (left, right) = padding.tolist()
    return Conv(
        op,
        source,
        sizes=(height, width),
        outs=(outs[0], outs[1]),
        kernel=(kernel[0], kernel[1]),
        stride=stride,
        padding=((top, bottom), (left, right)),
    )


def _spatial_padding(graph: Graph, pad: Any) -> np.ndarray | None:
    """((top, bottom), (left, right)) of a PAD with zeros; None where it is something else."""
    if pad is None or graph.op_name(pad) != "PAD" or not graph.is_constant(int(pad.inputs[1])):
        return None
    amounts = graph.constant(int(pad.inputs[1]))
    if amounts.shape != (4, 2) or amounts[0].any() or amounts[3].any() or (amounts < 0).any():
        return None
    return amounts[1:3]


def _pad_evenly(graph: Graph, convs: Iterable[Conv], mirrored: bool) -> None:
    """Give each convolution at a stride a PAD of its own, alike on all sides."""
    for conv in convs:
        if conv.stride == (1, 1) and conv.op.builtinOptions.padding == schema.Padding.SAME:
            continue
        amount = conv.even(mirrored)
        assert amount is not None
        pad, padded = even_pad(graph, conv.source, amount, graph.name(conv.source))
        graph.ops.insert(next(n for n, op in enumerate(graph.ops) if op is conv.op), pad)
        conv.op.inputs = np.array([padded, *conv.op.inputs[1:]], np.int32)
        conv.op.builtinOptions.padding = schema.Padding.VALID
    graph.drop_unread("PAD")


def even_pad(graph: Graph, source: int, amount: int, name: str) -> tuple[Any, int]:
    """A PAD of so many zeros on all sides of a map, in no graph yet, and the tensor that it makes."""
    batch, height, width, channels = graph.shape(source)
    table = np.array([[0, 0], [amount, amount], [amount, amount], [0, 0]], np.int32)
    shape = (batch, height + 2 * amount, width + 2 * amount, channels)
    padded = graph.add_tensor(f"{name}:padded", shape, graph.tensors[source].type)
    inputs = [source, graph.add_constant("padding", table)]
    return graph.make_op("PAD", inputs, [padded], options=("PadOptions", schema.PadOptionsT())), padded


def _mirror_kernels(graph: Graph, convs: Iterable[Conv]) -> None:
    producers = graph.producers()
    for weight in dict.fromkeys(root_constant(graph, int(conv.op.inputs[1]), producers) for conv in convs):
        mirrored = np.ascontiguousarray(np.flip(graph.constant(weight), SPATIAL_AXES))
        graph.replace_constant(weight, mirrored)


def _mirror_image(graph: Graph) -> None:
    """Let all that reads the image read the mirrored one."""
    (image,) = (int(t) for t in graph.subgraph.inputs)
    mirrored = graph.add_tensor("mirrored", graph.shape(image), graph.tensors[image].type)
    for op in graph.ops:
        op.inputs = np.where(op.inputs == image, mirrored, op.inputs).astype(np.int32)
    axes = graph.add_constant("axes", np.array(SPATIAL_AXES, np.int32))
    options = ("ReverseV2Options", schema.ReverseV2OptionsT())
    graph.ops.insert(0, graph.make_op("REVERSE_V2", [image, axes], [mirrored], options=options))


def _can_be_mirrored(graph: Graph) -> bool:
    """Whether every op gives the mirrored result for mirrored maps, or one that is the same."""
    if len(graph.subgraph.inputs) != 1 or any(_is_map(graph, int(t)) for t in graph.subgraph.outputs):
        return False
    producers = graph.producers()
    return all(
        _keeps_mirroring(graph, op, producers)
        for op in graph.ops
        if graph.op_name(op) not in STATIC_OPS and any(_is_map(graph, int(t)) for t in op.inputs)
    )


def _constants(graph: Graph, op: Any) -> set[int]:
    return {int(t) for t in op.inputs if t >= 0 and graph.is_constant(int(t))}


def _is_map(graph: Graph, tensor: int) -> bool:
    shape = graph.shape(tensor) if tensor >= 0 else ()
    return len(shape) == 4 and max(shape[1:3]) > 1


def _keeps_mirroring(graph: Graph, op: Any, producers: dict[int, Any]) -> bool:
    kind = graph.op_name(op)
    if kind in CONVOLUTIONS:
        if graph.shape(int(op.inputs[1]))[1:3] == (1, 1):
            return True
        weight = root_constant(graph, int(op.inputs[1]), producers)
        dilated = (op.builtinOptions.dilationHFactor, op.builtinOptions.dilationWFactor) != (1, 1)
        return graph.is_constant(weight) and graph.tensors[weight].sparsity is None and not dilated
    if kind in ELEMENTWISE_BINARY:
        return all(not _is_map(graph, t) for t in _constants(graph, op))
    if kind in ("MEAN", "SUM"):
        axes = int(op.inputs[1])
        return graph.is_constant(axes) and set(SPATIAL_AXES) <= {
            int(axis) % 4 for axis in graph.constant(axes).reshape(-1)
        }
    if kind == "PAD":  # Those in front of a convolution are taken over by it.
        return _spatial_padding(graph, op) is not None and all(
            graph.op_name(reader) in CONVOLUTIONS for reader in graph.consumers().get(int(op.outputs[0]), [])
        )
    if kind == "CONCATENATION":
        return op.builtinOptions.axis in (CHANNEL_AXIS, -1)
    return kind in ELEMENTWISE_UNARY
