"""Graph repairs without which the runtime silently runs a sparse model on its dense kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert.gathering import gather_windows
from converters.litert.graph import BARRED, Graph, read
from converters.litert.joining import add_instead_of_joining
from converters.litert.kernels import CONVOLUTIONS, ELEMENTWISE_BINARY, SPATIAL_AXES, nodes
from converters.litert.linter import entries_of_faulty_parts, has_sparse_weight, lint_graph, lone_heads
from converters.litert.mirror import even_padding

COMMUTATIVE = ("ADD", "MUL")
# Sparse kernels take longer for a multiplication than dense ones.
WORTH_IT = 2 / 3
# Exact, and of use to the sparse kernels only; each says whether it found something to do.
REWRITINGS: tuple[tuple[Callable[[Graph], bool], ...], ...] = (
    (add_instead_of_joining,),
    (gather_windows,),
    (gather_windows, add_instead_of_joining),
)


def repair(graph: Graph) -> None:
    """The repairs that any network can have, however its weights are stored, in order."""
    add_negative_constants(graph)
    lift_constants(graph)
    put_constants_first(graph)
    average_before_transposing(graph)
    set_classifier_apart(graph)


def repair_sparse(graph: Graph) -> None:
    """The repairs that only a network with sparse weights needs, once they are stored, in order."""
    if has_sparse_weight(graph):
        set_up_for_sparse_kernels(graph)
        rewrite_for_sparse_kernels(graph)
        bar_faulty_parts(graph)


def set_up_for_sparse_kernels(graph: Graph) -> None:
    """What sparse kernels ask of a network whatever its zeros: even padding, and a head of its own."""
    even_padding(graph)
    set_head_apart(graph)


def rewrite_for_sparse_kernels(graph: Graph) -> None:
    """Make the fewest rewritings that leave a network eligible for the sparse kernels, or none.

    Dense kernels would have more to do than before: a network that runs dense anyway stays as it is.
    """
    if lint_graph(graph).sparse:
        return
    for rewritings in REWRITINGS:
        trial = read(graph.to_bytes(), graph.source)
        done = [rewrite(trial) for rewrite in rewritings]
        if all(done) and lint_graph(trial).sparse and _is_worth_it(graph, trial):
            for rewrite in rewritings:
                rewrite(graph)
            return


def _is_worth_it(before: Graph, after: Graph) -> bool:
    """Whether enough fewer multiplications are left for sparse kernels than dense ones have."""
    return multiplications(after, skip_zeros=True) < WORTH_IT * multiplications(before, skip_zeros=False)


def multiplications(graph: Graph, *, skip_zeros: bool) -> int:
    """Of all convolutions; zeros of 1x1 kernels count or not."""
    total = 0
    for node in nodes(graph):
        if node.kind not in CONVOLUTIONS or node.weight is None:
            continue
        shape = graph.shape(int(node.op.inputs[1]))
        count = int(np.prod(shape))
        if skip_zeros and node.kind == "CONV_2D" and shape[1:3] == (1, 1):
            count = int(np.count_nonzero(graph.stored_values(node.weight)))
        height, width = graph.shape(int(node.op.outputs[0]))[1:3]
        total += count * height * width
    return total


def lift_constants(graph: Graph) -> None:
    """Give the constants of 4-D elementwise ops four dimensions: a scalar `1/6` becomes [1, 1, 1, 1].

    Without this every hard-sigmoid, so every squeeze-and-excite block, is refused by the sparse kernels.
    """
    for op in graph.ops:
        if graph.op_name(op) not in ELEMENTWISE_BINARY or len(graph.shape(int(op.outputs[0]))) != 4:
            continue
        op.inputs = np.array([_lifted(graph, int(t)) for t in op.inputs], np.int32)


def add_negative_constants(graph: Graph) -> None:
    """Let what subtracts a constant add its negative, which is the same to the bit: SUB has no sparse kernel.

    It comes of batch norms that follow an addition, which no convolution can take in.
    """
    for op in graph.ops:
        if graph.op_name(op) != "SUB" or not graph.is_constant(int(op.inputs[1])):
            continue
        constant = int(op.inputs[1])
        if graph.type_name(constant) != "FLOAT32":
            continue
        options = schema.AddOptionsT()
        options.fusedActivationFunction = getattr(op.builtinOptions, "fusedActivationFunction", 0)
        negative = graph.add_constant(f"{graph.name(constant)}:negative", -graph.constant(constant))
        added = graph.make_op(
            "ADD", [int(op.inputs[0]), negative], list(op.outputs), 1, ("AddOptions", options)
        )
        op.opcodeIndex, op.inputs = added.opcodeIndex, added.inputs
        op.builtinOptionsType, op.builtinOptions = added.builtinOptionsType, options


def put_constants_first(graph: Graph) -> None:
    """Swap the operands of ADD and MUL whose constant comes second: the runtime checks the wrong one there.

    `x * c` with a feature map `x` is refused, and with it the whole network; `c * x` is taken.
    """
    for op in graph.ops:
        if graph.op_name(op) in COMMUTATIVE and graph.is_constant(int(op.inputs[1])):
            op.inputs = op.inputs[::-1].copy()


def average_before_transposing(graph: Graph) -> None:
    """Let a MEAN over a transposed map read the map itself: `x.mean((2, 3))` comes as TRANSPOSE and MEAN."""
    producers = graph.producers()
    for op in graph.ops:
        source = producers.get(int(op.inputs[0])) if graph.op_name(op) == "MEAN" else None
        if (
            source is None
            or graph.op_name(source) != "TRANSPOSE"
            or getattr(op.builtinOptions, "keepDims", True)
        ):
            continue
        if not (graph.is_constant(int(source.inputs[1])) and graph.is_constant(int(op.inputs[1]))):
            continue
        order = graph.constant(int(source.inputs[1])).reshape(-1).tolist()
        axes = [axis % len(order) for axis in graph.constant(int(op.inputs[1])).reshape(-1).tolist()]
        kept = [dim for position, dim in enumerate(order) if position not in axes]
        if kept == sorted(kept):
            moved = graph.add_constant("axes", np.array(sorted(order[axis] for axis in axes), np.int32))
            op.inputs = np.array([source.inputs[0], moved], np.int32)
    graph.drop_unread("TRANSPOSE")


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


def set_head_apart(graph: Graph) -> None:
    """Put a RESHAPE that changes nothing between a MEAN and the one op between it and the classifier.

    Without it the runtime refuses the file on its sparse kernels: heads of MobileNetV4 and GhostNet.
    """
    for mean in dict.fromkeys(mean for _, mean in lone_heads(nodes(graph))):
        readers = [op for op in graph.ops if mean in op.inputs]
        copy_of_mean = _insert_reshape(graph, mean)
        for op in readers:
            op.inputs = np.where(op.inputs == mean, copy_of_mean, op.inputs).astype(np.int32)


def _insert_reshape(graph: Graph, tensor: int) -> int:
    """Make a copy of a value behind the op that makes it; returns the copy."""
    made = graph.add_tensor(f"{graph.name(tensor)}:head", graph.shape(tensor), graph.tensors[tensor].type)
    position = next(number for number, op in enumerate(graph.ops) if tensor in op.outputs)
    graph.ops.insert(position + 1, _reshape(graph, tensor, made))
    return made


def bar_faulty_parts(graph: Graph) -> None:
    """Put a RESHAPE that changes nothing behind the first convolution of networks that would come out wrong.

    The runtime starts a sparse part without looking at how it ends: where an op without a sparse kernel reads
    a feature map from it, the results are wrong. Behind the RESHAPE no part is found, and all runs dense.
    """
    for conv in entries_of_faulty_parts(graph):
        made = int(conv.outputs[0])
        shape = graph.shape(made)
        inner = graph.add_tensor(f"{graph.name(made)}{BARRED}", shape, graph.tensors[made].type)
        conv.outputs = np.array([inner], np.int32)
        position = next(number for number, op in enumerate(graph.ops) if op is conv)
        graph.ops.insert(position + 1, _reshape(graph, inner, made))


def _reshape(graph: Graph, source: int, result: int) -> Any:
    options = schema.ReshapeOptionsT()
    options.newShape = np.array(graph.shape(result), np.int32)
    shape = graph.add_constant("shape", options.newShape)
    return graph.make_op("RESHAPE", [source, shape], [result], options=("ReshapeOptions", options))


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
    return _reshape(graph, kept, flat)
