"""Will this file run on the runtime's sparse kernels, and if not, which op stops it, and what to change?

XNNPACK, LiteRT's CPU path, looks for a connected part of the network that starts at an image convolution,
holds only ops it has channel-first kernels for, and reaches a spatial mean. If more than two thirds of the
1x1 weights in it are zero, it runs that part sparse; otherwise it runs the dense kernels and says nothing.
This module does the same search on the file, and speaks. The rules were read from XNNPACK's `subgraph.c` and
checked by timing.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.errors import UserError
from converters.litert import metadata
from converters.litert.graph import Graph, read_file
from converters.litert.inspection import dequantized

# Whether each runtime has sparse kernels; None: it depends on the processor this runs on.
RUNTIMES: dict[str, bool | None] = {
    "arm64": True,
    "web": True,
    "x86-sparse": True,
    "x86-avx": False,
    "host": None,
}
# Sparse where zeros x 3 > weights x 2.
THRESHOLD = (2, 3)


class Role(Flag):
    """What an op may be in the sparse part of a network."""

    NONE = 0
    ENTER = auto()  # turns channel-last into channel-first
    INSIDE = auto()
    LEAVE = auto()  # turns channel-first back


@dataclass(frozen=True)
class Problem:
    """Why a file does not run sparse, or must not be shipped.

    Attributes:
        rule: the rule's short name, a key of `RULES`.
        op: kind of the op that breaks it, "" where it is the file as a whole.
        place: where that op is: its number and the name of what it computes.
        change: what is wrong there, and what to change in the model.
    """

    rule: str
    op: str
    place: str
    change: str

    def __str__(self) -> str:
        where = f"{self.op} at {self.place}: " if self.op else ""
        return f"[{self.rule}] {where}{self.change}"


@dataclass(frozen=True)
class Lint:
    """The verdict on one file for one runtime.

    Attributes:
        sparse: whether sparse kernels will run.
        problems: what stops them; empty where nothing does.
        sparse_fraction: share of the 1x1 weights that is in the sparse part, 0 to 1.
    """

    sparse: bool
    problems: tuple[Problem, ...]
    sparse_fraction: float = 0.0


RULES: dict[str, str] = {
    "encoding": "at least one weight reaches its op through DENSIFY from a tensor with sparsity parameters",
    "float16": "no float16 values behind DENSIFY: arm64 and the browser compute zeros or NaN from them",
    "half-precision-hint": "no reduced_precision_support metadata: it crashes some releases on a sparse file",
    "start": "the sparse part starts with a 3x3, stride-2 convolution of 3 channels, padded by 1 all round",
    "end": "the sparse part ends in a MEAN over height and width, or a DEPTH_TO_SPACE",
    "op": "every op between has a sparse kernel",
    "constant": "constants of ADD and MUL have four dimensions, at most one of them above 1",
    "classifier": "a dense classifier is kept apart by a RESHAPE",
    "branch": "no value is read both inside and outside the sparse part",
    "two-thirds": "more than two thirds of the 1x1 weights in the sparse part are zero",
    "processor": "the processor is not x86 with AVX",
}

UNARY_OPS = (
    *(
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
    ),
    *("RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "ROUND", "RSQRT", "SIN", "SQRT", "SQUARE", "TANH"),
)
# What stands between a stored weight and its op: gone once the runtime has loaded the file.
STATIC_OPS = ("DENSIFY", "DEQUANTIZE")


@dataclass
class _Node:
    """An op as the runtime sees it, a preceding PAD folded in."""

    index: int
    op: Any
    kind: str
    role: Role = Role.NONE
    reason: tuple[str, str] | None = None  # (rule, what to change) where the role is NONE
    inputs: list[int] = field(default_factory=list)  # tensors that are computed, or come from outside
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right: of the folded PAD
    blocked: bool = False
    leader: int = -1


def lint(path: Path | str, runtime: str = "arm64") -> Lint:
    """Say whether a file will run on sparse kernels.

    Args:
        path: the `.tflite` file, made by anyone.
        runtime: "arm64", "web", "x86-sparse" (x86 without AVX), "x86-avx", or "host": the processor here.

    Raises:
        UserError: an unknown runtime, or not a `.tflite` that holds together.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}: choose from {', '.join(RUNTIMES)}")
    return lint_graph(read_file(path), runtime)


