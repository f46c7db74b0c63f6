"""Will this file run on the runtime's sparse kernels, and if not, which op stops it, and what to change?

XNNPACK, LiteRT's CPU path, looks for a connected part of the network that starts at an image convolution,
holds only ops it has channel-first kernels for, and reaches a spatial mean. If more than two thirds of the
1x1 weights in it are zero, it runs that part sparse; otherwise it runs the dense kernels and says nothing.
It does not look at how the part ends: where an op without a sparse kernel reads a feature map of it, or the
map is an output, that op gets the map in the wrong layout, and the results are wrong. This module does the
same search on the file, and speaks.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import UserError
from converters.litert import metadata
from converters.litert.graph import BARRED, WEIGHTED_OPS, Graph, read_file
from converters.litert.kernels import Node, Role, nodes

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
# The runtime computes this many output channels together where their zeros coincide in nine of ten places.
BLOCKS = (4, 2)
BLOCK_DENSITY = 0.9
# Kinds that the runtime makes part of the op before.
CLAMPS = ("RELU", "RELU6", "RELU_N1_TO_1", "MAXIMUM", "MINIMUM")
# Where the kernels for such blocks compute one number at a time.
SLOW_BLOCKS = ("web",)

RULES: dict[str, str] = {
    "encoding": "at least one weight reaches its op through DENSIFY from a tensor with sparsity parameters",
    "float16": "no sparse float16 weights beside a float32 bias: ARM and browsers may read them as zeros",
    "half-precision-hint": "no reduced_precision_support metadata: it crashes some releases on a sparse file",
    "start": "the sparse part starts with a 3x3, stride-2 convolution of 3 channels, padded by 1 all round",
    "op": "every op between has a sparse kernel",
    "constant": "constants of ADD and MUL come first, have four dimensions, and at most one of them above 1",
    "end": "the sparse part ends in a MEAN over height and width, or a DEPTH_TO_SPACE",
    "head": "what reads the MEAN leads on to another op of the sparse part, or stands behind a RESHAPE",
    "leak": "no feature map of the sparse part is read by an op outside it, or is an output",
    "branch": "no value is read both inside and outside the sparse part",
    "classifier": "a dense classifier is kept apart by a RESHAPE",
    "two-thirds": "more than two thirds of the 1x1 weights in the sparse part are zero",
    "processor": "the processor is not x86 with AVX",
    "blocks": "in browsers: zeros not in blocks of several output channels, whose kernels are slow there",
}


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
        sparse: whether sparse kernels will run, with right results.
        problems: what stops them; empty where nothing does.
        sparse_fraction: share of the weights of 1x1 convolutions that is in the sparse part, 0 to 1.
        slow: why the sparse kernels will run, but slowly.
    """

    sparse: bool
    problems: tuple[Problem, ...]
    sparse_fraction: float = 0.0
    slow: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Part:
    """A connected part of the network that could run sparse, and its 1x1 weights."""

    members: tuple[Node, ...]
    zeros: int
    weights: int

    @property
    def enough_zeros(self) -> bool:
        return self.zeros * THRESHOLD[1] > self.weights * THRESHOLD[0]


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


def lint_graph(graph: Graph, runtime: str = "arm64") -> Lint:
    """The same for a file already read."""
    problems = [*_float16_chains(graph), *_precision_hints(graph)]
    if not has_sparse_weight(graph):
        change = "no weight is stored sparse: prune the 1x1 convolutions and convert again"
        return Lint(False, (*problems, Problem("encoding", "", "", change)))
    network = nodes(graph)
    parts = _parts(graph, network)
    running = [part for part in parts if part.enough_zeros]
    if not running:
        problems += _blockers(graph, network, parts)
    elif not _has_sparse_kernels(runtime):
        change = "x86 with AVX always runs dense: nothing in the file can help"
        problems.append(Problem("processor", "", "", change))
    else:
        faults = [problem for part in running for problem in _faults(graph, part)]
        problems += [*faults, *(_op_problems(graph, network) if faults else ())]
    if problems:
        return Lint(False, tuple(problems))
    total = _count(graph, _convolutions(network))[1]
    inside = sum(_count(graph, _convolutions(part.members))[1] for part in running)
    slow = _slow_blocks(graph, running) if runtime in SLOW_BLOCKS else ()
    return Lint(True, (), inside / total if total else 0.0, tuple(slow))


def entries_of_faulty_parts(graph: Graph) -> list[Any]:
    """The first convolutions of parts that will run sparse and give wrong results; empty where none will.

    For a converter, which must keep such a part from being found at all.
    """
    if not has_sparse_weight(graph):
        return []
    faulty = [
        p for p in _parts(graph, nodes(graph)) if p.enough_zeros and any(True for _ in _faults(graph, p))
    ]
    return [node.op for part in faulty for node in part.members if node.role & Role.ENTER]


