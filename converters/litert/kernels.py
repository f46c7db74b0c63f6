"""What the runtime's sparse kernels take: one table, from the kind of an op to the conditions on it.

Read from XNNPACK's `subgraph.c` and LiteRT's delegate that feeds it, then checked op by op on LiteRT 2.3.0
for x86 without AVX: a network with the op in its middle, its speed and outputs against the dense file's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from converters.litert.graph import Graph

# What stands between a stored weight and its op: gone once the runtime has loaded the file.
STATIC_OPS = ("DENSIFY", "DEQUANTIZE")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
ELEMENTWISE_BINARY = ("ADD", "MUL", "SUB", "DIV", "MAXIMUM", "MINIMUM")
SPATIAL_AXES = (1, 2)


class Role(Flag):
    """What an op may be in the sparse part of a network."""

    NONE = 0
    ENTER = auto()  # turns channel-last into channel-first
    INSIDE = auto()
    LEAVE = auto()  # turns channel-first back


@dataclass(frozen=True)
class Verdict:
    """What the runtime makes of one op.

    Attributes:
        role: NONE where it has no sparse kernel for the op.
        rule: the rule the op breaks, a key of `linter.RULES`; "" for none.
        change: what is wrong, and what to change. With a role: the runtime takes the op, and fails on it.
    """

    role: Role
    rule: str = ""
    change: str = ""


@dataclass
class Node:
    """An op as the runtime sees it, a preceding PAD folded in.

    Attributes:
        index: its number in the file.
        op: `schema.OperatorT`.
        kind: "CONV_2D".
        inputs: tensors it reads that are computed or come from outside.
        weight: the stored tensor its weight comes from; None where it has none, or none that is constant.
        padding: (top, bottom, left, right) of the folded PAD.
    """

    index: int
    op: Any
    kind: str
    inputs: list[int]
    weight: int | None
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    verdict: Verdict = field(default_factory=lambda: Verdict(Role.NONE))

    @property
    def role(self) -> Role:
        """Shorthand for the verdict's."""
        return self.verdict.role


def nodes(graph: Graph) -> list[Node]:
    """The network as the runtime sees it, in order, each op judged."""
    producers, consumers = graph.producers(), graph.consumers()
    outputs = {int(t) for t in graph.subgraph.outputs}
    static = _static_tensors(graph)
    padded: dict[int, tuple[int, tuple[int, int, int, int]]] = {}  # tensor -> (what was padded, by how much)
    found = []
    for index, op in enumerate(graph.ops):
        kind = graph.op_name(op)
        if len(op.outputs) and all(int(t) in static for t in op.outputs):
            continue
        padding = _foldable(graph, op, consumers, outputs) if kind == "PAD" else None
        if padding is not None:
            padded[int(op.outputs[0])] = (int(op.inputs[0]), padding)
            continue
        inputs = [
            int(t) for t in op.inputs if t >= 0 and int(t) not in static and not graph.is_constant(int(t))
        ]
        node = Node(index, op, kind, inputs, _weight(graph, op, static, producers))
        if inputs and inputs[0] in padded:
            inputs[0], node.padding = padded[inputs[0]]
        node.verdict = judge(graph, node)
        found.append(node)
    return found


def judge(graph: Graph, node: Node) -> Verdict:
    """What the runtime makes of an op."""
    types = {graph.type_name(t) for t in [*node.inputs, *map(int, node.op.outputs)]}
    if types - {"FLOAT32"}:
        return _no(f"computes in {', '.join(sorted(types)).lower()}: sparse kernels are float32")
    decide = TABLE.get(node.kind)
    if decide is None or not node.inputs:
        return _no(f"{node.kind} has no sparse kernel: replace it, or move it behind the network's end")
    return decide(graph, node)


def _static_tensors(graph: Graph) -> set[int]:
    """Tensors the runtime computes from constants while it loads the file."""
    static: set[int] = set()
    for op in graph.ops:
        if graph.op_name(op) in STATIC_OPS and len(op.inputs) == 1:
            source = int(op.inputs[0])
            if source in static or graph.is_constant(source):
                static.update(int(t) for t in op.outputs)
    return static