def lint_graph(graph: Graph, runtime: str) -> Lint:
    """The same for a file already read."""
    broken = [*_float16_chains(graph), *_precision_hints(graph)]
    if not _has_sparse_weight(graph):
        problem = Problem(
            "encoding", "", "", "no weight is stored sparse: prune the 1x1 convolutions and convert again"
        )
        return Lint(False, (*broken, problem))
    nodes = _nodes(graph)
    clusters = _clusters(graph, nodes)
    counts = {leader: _count(graph, members) for leader, members in clusters.items()}
    running = {
        leader for leader, (zeros, total) in counts.items() if zeros * THRESHOLD[1] > total * THRESHOLD[0]
    }
    total = _count(graph, _convolutions(nodes))[1]
    in_sparse_part = [node for leader in running for node in _convolutions(clusters[leader])]
    share = _count(graph, in_sparse_part)[1] / total if total else 0.0
    problems = list(broken)
    if not running:
        problems += _blockers(graph, nodes, clusters, counts)
    elif not _has_sparse_kernels(runtime):
        problems.append(
            Problem("processor", "", "", "x86 with AVX always runs dense: nothing in the file can help")
        )
    return Lint(not problems, tuple(problems), share if not problems else 0.0)


def _has_sparse_kernels(runtime: str) -> bool:
    known = RUNTIMES[runtime]
    return not _is_x86_with_avx() if known is None else known


def _is_x86_with_avx() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # every desktop x86 since 2011 that is not Linux
    return " avx " in flags.replace("\n", " \n")


def _has_sparse_weight(graph: Graph) -> bool:
    return any(
        graph.op_name(op) == "DENSIFY" and graph.tensors[int(op.inputs[0])].sparsity is not None
        for op in graph.ops
    )


def _float16_chains(graph: Graph) -> Iterable[Problem]:
    for index, op in enumerate(graph.ops):
        if graph.op_name(op) == "DENSIFY" and graph.type_name(int(op.inputs[0])) == "FLOAT16":
            change = "float16 values behind DENSIFY come out as zeros or NaN: store them as float32 or int8"
            yield Problem("float16", "DENSIFY", _place(graph, index, op), change)


def _precision_hints(graph: Graph) -> Iterable[Problem]:
    if metadata.HALF_PRECISION_HINT in metadata.names(graph) and _has_sparse_weight(graph):
        yield Problem(
            "half-precision-hint",
            "",
            "",
            f"{metadata.HALF_PRECISION_HINT} metadata on a sparse file crashes LiteRT on arm64: remove it",
        )


def _place(graph: Graph, index: int, op: Any) -> str:
    name = graph.name(int(op.outputs[0])) if len(op.outputs) else ""
    return f"op {index} ({name[-80:]})"


# --- What each op may be -----------------------------------------------------------------------------------


def _nodes(graph: Graph) -> list[_Node]:
    """The network as the runtime sees it, in order, with each op's role."""
    consumers = graph.consumers()
    outputs = {int(t) for t in graph.subgraph.outputs}
    pads: dict[
        int, tuple[int, tuple[int, int, int, int]]
    ] = {}  # padded tensor -> (what is padded, by how much)
    nodes: list[_Node] = []
    static = {int(t) for op in graph.ops if graph.op_name(op) in STATIC_OPS for t in op.outputs}
    for index, op in enumerate(graph.ops):
        kind = graph.op_name(op)
        if kind in STATIC_OPS and graph.is_constant(_root(graph, op)):
            continue
        padding = _foldable(graph, op, consumers, outputs) if kind == "PAD" else None
        if padding is not None:
            pads[int(op.outputs[0])] = (int(op.inputs[0]), padding)
            continue
        node = _Node(index, op, kind, leader=len(nodes))
        computed = [
            int(t) for t in op.inputs if t >= 0 and not graph.is_constant(int(t)) and int(t) not in static
        ]
        if computed and computed[0] in pads:
            computed[0], node.padding = pads[computed[0]]
        node.inputs = computed
        verdict = _judge(graph, node)
        if isinstance(verdict, Role):
            node.role = verdict
        else:
            node.reason = verdict
        nodes.append(node)
    return nodes