def lone_heads(network: Sequence[Node]) -> list[tuple[Node, int]]:
    """Ops that read the mean's result and give theirs to ops without a sparse kernel, or as an output.

    The runtime takes such an op into the sparse part and then refuses the file; two of them in a row it runs.

    Returns:
        Each op with the tensor of the mean that it reads.
    """
    ends = {int(t) for node in network if node.role & Role.LEAVE for t in node.op.outputs}
    inside = [node for node in network if node.role & (Role.INSIDE | Role.LEAVE)]
    read = {tensor for node in inside if node.kind not in CLAMPS for tensor in node.inputs}
    # The runtime makes a clamp part of what it clamps.
    clamped = {n.inputs[0]: int(n.op.outputs[0]) for n in inside if n.kind in CLAMPS}
    found = []
    for node in inside:
        result = int(node.op.outputs[0])
        if not node.role & Role.LEAVE and not {result, clamped.get(result, result)} & read:
            found += [(node, tensor) for tensor in node.inputs if tensor in ends]
    return found


def sparse_parts(graph: Graph) -> list[tuple[Node, ...]]:
    """The parts of a network that sparse kernels can run with right results, whatever their zeros are."""
    parts = _parts(graph, nodes(graph))
    return [part.members for part in parts if not any(True for _ in _faults(graph, part))]


def _has_sparse_kernels(runtime: str) -> bool:
    known = RUNTIMES[runtime]
    return not _is_x86_with_avx() if known is None else known


def _is_x86_with_avx() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True  # not Linux: every desktop x86 since 2011
    return "avx" in words


def has_sparse_weight(graph: Graph) -> bool:
    """Whether a weight reaches an op through DENSIFY from a sparse tensor."""
    return any(
        graph.op_name(op) == "DENSIFY" and graph.tensors[int(op.inputs[0])].sparsity is not None
        for op in graph.ops
        if len(op.inputs)
    )


def _float16_chains(graph: Graph) -> Iterator[Problem]:
    """Sparse float16 weights whose bias is float32.

    MobileNetV3-Small stored so computes with zeros on arm64 (LiteRT 2.1.6); with float16 biases too it is
    right there, and so are the sparse models that ship with MediaPipe, which are stored that way.
    """
    producers = graph.producers()

    def made_from_float16(tensor: int, kind: str) -> bool:
        """Whether a tensor comes from DEQUANTIZE of a float16 one that is a constant, or made by `kind`."""
        op = producers.get(tensor)
        if op is None or graph.op_name(op) != "DEQUANTIZE" or graph.type_name(int(op.inputs[0])) != "FLOAT16":
            return False
        source = producers.get(int(op.inputs[0]))
        return graph.is_constant(int(op.inputs[0])) if source is None else graph.op_name(source) == kind

    for index, op in enumerate(graph.ops):
        if graph.op_name(op) not in WEIGHTED_OPS or not made_from_float16(int(op.inputs[1]), "DENSIFY"):
            continue
        if len(op.inputs) < 3 or not made_from_float16(int(op.inputs[2]), ""):
            change = (
                "its sparse weights are float16, its bias is not: on ARM and in browsers such weights were "
                "seen to come out as zeros; store them as float32 or int8, or the bias as float16 too"
            )
            yield Problem("float16", graph.op_name(op), _place(graph, index, op), change)


def _precision_hints(graph: Graph) -> Iterator[Problem]:
    if metadata.HALF_PRECISION_HINT in metadata.names(graph) and has_sparse_weight(graph):
        change = (
            f"{metadata.HALF_PRECISION_HINT} metadata on a sparse file crashes LiteRT on arm64: remove it"
        )
        yield Problem("half-precision-hint", "", "", change)


def _place(graph: Graph, index: int, op: Any) -> str:
    name = graph.name(int(op.outputs[0])) if len(op.outputs) else ""
    return f"op {index} ({name[-80:]})"


def _problem(graph: Graph, node: Node, rule: str, change: str) -> Problem:
    return Problem(rule, node.kind, _place(graph, node.index, node.op), change)


# --- The search the runtime does ---------------------------------------------------------------------------