def _weight(graph: Graph, op: Any, static: set[int], producers: dict[int, Any]) -> int | None:
    if len(op.inputs) < 2 or op.inputs[1] < 0:
        return None
    tensor = int(op.inputs[1])
    if graph.type_name(tensor) != "FLOAT32":
        return None
    while tensor in static:
        tensor = int(producers[tensor].inputs[0])
    return tensor if graph.is_constant(tensor) else None


def _foldable(
    graph: Graph, op: Any, consumers: dict[int, list[Any]], outputs: set[int]
) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of a PAD that the convolution behind it takes over, else None."""
    padded, amounts = int(op.outputs[0]), int(op.inputs[1])
    readers = consumers.get(padded, [])
    if len(readers) != 1 or padded in outputs or not graph.is_constant(amounts):
        return None
    reader = readers[0]
    if graph.op_name(reader) not in CONVOLUTIONS or int(reader.inputs[0]) != padded:
        return None
    if getattr(reader.builtinOptions, "padding", None) != schema.Padding.VALID:
        return None
    table = graph.constant(amounts)
    if table.shape != (4, 2) or table[0].any() or table[3].any():
        return None
    return int(table[1, 0]), int(table[1, 1]), int(table[2, 0]), int(table[2, 1])


def _no(change: str, rule: str = "op") -> Verdict:
    return Verdict(Role.NONE, rule, change)


def _conv(graph: Graph, node: Node) -> Verdict:
    problem = _not_spatial(graph, node)
    if problem is not None:
        return problem
    options = node.op.builtinOptions
    _, height, width, in_channels = graph.shape(int(node.op.inputs[1]))
    stride = (options.strideH, options.strideW)
    if graph.shape(node.inputs[0])[3] != in_channels:
        return _no("grouped convolutions have no sparse kernel: use depthwise or groups=1")
    if (height, width) == (1, 1):
        if stride != (1, 1) or any(node.padding):
            return _no(
                f"a 1x1 convolution of stride {stride} padded by {node.padding}: use stride 1, no padding"
            )
        return Verdict(Role.INSIDE)
    padding = _padding(options, node.padding, height, width)
    if (height, width, stride, in_channels) == (3, 3, (2, 2), 3):
        wrong = padding != (1, 1, 1, 1)
        return _no(_uneven(padding, height, width), "start") if wrong else Verdict(Role.ENTER)
    return _no(
        f"a dense {height}x{width} convolution of {in_channels} channels at stride {stride[0]}: only the "
        "first one (3x3, stride 2, 3 channels) has a sparse kernel; use depthwise and 1x1 convolutions"
    )


def _depthwise(graph: Graph, node: Node) -> Verdict:
    problem = _not_spatial(graph, node)
    if problem is not None:
        return problem
    options = node.op.builtinOptions
    _, height, width, channels = graph.shape(int(node.op.inputs[1]))
    stride = (options.strideH, options.strideW)
    if graph.shape(node.inputs[0])[3] != channels:
        return _no("a depth multiplier has no sparse kernel: use as many outputs as inputs")
    if (height, width) not in ((3, 3), (5, 5)):
        return _no(f"a {height}x{width} depthwise convolution: only 3x3 and 5x5 have sparse kernels")
    if stride not in ((1, 1), (2, 2)):
        return _no(f"a depthwise convolution of stride {stride}: only 1 and 2 have sparse kernels")
    padding = _padding(options, node.padding, height, width)
    wrong = padding != (height // 2,) * 4
    return _no(_uneven(padding, height, width)) if wrong else Verdict(Role.INSIDE)


def _not_spatial(graph: Graph, node: Node) -> Verdict | None:
    """What rules out a convolution before its kernel is looked at."""
    options = node.op.builtinOptions
    if node.weight is None or len(graph.shape(int(node.op.inputs[1]))) != 4 or options is None:
        return _no("its weight is not a float32 constant: store it as one")
    if len(graph.shape(node.inputs[0])) != 4:
        return _no("does not work on 4 dimensions")
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return _no("dilated convolutions have no sparse kernel: use dilation 1")
    return None


def _fully_connected(graph: Graph, node: Node) -> Verdict:
    # Without keep_num_dims the delegate puts a reshape before the layer itself, which keeps it apart.
    if node.op.builtinOptions is None or not node.op.builtinOptions.keepNumDims:
        return Verdict(Role.NONE)
    return _no("its weight is not a float32 constant") if node.weight is None else Verdict(Role.INSIDE)


def _add_or_mul(graph: Graph, node: Node) -> Verdict:
    operands = [int(t) for t in node.op.inputs]
    shapes = [graph.shape(t) for t in operands]
    if any(len(shape) != 4 for shape in shapes):
        listed = " and ".join(str(list(shape)) for shape in shapes)
        return _no(f"operands {listed}: both must have 4 dimensions, a scalar as [1, 1, 1, 1]", "constant")
    first = shapes[0]
    if graph.is_constant(operands[0]) and _long_dimensions(first) > 1:
        return _no(f"a constant of shape {list(first)}: it must be a scalar or one vector", "constant")
    # The runtime means to look at the constant here, and looks at the other operand.
    if graph.is_constant(operands[1]) and _long_dimensions(first) > 1:
        return _no("its constant is the second operand: it must be the first", "constant")
    return Verdict(Role.INSIDE)


def _long_dimensions(shape: tuple[int, ...]) -> int:
    return sum(size != 1 for size in shape)


def _bound(graph: Graph, node: Node) -> Verdict:
    """MAXIMUM and MINIMUM: with a scalar they are a clamp."""
    constants = [int(t) for t in node.op.inputs if graph.is_constant(int(t))]
    if len(constants) != 1 or graph.stored(constants[0]).size != 4:
        return _no(f"{node.kind} of two tensors has no sparse kernel: only with a scalar constant")
    return _unary(graph, node)


def _unary(graph: Graph, node: Node) -> Verdict:
    rank = len(graph.shape(node.inputs[0]))
    return Verdict(Role.INSIDE) if rank == 4 else _no(f"works on {rank} dimensions: sparse kernels need 4")


def _mean(graph: Graph, node: Node) -> Verdict:
    rank, axes = len(graph.shape(node.inputs[0])), int(node.op.inputs[1])
    if rank != 4 or not graph.is_constant(axes):
        return _no(f"averages over {rank} dimensions: it must be over height and width of 4", "end")
    listed = sorted(int(axis) % rank for axis in graph.constant(axes).reshape(-1))
    if listed != [1, 2]:
        change = f"averages over axes {listed}: the runtime takes it and then fails; only [1, 2] works"
        return Verdict(Role.INSIDE | Role.LEAVE, "end", change)
    return Verdict(Role.INSIDE | Role.LEAVE)


def _resize(graph: Graph, node: Node) -> Verdict:
    shape = graph.shape(node.inputs[0])
    if len(shape) != 4 or min(shape[1:3]) <= 1:
        return _no(f"resizes {list(shape)}: height and width must be above 1")
    return Verdict(Role.INSIDE)


def _depth_to_space(graph: Graph, node: Node) -> Verdict:
    return Verdict(Role.LEAVE)


def _padding(
    options: Any, folded: tuple[int, int, int, int], height: int, width: int
) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right); None: SAME at a stride, which the runtime does not know when it looks."""
    if options.padding == schema.Padding.VALID:
        return folded
    if (options.strideH, options.strideW) != (1, 1):
        return None
    return (height - 1) // 2, height // 2, (width - 1) // 2, width // 2