def _root(graph: Graph, op: Any) -> int:
    producers = graph.producers()
    tensor = int(op.inputs[0])
    while tensor in producers and graph.op_name(producers[tensor]) in STATIC_OPS:
        tensor = int(producers[tensor].inputs[0])
    return tensor


def _foldable(
    graph: Graph, op: Any, consumers: dict[int, list[Any]], outputs: set[int]
) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of a PAD that the convolution behind it takes over, else None."""
    padded, amounts = int(op.outputs[0]), int(op.inputs[1])
    readers = consumers.get(padded, [])
    if len(readers) != 1 or padded in outputs or not graph.is_constant(amounts):
        return None
    reader = readers[0]
    if graph.op_name(reader) not in ("CONV_2D", "DEPTHWISE_CONV_2D") or int(reader.inputs[0]) != padded:
        return None
    if getattr(reader.builtinOptions, "padding", None) != schema.Padding.VALID:
        return None
    table = graph.constant(amounts)
    if table.shape != (4, 2) or table[0].any() or table[3].any():
        return None
    return int(table[1, 0]), int(table[1, 1]), int(table[2, 0]), int(table[2, 1])


_Verdict = Role | tuple[str, str]


def _judge(graph: Graph, node: _Node) -> _Verdict:
    """The op's role, or the rule it breaks and what to change."""
    activations = [*node.inputs, *map(int, node.op.outputs)]
    types = {graph.type_name(t) for t in activations}
    if types - {"FLOAT32"}:
        return "op", f"computes in {', '.join(sorted(types)).lower()}: sparse kernels are float32"
    judge = _JUDGES.get(node.kind)
    if judge is None:
        return "op", f"{node.kind} has no sparse kernel: replace it, or move it behind the network's end"
    return judge(graph, node)


def _judge_conv(graph: Graph, node: _Node) -> _Verdict:
    options, weight = node.op.builtinOptions, _weight(graph, node)
    if weight is None:
        return "op", "its weight is not a float32 constant: store it as one"
    _, height, width, in_channels = weight.shape
    stride = (options.strideH, options.strideW)
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "op", "dilated convolutions have no sparse kernel: use dilation 1"
    if graph.shape(node.inputs[0])[-1:] != (in_channels,):
        return "op", "grouped convolutions have no sparse kernel: use depthwise or groups=1"
    if (height, width) == (1, 1):
        if stride != (1, 1) or any(node.padding):
            return (
                "op",
                f"a 1x1 convolution of stride {stride} padded by {node.padding}: use stride 1, no padding",
            )
        return Role.INSIDE
    padding = _padding(options, node.padding, (height, width))
    if (height, width, stride, in_channels) == (3, 3, (2, 2), 3):
        return Role.ENTER if padding == (1, 1, 1, 1) else ("start", _asymmetric(padding, "3x3"))
    size = f"{height}x{width}"
    return "op", (
        f"a dense {size} convolution of {in_channels} channels, stride {stride[0]}: only the first one (3x3, "
        "stride 2, 3 channels) has a sparse kernel; use depthwise and 1x1 convolutions"
    )