class _Search:
    """Joins each op with what computes its inputs, and blocks it where one of them cannot run sparse."""

    def __init__(self, graph: Graph, network: list[Node]) -> None:
        self.network = network
        self.producers = {int(t): number for number, node in enumerate(network) for t in node.op.outputs}
        self.outside = {int(t) for t in [*graph.subgraph.inputs, *graph.subgraph.outputs]}
        self.leaders = list(range(len(network)))
        self.blocked = [False] * len(network)

    def run(self) -> list[list[Node]]:
        """The parts found, each a list of ops in order."""
        ends = [number for number, node in enumerate(self.network) if node.role & Role.LEAVE]
        # Unless something sparse leads to a mean, the runtime does not look further.
        if not [number for number in ends if self.join(number)]:
            return []
        for number, node in enumerate(self.network):
            if node.role & (Role.INSIDE | Role.LEAVE):
                self.join(number)
        spoiled = {self.leader(number) for number in range(len(self.network)) if self.blocked[number]}
        parts: dict[int, list[Node]] = {}
        for number, node in enumerate(self.network):
            if node.role and self.leader(number) not in spoiled:
                parts.setdefault(self.leader(number), []).append(node)
        return [part for part in parts.values() if len(part) > 1]

    def join(self, number: int) -> bool:
        """Join one op with the producers of its inputs; True if there was one to join with."""
        joined = False
        for tensor in self.network[number].inputs:
            source = self.producers.get(tensor)
            if tensor in self.outside or source is None or self.blocked[source] or not self.can_feed(source):
                self.blocked[number] = True
            else:
                self.leaders[self.leader(source)] = self.leader(number)
                joined = True
        return joined

    def can_feed(self, number: int) -> bool:
        """Whether an op gives its result channel-first."""
        return bool(self.network[number].role & (Role.ENTER | Role.INSIDE))

    def leader(self, number: int) -> int:
        while self.leaders[number] != number:
            self.leaders[number] = self.leaders[self.leaders[number]]
            number = self.leaders[number]
        return number


def _parts(graph: Graph, network: list[Node]) -> list[_Part]:
    found = _without_shared_values(network, _Search(graph, network).run())
    return [_Part(tuple(members), *_count(graph, members)) for members in found]


def _without_shared_values(network: list[Node], parts: list[list[Node]]) -> list[list[Node]]:
    """Leave out parts that read a value which something outside reads too."""
    inside = {id(node) for part in parts for node in part if node.role & (Role.INSIDE | Role.LEAVE)}
    read_outside = {tensor for node in network if id(node) not in inside for tensor in node.inputs}
    return [
        part
        for part in parts
        if not any(tensor in read_outside for node in part if id(node) in inside for tensor in node.inputs)
    ]


def _count(graph: Graph, members: Iterable[Node]) -> tuple[int, int]:
    """Zeros and weights of the 1x1 convolutions and fully connected layers."""
    zeros = total = 0
    for node in members:
        if node.kind not in ("CONV_2D", "FULLY_CONNECTED") or node.weight is None:
            continue
        shape = graph.shape(int(node.op.inputs[1]))
        if len(shape) == 2 or shape[1:3] == (1, 1):
            size = int(np.prod(shape))
            total += size
            # Zeros that are stored or left out; an int8 zero is a float32 zero, scales are symmetric.
            zeros += size - int(np.count_nonzero(graph.stored_values(node.weight)))
    return zeros, total


def _convolutions(members: Iterable[Node]) -> list[Node]:
    return [node for node in members if node.kind == "CONV_2D"]


def _slow_blocks(graph: Graph, parts: Iterable[_Part]) -> Iterator[Problem]:
    """A problem where most of the weights run on the kernels for blocks of output channels."""
    convolutions = [node for part in parts for node in _convolutions(part.members) if node.role & Role.INSIDE]
    sizes = [int(np.prod(graph.shape(int(node.op.inputs[1])))) for node in convolutions]
    blocks = [_block(graph, node) for node in convolutions]
    if 2 * sum(size for size, block in zip(sizes, blocks, strict=True) if block > 1) <= sum(sizes):
        return
    sides = " or ".join(str(block) for block in sorted(set(blocks) - {1}))
    count = sum(block > 1 for block in blocks)
    change = (
        f"the zeros of {count} of {len(blocks)} 1x1 convolutions are in blocks of {sides} output channels: "
        "in browsers these have less than half the speed of zeros at single places (slower than "
        "dense at 80 %); use blocks along input channels, such as 1x4"
    )
    yield Problem("blocks", "", "", change)


