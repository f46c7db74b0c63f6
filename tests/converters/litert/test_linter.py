"""Each rule on a small network that breaks it, and only it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters import litert
from converters.errors import UserError
from converters.litert import metadata, repair
from converters.litert.graph import AlignedBuffer, Graph, read, read_file
from converters.litert.linter import RULES, lint_graph
from converters.runtimes.environments import prepared, runtime
from converters.runtimes.running import FileRun, run_files
from converters.targets import TARGETS, Storage


def build(
    network: Any, middle: Callable[[Any, int], int] | None = None, zeros: float = 0.8, **start: Any
) -> bytes:
    """Stem, 1x1, depthwise, whatever is tested, 1x1, mean, classifier."""
    net = network(16)
    x = net.conv(net.stem(16), 32, zeros=zeros)
    x = net.depthwise(x)
    x = x if middle is None else middle(net, x)
    x = net.conv(x, 64, zeros=zeros)
    return net.finish(net.linear(net.flatten(net.mean(x)), 10))


def scalar(net: Any, value: float = 0.5, shape: tuple[int, ...] = (1, 1, 1, 1)) -> int:
    return net.constant(np.full(shape, value))


def test_an_eligible_network_has_no_problem(sparse_file: Path) -> None:
    verdict = litert.lint(sparse_file)
    assert verdict.sparse
    assert verdict.problems == ()
    assert verdict.sparse_fraction == 1.0


TAKEN: dict[str, Callable[[Any, int], int]] = {
    "scalar constant first": lambda n, x: n.binary("MUL", scalar(n), x),
    "vector constant first": lambda n, x: n.binary("ADD", scalar(n, shape=(1, 1, 1, 32)), x),
    "clamp": lambda n, x: n.op("MINIMUM", [x, scalar(n)], None, "MaximumMinimumOptions"),
    "logistic": lambda n, x: n.unary("LOGISTIC", x),
    "5x5 depthwise": lambda n, x: n.depthwise(x, kernel=5),
    "padded stride 2": lambda n, x: n.depthwise(n.pad(x), stride=2, same=False),
    "residual": lambda n, x: n.binary("ADD", x, n.conv(x, 32)),
}


@pytest.mark.parametrize("middle", TAKEN.values(), ids=TAKEN.keys())
def test_ops_with_sparse_kernels_are_taken(network: Any, middle: Callable[[Any, int], int]) -> None:
    verdict = lint_graph(read(build(network, middle)))
    assert verdict.sparse, verdict.problems


REFUSED: dict[str, tuple[Callable[[Any, int], int], str, str, str]] = {
    "scalar of no dimensions": (
        lambda n, x: n.binary("MUL", n.constant(0.5), x),
        "constant",
        "MUL",
        "4 dimensions",
    ),
    "constant second": (lambda n, x: n.binary("MUL", x, scalar(n)), "constant", "MUL", "must be the first"),
    "constant map": (
        lambda n, x: n.binary("ADD", scalar(n, shape=(1, 1, 8, 32)), x),
        "constant",
        "ADD",
        "a scalar or one vector",
    ),
    "dense 3x3": (
        lambda n, x: n.conv(x, 32, kernel=3, same=True),
        "op",
        "CONV_2D",
        "dense 3x3 convolution of 32",
    ),
    "1x1 at stride 2": (lambda n, x: n.conv(x, 32, stride=2), "op", "CONV_2D", "use stride 1"),
    "dilated": (
        lambda n, x: n.depthwise(x, dilationHFactor=2, dilationWFactor=2),
        "op",
        "DEPTHWISE_CONV_2D",
        "dilation 1",
    ),
    "7x7 depthwise": (lambda n, x: n.depthwise(x, kernel=7), "op", "DEPTHWISE_CONV_2D", "only 3x3 and 5x5"),
    "SAME at stride 2": (
        lambda n, x: n.depthwise(x, stride=2),
        "op",
        "DEPTHWISE_CONV_2D",
        "SAME padding at stride 2",
    ),
    "uneven padding": (
        lambda n, x: n.depthwise(n.pad(x, (0, 1, 0, 1)), stride=2, same=False),
        "op",
        "DEPTHWISE_CONV_2D",
        r"padded by \(0, 1, 0, 1\)",
    ),
    "no padding": (lambda n, x: n.depthwise(x, same=False), "op", "DEPTHWISE_CONV_2D", "pad all sides by 1"),
    "subtraction": (lambda n, x: n.binary("SUB", x, scalar(n)), "op", "SUB", "no sparse kernel"),
    "pooling": (
        lambda n, x: n.op(
            "MAX_POOL_2D",
            [x],
            (1, 4, 4, 32),
            "Pool2DOptions",
            strideH=2,
            strideW=2,
            filterHeight=2,
            filterWidth=2,
            padding=1,
        ),
        "op",
        "MAX_POOL_2D",
        "no sparse kernel",
    ),
    "transpose": (
        lambda n, x: n.op(
            "TRANSPOSE",
            [x, n.graph.add_constant("p", np.array([0, 2, 1, 3], np.int32))],
            None,
            "TransposeOptions",
        ),
        "op",
        "TRANSPOSE",
        "no sparse kernel",
    ),
    "maximum of two": (
        lambda n, x: n.op("MAXIMUM", [x, n.conv(x, 32)], None, "MaximumMinimumOptions"),
        "op",
        "MAXIMUM",
        "only with a scalar",
    ),
}


@pytest.mark.parametrize(("middle", "rule", "op", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_the_op_that_stops_it_is_named(
    network: Any, middle: Callable[[Any, int], int], rule: str, op: str, message: str
) -> None:
    verdict = lint_graph(read(build(network, middle)))
    assert not verdict.sparse
    assert verdict.sparse_fraction == 0
    named = [p for p in verdict.problems if (p.rule, p.op) == (rule, op)]
    assert named, verdict.problems
    assert re.search(message, named[0].change)
    assert named[0].place.startswith("op ")
    assert rule in RULES


STARTS: dict[str, tuple[Callable[[Any], int], str]] = {
    "SAME": (lambda n: n.conv(n.image, 16, kernel=3, stride=2, same=True), "SAME padding at stride 2"),
    "uneven": (lambda n: n.conv(n.pad(n.image, (0, 1, 0, 1)), 16, kernel=3, stride=2), "pad all sides by 1"),
    "stride 1": (lambda n: n.conv(n.pad(n.image), 16, kernel=3), "there is no such convolution"),
    "4 channels": (lambda n: n.conv(n.pad(n.image), 16, kernel=3, stride=2), "there is no such convolution"),
}


@pytest.mark.parametrize(("start", "message"), STARTS.values(), ids=STARTS.keys())
def test_a_wrong_start_is_named(
    network: Any, start: Callable[[Any], int], message: str, request: Any
) -> None:
    net = network(16, channels=4 if "4 channels" in request.node.name else 3)
    x = net.conv(start(net), 32)
    verdict = lint_graph(read(net.finish(net.linear(net.flatten(net.mean(x)), 10))))
    assert not verdict.sparse
    assert verdict.problems[0].rule == "start"
    assert message in verdict.problems[0].change


def test_a_network_without_a_mean_is_named(network: Any) -> None:
    net = network(16)
    x = net.conv(net.stem(), 32)
    verdict = lint_graph(read(net.finish(net.linear(net.flatten(x), 10))))
    assert "end" in {p.rule for p in verdict.problems}


def test_an_average_over_channels_is_named(network: Any) -> None:
    verdict = lint_graph(read(build(network, lambda n, x: n.binary("MUL", n.mean(x, axes=(3,)), x))))
    assert [p.rule for p in verdict.problems] == ["end"]
    assert "axes [3]" in verdict.problems[0].change


@pytest.mark.parametrize(("zeros", "expected"), [(0.6, False), (0.7, True)])
def test_two_thirds_names_both_numbers(network: Any, zeros: float, expected: bool) -> None:
    verdict = lint_graph(read(build(network, zeros=zeros)))
    assert verdict.sparse is expected
    if not expected:
        (problem,) = verdict.problems
        assert problem.rule == "two-thirds"
        # 16 x 32 + 32 x 64 weights; 60 % of the blocks of four are zero
        assert "1,536 of 2,560 1x1 weights are zero (60.0%)" in problem.change
        assert "two thirds (66.7%), which is 1,707 here" in problem.change


def test_a_dense_classifier_in_the_sparse_part_is_named_and_set_apart(network: Any) -> None:
    net = network(16)
    x = net.mean(net.conv(net.stem(), 64), keep=False)
    x = net.linear(x, 500)
    net.graph.ops[-1].builtinOptions.keepNumDims = True
    graph = read(net.finish(x))
    (problem,) = lint_graph(graph).problems
    assert (problem.rule, problem.op) == ("classifier", "FULLY_CONNECTED")
    repair.set_classifier_apart(graph)
    assert lint_graph(graph).sparse


def leaking(network: Any) -> bytes:
    """A squeeze-and-excite network that ends in a pooling op: it starts sparse, and comes out wrong."""
    net = network(16)
    x = net.conv(net.stem(), 64)
    gate = net.unary("LOGISTIC", net.conv(net.mean(x), 64))
    x = net.conv(net.binary("MUL", gate, x), 32)
    options = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2, "padding": 1}
    x = net.op("MAX_POOL_2D", [x], (1, 4, 4, 32), "Pool2DOptions", **options)
    return net.finish(net.linear(net.flatten(net.mean(x)), 10))


def test_a_map_that_leaks_is_named_and_barred(network: Any) -> None:
    graph = read(leaking(network))
    leak, reader = lint_graph(graph).problems
    assert (leak.rule, leak.op) == ("leak", "CONV_2D")
    assert "8x8 map" in leak.change
    assert (reader.rule, reader.op) == ("op", "MAX_POOL_2D")
    repair.bar_faulty_parts(graph)
    assert [graph.op_name(op) for op in graph.ops].count("RESHAPE") == 2
    first = lint_graph(graph).problems[0]  # Not the op put in.
    assert (first.rule, first.op) == ("op", "MAX_POOL_2D")
    assert "leak" not in {p.rule for p in lint_graph(graph).problems}


def test_a_value_read_inside_and_outside_is_named(network: Any) -> None:
    net = network(16)
    x = net.conv(net.stem(), 64)
    y = net.mean(net.conv(x, 64))
    side = net.linear(net.flatten(x), 64)
    out = net.binary("ADD", net.linear(net.flatten(y), 64), side)
    verdict = lint_graph(read(net.finish(out)))
    assert {p.rule for p in verdict.problems} == {"branch"}


def in_blocks(network: Any, out: int) -> Graph:
    """Zeros in blocks of `out` output channels."""
    net = network(16)
    kept = np.repeat(np.random.default_rng(0).random((64 // out, 32)) < 0.2, out, axis=0)
    x = net.conv(net.stem(16), 32)
    weight = net.random.standard_normal((64, 1, 1, 32)).astype(np.float32) * kept[:, None, None, :]
    x = net.conv(x, 64)
    net.graph.replace_constant(int(net.graph.ops[-1].inputs[1]), weight)
    return read(net.finish(net.linear(net.flatten(net.mean(x)), 10)))


@pytest.mark.parametrize(("out", "slow"), [(1, False), (2, True), (4, True), (8, True)])
def test_blocks_of_output_channels_are_slow_in_browsers(network: Any, out: int, slow: bool) -> None:
    graph = in_blocks(network, out)
    verdict = lint_graph(graph, "web")
    assert verdict.sparse
    assert [problem.rule for problem in verdict.slow] == ["blocks"] * slow
    assert lint_graph(graph, "arm64").slow == ()


@pytest.mark.parametrize("name", [t.name for t in TARGETS.values() if t.format == "litert"])
def test_the_block_of_a_target_suits_it(network: Any, name: str) -> None:
    verdict = lint_graph(in_blocks(network, TARGETS[name].block[0]), TARGETS[name].platform)
    assert (verdict.sparse, verdict.slow) == (True, ())


def test_a_dense_file_is_named(network: Any) -> None:
    (problem,) = lint_graph(read(build(network, zeros=0.0))).problems
    assert problem.rule == "encoding"


def in_half(sparse_file: Path, biases: bool) -> bytes:
    """The file with its sparse weights, and its biases or not, stored as float16 behind DEQUANTIZE."""
    graph = read_file(sparse_file)
    producers = graph.producers()
    before: dict[int, list[Any]] = {}
    for op in [op for op in graph.ops if graph.op_name(op) == "CONV_2D"]:
        weight = int(op.inputs[1])
        densify = producers.get(weight)
        if densify is not None:
            packed = int(densify.inputs[0])
            values = graph.stored_values(packed).astype(np.float16)
            graph.tensors[packed].type = schema.TensorType.FLOAT16
            graph.replace_constant(packed, values)
            half = graph.add_tensor("half", graph.shape(weight), schema.TensorType.FLOAT16)
            densify.outputs = np.array([half], np.int32)
            before.setdefault(id(op), []).append(graph.make_op("DEQUANTIZE", [half], [weight], 3))
        if biases:
            half = graph.add_constant("half", graph.constant(int(op.inputs[2])).astype(np.float16))
            bias = graph.add_tensor("bias", graph.shape(half), schema.TensorType.FLOAT32)
            before.setdefault(id(op), []).append(graph.make_op("DEQUANTIZE", [half], [bias], 3))
            op.inputs = np.array([op.inputs[0], op.inputs[1], bias], np.int32)
    graph.subgraph.operators = [entry for op in graph.ops for entry in [*before.get(id(op), ()), op]]
    return graph.to_bytes()


def test_float16_weights_beside_a_float32_bias_are_an_error(sparse_file: Path) -> None:
    verdict = lint_graph(read(in_half(sparse_file, biases=False)))
    assert not verdict.sparse
    assert {p.rule for p in verdict.problems} == {"float16"}
    assert "CONV_2D at op" in str(verdict.problems[0])


def test_float16_weights_and_biases_are_fine(sparse_file: Path) -> None:
    assert lint_graph(read(in_half(sparse_file, biases=True))).sparse


@pytest.mark.skipif(not (prepared("arm64") / "site").is_dir(), reason="needs make runtime-arm64")
def test_arm_reads_float16_weights_and_biases_right(sparse_file: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.tflite"
    half.write_bytes(in_half(sparse_file, biases=True))
    image = np.random.default_rng(0).standard_normal((1, 16, 16, 3)).astype(np.float32)
    ran = run_files([FileRun(path, image) for path in (sparse_file, half)], runtime("arm64"))
    expected, got = (answer.outputs for answer in ran.answers)
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


def test_a_half_precision_hint_is_an_error(sparse_file: Path) -> None:
    graph = read_file(sparse_file)
    metadata.write(graph, {})
    graph.model.metadata[0].name = metadata.HALF_PRECISION_HINT
    verdict = lint_graph(read(graph.to_bytes()))
    assert [p.rule for p in verdict.problems] == ["half-precision-hint"]


def test_x86_with_avx_runs_dense(sparse_file: Path) -> None:
    assert [p.rule for p in litert.lint(sparse_file, "x86-avx").problems] == ["processor"]
    assert litert.lint(sparse_file, "x86-sparse").sparse


def test_an_unknown_runtime_is_refused(sparse_file: Path) -> None:
    with pytest.raises(UserError, match="unknown runtime 'phone': choose from arm64, web"):
        litert.lint(sparse_file, "phone")


@pytest.mark.parametrize("storage", [Storage.FLOAT32, Storage.INT8])
def test_zeros_are_counted_the_same_in_every_storage(network: Any, storage: Storage) -> None:
    net = network(16)
    x = net.conv(net.stem(), 64, zeros=0.6)
    graph = read(net.finish(net.linear(net.flatten(net.mean(x)), 10), storage))
    (problem,) = lint_graph(graph).problems
    assert problem.rule == "two-thirds"


def test_buffers_are_written_where_the_runtime_can_read_them_in_place(sparse_file: Path) -> None:
    content = sparse_file.read_bytes()
    buffer = AlignedBuffer()
    assert buffer.data is None
    graph = read_file(sparse_file)
    for entry in graph.model.buffers:
        if entry.data is not None and len(entry.data) >= 64:
            assert content.index(entry.data.tobytes()) % 16 == 0