def _judge_depthwise(graph: Graph, node: _Node) -> _Verdict:
    options, weight = node.op.builtinOptions, _weight(graph, node)
    if weight is None:
        return "op", "its weight is not a float32 constant: store it as one"
    _, height, width, channels = weight.shape
    stride = (options.strideH, options.strideW)
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "op", "dilated depthwise convolutions have no sparse kernel: use dilation 1"
    if graph.shape(node.inputs[0])[-1:] != (channels,):
        return "op", "a depth multiplier has no sparse kernel: use as many outputs as inputs"
    if (height, width) not in ((3, 3), (5, 5)):
        return "op", f"a {height}x{width} depthwise convolution: only 3x3 and 5x5 have sparse kernels"
    if stride not in ((1, 1), (2, 2)):
        return "op", f"a depthwise convolution of stride {stride}: only 1 and 2 have sparse kernels"
    padding = _padding(options, node.padding, (height, width))
    if padding != (height // 2,) * 4:
        return "op", _asymmetric(padding, f"{height}x{width}")
    return Role.INSIDE


def _judge_fully_connected(graph: Graph, node: _Node) -> _Verdict:
    if _weight(graph, node) is None:
        return "op", "its weight is not a float32 constant: store it as one"
    return Role.INSIDE


def _judge_binary(graph: Graph, node: _Node) -> _Verdict:
    shapes = [graph.shape(int(t)) for t in node.op.inputs]
    if any(len(shape) != 4 for shape in shapes):
        ranks = " and ".join(str(list(shape)) for shape in shapes)
        return (
            "constant",
            f"operands of shape {ranks}: both must have 4 dimensions (a scalar as [1, 1, 1, 1])",
        )
    for tensor, shape in zip(node.op.inputs, shapes, strict=True):
        if graph.is_constant(int(tensor)) and sum(d != 1 for d in shape) > 1:
            return "constant", f"a constant of shape {list(shape)}: it must be a scalar or one vector"
    return Role.INSIDE


def _judge_unary(graph: Graph, node: _Node) -> _Verdict:
    rank = len(graph.shape(node.inputs[0])) if node.inputs else 0
    return Role.INSIDE if rank == 4 else ("op", f"works on {rank} dimensions: sparse kernels need 4")


def _judge_mean(graph: Graph, node: _Node) -> _Verdict:
    axes_tensor = int(node.op.inputs[1])
    rank = len(graph.shape(int(node.op.inputs[0])))
    axes = (
        sorted(int(a) % max(rank, 1) for a in graph.constant(axes_tensor).reshape(-1))
        if (graph.is_constant(axes_tensor))
        else []
    )
    if rank != 4 or axes != [1, 2]:
        return (
            "end",
            f"averages over axes {axes} of {rank} dimensions: it must be height and width (1, 2) of 4",
        )
    return Role.INSIDE | Role.LEAVE


def _judge_resize(graph: Graph, node: _Node) -> _Verdict:
    shape = graph.shape(node.inputs[0])
    big = len(shape) == 4 and min(shape[1:3]) > 1
    return Role.INSIDE if big else ("op", f"resizes {list(shape)}: height and width must be above 1")


def _judge_depth_to_space(graph: Graph, node: _Node) -> _Verdict:
    return Role.LEAVE


# The one table of what the sparse runtime supports: each kind of op and the conditions on it.
_JUDGES: dict[str, Callable[[Graph, _Node], _Verdict]] = {
    "CONV_2D": _judge_conv,
    "DEPTHWISE_CONV_2D": _judge_depthwise,
    "FULLY_CONNECTED": _judge_fully_connected,
    "ADD": _judge_binary,
    "MUL": _judge_binary,
    "MEAN": _judge_mean,
    "SUM": _judge_mean,
    "RESIZE_BILINEAR": _judge_resize,
    "DEPTH_TO_SPACE": _judge_depth_to_space,
    **dict.fromkeys(UNARY_OPS, _judge_unary),
}


def _weight(graph: Graph, node: _Node) -> np.ndarray | None:
    """The weight as the op sees it, decoded; None where it is computed, or the op itself runs on integers."""
    if len(node.op.inputs) < 2 or graph.type_name(int(node.op.inputs[1])) != "FLOAT32":
        return None
    root = _weight_root(graph, int(node.op.inputs[1]))
    return (
        dequantized(graph, root)
        if graph.is_constant(root) or graph.tensors[root].sparsity is not None
        else None
    )


def _weight_root(graph: Graph, tensor: int) -> int:
    producers = graph.producers()
    while tensor in producers and graph.op_name(producers[tensor]) in STATIC_OPS:
        tensor = int(producers[tensor].inputs[0])
    return tensor


def _padding(
    options: Any, folded: tuple[int, int, int, int], kernel: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right); None: SAME at a stride, which the runtime does not know when it looks."""
    if options.padding == schema.Padding.VALID:
        return folded
    if (options.strideH, options.strideW) != (1, 1):
        return None
    (top, bottom), (left, right) = (((k - 1) // 2, k - 1 - (k - 1) // 2) for k in kernel)
    return top, bottom, left, right


def _asymmetric(padding: tuple[int, int, int, int] | None, kernel: str) -> str:
    if padding is None:
        return f"a {kernel} kernel with TensorFlow's SAME padding at stride 2: pad all sides alike"
    half = int(kernel[0]) // 2
    return f"a {kernel} kernel padded by {padding} (top, bottom, left, right): pad all sides by {half}"


# --- The search the runtime does ---------------------------------------------------------------------------


def _clusters(graph: Graph, nodes: list[_Node]) -> dict[int, list[_Node]]:
    """Connected parts of the network that could run sparse, by leader."""
    producers = {int(t): number for number, node in enumerate(nodes) for t in node.op.outputs}
    outside = {int(t) for t in [*graph.subgraph.inputs, *graph.subgraph.outputs]}
    # A mean (or depth-to-space) behind something sparse must be there at all, else nothing is searched.
    if not any(
        _join(nodes, number, producers, outside) for number, n in enumerate(nodes) if n.role & Role.LEAVE
    ):
        return {}
    changed = True
    while changed:
        changed = False
        for number in range(len(nodes)):
            changed |= _join(nodes, number, producers, outside)
    spoiled = {_leader(nodes, number) for number, node in enumerate(nodes) if node.blocked}
    parts: dict[int, list[_Node]] = {}
    for number, node in enumerate(nodes):
        leader = _leader(nodes, number)
        if node.role and leader not in spoiled:
            parts.setdefault(leader, []).append(node)
    parts = {leader: members for leader, members in parts.items() if len(members) > 1}
    return _without_outside_readers(nodes, parts)


def _join(nodes: list[_Node], number: int, producers: dict[int, int], outside: set[int]) -> bool:
    """Join a node with what computes its inputs, or block it where one cannot be. True: it changed."""
    node, changed = nodes[number], False
    if node.blocked or not node.role & (Role.INSIDE | Role.LEAVE):
        return False
    for tensor in node.inputs:
        source = producers.get(tensor)
        if (
            tensor in outside
            or source is None
            or nodes[source].blocked
            or not (nodes[source].role & (Role.ENTER | Role.INSIDE))
        ):
            node.blocked = changed = True
            continue
        first, second = _leader(nodes, number), _leader(nodes, source)
        if first != second:
            nodes[min(first, second)].leader = max(first, second)
            changed = True
    return changed


def _leader(nodes: list[_Node], number: int) -> int:
    while nodes[number].leader != number:
        number = nodes[number].leader
    return number


def _without_outside_readers(nodes: list[_Node], parts: dict[int, list[_Node]]) -> dict[int, list[_Node]]:
    """Leave out parts that read a value which something outside reads too."""
    inside = {id(n) for members in parts.values() for n in members if n.role & (Role.INSIDE | Role.LEAVE)}
    strangers = {t for node in nodes if id(node) not in inside for t in node.inputs}
    return {
        leader: members
        for leader, members in parts.items()
        if not any(t in strangers for node in members if id(node) in inside for t in node.inputs)
    }


def _count(graph: Graph, members: Iterable[_Node]) -> tuple[int, int]:
    """Zeros and weights of the 1x1 convolutions and fully connected layers."""
    zeros = total = 0
    for node in members:
        if node.kind not in ("CONV_2D", "FULLY_CONNECTED"):
            continue
        weight = _weight(graph, node)
        if weight is not None and (weight.ndim == 2 or weight.shape[1:3] == (1, 1)):
            zeros += int(np.count_nonzero(weight == 0))
            total += math.prod(weight.shape)
    return zeros, total


def _convolutions(nodes: Iterable[_Node]) -> list[_Node]:
    return [node for node in nodes if node.kind == "CONV_2D"]


# --- Saying why -------------------------------------------------------------------------------------------


def _blockers(
    graph: Graph, nodes: list[_Node], clusters: dict[int, list[_Node]], counts: dict[int, tuple[int, int]]
) -> list[Problem]:
    """Why no part of the network runs sparse, from the most to the least decisive."""
    body = _body(nodes)
    problems = [
        Problem(node.reason[0], node.kind, _place(graph, node.index, node.op), node.reason[1])
        for node in body
        if node.reason is not None
    ]
    if not any(node.role & Role.ENTER for node in nodes) and not any(p.rule == "start" for p in problems):
        first = next((node for node in nodes if node.kind == "CONV_2D"), None)
        change = (
            "the network must start with a 3x3 convolution of 3 channels, stride 2, padded by 1 on each side"
        )
        place = "" if first is None else _place(graph, first.index, first.op)
        problems.insert(0, Problem("start", "" if first is None else first.kind, place, change))
    if not any(node.role & Role.LEAVE for node in nodes):
        problems.append(
            Problem(
                "end", "", "", "the network must end in a MEAN over height and width before its classifier"
            )
        )
    if problems:
        return problems
    if counts:
        leader = max(counts, key=lambda key: counts[key][1])
        return _below_threshold(graph, clusters[leader], counts[leader])
    change = (
        "a value of the sparse part is also read outside it, or is an output: read it after the network's end"
    )
    return [Problem("branch", "", "", change)]


def _below_threshold(graph: Graph, members: list[_Node], count: tuple[int, int]) -> list[Problem]:
    zeros, total = count
    conv_zeros, conv_total = _count(graph, _convolutions(members))
    if conv_zeros * THRESHOLD[1] > conv_total * THRESHOLD[0]:
        classifier = next(node for node in members if node.kind == "FULLY_CONNECTED")
        change = (
            f"with it {zeros:,} of {total:,} weights ({zeros / total:.1%}) are zero, "
            f"without it {conv_zeros:,} of {conv_total:,} ({conv_zeros / conv_total:.1%}): put a RESHAPE before it"
        )
        return [
            Problem("classifier", classifier.kind, _place(graph, classifier.index, classifier.op), change)
        ]
    share = f" ({zeros / total:.1%})" if total else ""
    change = (
        f"{zeros:,} of {total:,} 1x1 weights are zero{share}: sparse kernels run only above two thirds "
        f"(66.7%), {total * THRESHOLD[0] // THRESHOLD[1] + 1:,} here; prune further"
    )
    return [Problem("two-thirds", "", "", change)]


def _body(nodes: list[_Node]) -> list[_Node]:
    """The ops from the first convolution to the last mean: what must run sparse."""
    producers = {int(t): number for number, node in enumerate(nodes) for t in node.op.outputs}
    first = next((number for number, node in enumerate(nodes) if node.kind == "CONV_2D"), 0)
    after = {first}
    for number, node in enumerate(nodes):
        if any(producers.get(t) in after for t in node.inputs):
            after.add(number)
    ends = [
        number
        for number, node in enumerate(nodes)
        if node.role & Role.LEAVE or node.kind == "FULLY_CONNECTED"
    ]
    before: set[int] = set()
    stack = ends or list(range(len(nodes)))
    while stack:
        number = stack.pop()
        if number not in before:
            before.add(number)
            stack += [producers[t] for t in nodes[number].inputs if t in producers]
    # The classifier's own RESHAPE and what follows the mean are not part of it.
    last = max((number for number, node in enumerate(nodes) if node.role & Role.LEAVE), default=len(nodes))
    return [node for number, node in enumerate(nodes) if number in after & before and number <= last]