def _block(graph: Graph, node: Node) -> int:
    """How many output channels the runtime will compute together; 1 where zeros are at single places."""
    if node.weight is None:
        return 1
    kept = graph.constant(node.weight) != 0
    rows = kept.reshape(kept.shape[0], -1)
    for block in BLOCKS:
        if len(rows) % block == 0:
            occupied = rows.reshape(len(rows) // block, block, -1).any(axis=1).sum()
            if rows.sum() >= BLOCK_DENSITY * block * occupied:
                return block
    return 1


# --- Saying why --------------------------------------------------------------------------------------------


def _faults(graph: Graph, part: _Part) -> Iterator[Problem]:
    """What goes wrong in a part once it runs sparse."""
    read = {tensor for node in part.members if not node.role & Role.ENTER for tensor in node.inputs}
    for node, _ in lone_heads(part.members):
        change = (
            "it alone stands between the MEAN and what has no sparse kernel: on sparse kernels the runtime "
            "refuses the file; put a RESHAPE before it"
        )
        yield _problem(graph, node, "head", change)
    for node in part.members:
        if node.verdict.rule:
            yield _problem(graph, node, node.verdict.rule, node.verdict.change)
        output = int(node.op.outputs[0])
        shape = graph.shape(output)
        ends_here = output not in read and not node.role & (Role.LEAVE | Role.ENTER)
        if ends_here and len(shape) == 4 and max(shape[1:3]) > 1 and shape[3] > 1:
            change = (
                f"its {shape[1]}x{shape[2]} map is used outside the sparse part, where the runtime reads it "
                "in the wrong layout: the results are wrong on sparse kernels; store this model dense"
            )
            yield _problem(graph, node, "leak", change)


def _blockers(graph: Graph, network: list[Node], parts: list[_Part]) -> list[Problem]:
    """Why no part of the network runs sparse."""
    problems = _op_problems(graph, network)
    if not any(node.role & Role.ENTER for node in network) and not any(p.rule == "start" for p in problems):
        first = next((node for node in network if node.kind == "CONV_2D"), None)
        change = f"{RULES['start']}: there is no such convolution"
        problems.insert(
            0, Problem("start", "", "", change) if first is None else _problem(graph, first, "start", change)
        )
    if not any(node.role & Role.LEAVE for node in network):
        problems.append(Problem("end", "", "", f"{RULES['end']}: there is none"))
    if problems:
        return problems
    if not parts:
        change = "a value of the sparse part is also read outside it: read it after the network's end"
        return [Problem("branch", "", "", change)]
    return [_below_threshold(graph, max(parts, key=lambda part: part.weights))]


def _op_problems(graph: Graph, network: list[Node]) -> list[Problem]:
    """The ops without a sparse kernel among those that must have one; the model's own, if there are any."""
    found = [node for node in _body(network) if node.verdict.rule and not node.role]
    own = [node for node in found if not _is_bar(graph, node)]
    if own:
        return [_problem(graph, node, node.verdict.rule, node.verdict.change) for node in own]
    change = "put there so that the network runs dense: on sparse kernels its results would be wrong"
    return [_problem(graph, node, "op", change) for node in found]


def _is_bar(graph: Graph, node: Node) -> bool:
    """Whether an op is the one that `repair.bar_faulty_parts` puts in."""
    return node.kind == "RESHAPE" and graph.name(int(node.op.inputs[0])).endswith(BARRED)


def _below_threshold(graph: Graph, part: _Part) -> Problem:
    zeros, total = _count(graph, _convolutions(part.members))
    classifier = next((node for node in part.members if node.kind == "FULLY_CONNECTED"), None)
    if classifier is not None and zeros * THRESHOLD[1] > total * THRESHOLD[0]:
        change = (
            f"with it {part.zeros:,} of {part.weights:,} weights ({part.zeros / part.weights:.1%}) are zero, "
            f"without it {zeros:,} of {total:,} ({zeros / total:.1%}): put a RESHAPE before it"
        )
        return _problem(graph, classifier, "classifier", change)
    share = f" ({part.zeros / part.weights:.1%})" if part.weights else ""
    needed = part.weights * THRESHOLD[0] // THRESHOLD[1] + 1
    change = (
        f"{part.zeros:,} of {part.weights:,} 1x1 weights are zero{share}: sparse kernels run only above two "
        f"thirds (66.7%), which is {needed:,} here; prune further"
    )
    return Problem("two-thirds", "", "", change)


def _body(network: list[Node]) -> list[Node]:
    """The ops from the first convolution to the last mean: what must run sparse."""
    producers = {int(t): number for number, node in enumerate(network) for t in node.op.outputs}
    first = next((number for number, node in enumerate(network) if node.kind == "CONV_2D"), 0)
    ends = [number for number, node in enumerate(network) if node.role & Role.LEAVE]
    after = {first}
    for number, node in enumerate(network):
        if any(producers.get(tensor) in after for tensor in node.inputs):
            after.add(number)
    before: set[int] = set()
    stack = ends or [len(network) - 1]
    while stack:
        number = stack.pop()
        if number not in before:
            before.add(number)
            stack += [producers[tensor] for tensor in network[number].inputs if tensor in producers]
    return [node for number, node in enumerate(network) if number in after & before]