def _uneven(padding: tuple[int, int, int, int] | None, height: int, width: int) -> str:
    if padding is None:
        return f"a {height}x{width} kernel with TensorFlow's SAME padding at stride 2: pad all sides alike"
    listed = f"{padding} (top, bottom, left, right)"
    return f"a {height}x{width} kernel padded by {listed}: pad all sides by {height // 2}"


ELEMENTWISE_UNARY = (
    "ABS",
    "CEIL",
    "COS",
    "ELU",
    "EXP",
    "FLOOR",
    "GELU",
    "HARD_SWISH",
    "LEAKY_RELU",
    "LOG",
    "LOGISTIC",
    "NEG",
    "RELU",
    "RELU6",
    "RELU_N1_TO_1",
    "ROUND",
    "RSQRT",
    "SIN",
    "SQRT",
    "SQUARE",
    "TANH",
)

TABLE: dict[str, Callable[[Graph, Node], Verdict]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add_or_mul,
    "MUL": _add_or_mul,
    "MAXIMUM": _bound,
    "MINIMUM": _bound,
    "MEAN": _mean,
    "SUM": _mean,
    "RESIZE_BILINEAR": _resize,
    "DEPTH_TO_SPACE": _depth_to_space,
    **dict.fromkeys(ELEMENTWISE_UNARY, _unary),
}
