"""Each repair: what was refused is taken afterwards, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import litert
from converters.litert import repair
from converters.litert.gathering import gather_windows
from converters.litert.graph import Graph, read, weights
from converters.litert.linter import lint_graph


def hard_sigmoid(net: Any, x: int) -> int:
    """As litert-torch writes it: a scalar without dimensions, and second."""
    gate = net.binary("MUL", net.unary("RELU6", net.conv(net.mean(x), 32)), net.constant(1 / 6))
    return net.binary("MUL", gate, x)


def transposed_mean(net: Any, x: int) -> int:
    """As litert-torch writes `x.mean((2, 3))`."""
    order = net.graph.add_constant("order", np.array([0, 3, 1, 2], np.int32))
    batch, height, width, channels = net.graph.shape(x)
    turned = net.op("TRANSPOSE", [x, order], (batch, channels, height, width), "TransposeOptions")
    return net.mean(turned, keep=False, axes=(2, 3))


def dense_classifier(net: Any, x: int) -> int:
    result = net.linear(x, 400)
    net.graph.ops[-1].builtinOptions.keepNumDims = True
    return result


Step = Callable[[Any, int], int]
SAME: Step = lambda net, x: x  # noqa: E731
MEAN: Step = lambda net, x: net.flatten(net.mean(x))  # noqa: E731
LINEAR: Step = lambda net, x: net.linear(x, 400)  # noqa: E731

BROKEN: dict[str, tuple[Step, Step, Step, Callable[[Graph], None]]] = {
    "scalar constants": (hard_sigmoid, MEAN, LINEAR, repair.lift_constants),
    "constants second": (
        lambda net, x: net.binary("ADD", x, net.constant(np.full((1, 1, 1, 32), 0.1))),
        MEAN,
        LINEAR,
        repair.put_constants_first,
    ),
    "a constant subtracted": (
        lambda net, x: net.binary("SUB", x, net.constant(np.full((1, 1, 1, 32), 0.1))),
        MEAN,
        LINEAR,
        lambda graph: (repair.add_negative_constants(graph), repair.put_constants_first(graph)),
    ),
    "transposed mean": (SAME, transposed_mean, LINEAR, repair.average_before_transposing),
    "dense classifier": (
        SAME,
        lambda net, x: net.mean(x, keep=False),
        dense_classifier,
        repair.set_classifier_apart,
    ),
}


def build(network: Any, middle: Step, end: Step, classifier: Step) -> bytes:
    net = network(16)
    x = middle(net, net.conv(net.stem(16), 32))
    content: bytes = net.finish(classifier(net, end(net, net.conv(x, 64))))
    return content


@pytest.mark.parametrize(("middle", "end", "classifier", "mend"), BROKEN.values(), ids=BROKEN.keys())
def test_a_repair_makes_the_network_eligible_and_keeps_its_results(
    network: Any, middle: Step, end: Step, classifier: Step, mend: Callable[[Graph], None], tmp_path: Path
) -> None:
    graph = read(build(network, middle, end, classifier))
    before = results(graph, tmp_path / "before.tflite")
    assert not lint_graph(graph).sparse
    mend(graph)
    assert lint_graph(graph).sparse, lint_graph(graph).problems
    assert np.allclose(results(graph, tmp_path / "after.tflite"), before, rtol=1e-5, atol=1e-6)


def ghost(net: Any, x: int) -> int:
    """Channels and what a depthwise convolution makes of them, side by side, as in GhostNet; then three."""
    x = joined(net, [x, net.depthwise(x)])
    x = net.binary("ADD", x, net.depthwise(x))
    return joined(net, [net.conv(x, 16), net.conv(x, 8), net.conv(x, 8)])


def joined(net: Any, parts: list[int], **options: Any) -> int:
    shape = (*net.graph.shape(parts[0])[:3], sum(net.graph.shape(part)[3] for part in parts))
    return int(net.op("CONCATENATION", parts, shape, "ConcatenationOptions", **{"axis": 3, **options}))


def test_concatenations_become_sums_and_keep_every_bit(network: Any, tmp_path: Path) -> None:
    graph = read(build(network, ghost, MEAN, LINEAR))
    before = results(graph, tmp_path / "before.tflite")
    layers = [graph.name(int(op.inputs[1])) for op, _ in weights(graph)]
    assert not lint_graph(graph).sparse
    repair.repair_sparse(graph)
    assert lint_graph(graph).sparse, lint_graph(graph).problems
    assert "CONCATENATION" not in {graph.op_name(op) for op in graph.ops}
    assert [graph.name(int(op.inputs[1])) for op, _ in weights(graph)] == layers  # No layers of the model's.
    np.testing.assert_array_equal(results(graph, tmp_path / "after.tflite"), before)


@pytest.mark.parametrize(
    "middle",
    [
        lambda net, x: net.op("SOFTMAX", [ghost(net, x)], None, "SoftmaxOptions", beta=1.0),
        lambda net, x: joined(net, [x, x], fusedActivationFunction=1),
    ],
    ids=["another op", "an activation in it"],
)
def test_concatenations_stay_where_they_are_not_all_that_is_wrong(network: Any, middle: Step) -> None:
    graph = read(build(network, middle, MEAN, LINEAR))
    kinds = [graph.op_name(op) for op in graph.ops]
    repair.rewrite_for_sparse_kernels(graph)
    assert [graph.op_name(op) for op in graph.ops] == kinds


def behind_windows(net: Any, kernel: int, stride: int, amounts: tuple[int, int, int, int]) -> bytes:
    """A dense convolution of the stem's map, and enough 1x1 ones behind it."""
    x = net.pad(net.stem(8), amounts) if any(amounts) else net.stem(8)
    x = net.unary("RELU", net.conv(x, 32, kernel=kernel, stride=stride))
    for _ in range(3):
        x = net.conv(net.unary("HARD_SWISH", net.conv(x, 256)), 32)
    content: bytes = net.finish(net.linear(net.flatten(net.mean(x)), 10))
    return content


@pytest.mark.parametrize(
    ("kernel", "stride", "amounts"),
    [
        (3, 2, (1, 1, 1, 1)),
        (3, 1, (1, 1, 1, 1)),
        (3, 2, (0, 1, 0, 1)),
        (5, 2, (2, 2, 2, 2)),
        (2, 2, (0, 0, 0, 0)),
        (1, 2, (0, 0, 0, 0)),
    ],
)
def test_dense_convolutions_read_gathered_windows_and_keep_their_weights(
    network: Any, tmp_path: Path, kernel: int, stride: int, amounts: tuple[int, int, int, int]
) -> None:
    graph = read(behind_windows(network(16), kernel, stride, amounts))
    before = results(graph, tmp_path / "before.tflite")
    layers = {graph.name(int(op.inputs[1])): graph.constant(tensor).size for op, tensor in weights(graph)}
    assert not lint_graph(graph).sparse
    repair.repair_sparse(graph)
    assert lint_graph(graph).sparse, lint_graph(graph).problems
    found = {graph.name(int(op.inputs[1])): graph.constant(tensor).size for op, tensor in weights(graph)}
    assert found == layers  # No layers of the model's, and none lost.
    after = results(graph, tmp_path / "after.tflite")
    np.testing.assert_allclose(after, before, atol=1e-6 * np.abs(before).max())


@pytest.mark.parametrize(
    ("kernel", "stride", "amounts"), [(7, 1, (3, 3, 3, 3)), (3, 3, (1, 1, 1, 1)), (3, 1, (0, 0, 0, 0))]
)
def test_windows_out_of_reach_are_left(
    network: Any, kernel: int, stride: int, amounts: tuple[int, int, int, int]
) -> None:
    graph = read(behind_windows(network(16), kernel, stride, amounts))
    kinds = [graph.op_name(op) for op in graph.ops]
    repair.rewrite_for_sparse_kernels(graph)
    assert [graph.op_name(op) for op in graph.ops] == kinds


def test_windows_that_cost_more_than_zeros_save_are_left(network: Any) -> None:
    net = network(16)
    x = net.mean(net.unary("RELU", net.conv(net.pad(net.stem(64)), 128, kernel=3)))
    x = net.conv(net.unary("HARD_SWISH", net.conv(x, 1024)), 512)
    graph = read(net.finish(net.linear(net.flatten(x), 10)))
    kinds = [graph.op_name(op) for op in graph.ops]
    trial = read(graph.to_bytes())
    assert gather_windows(trial)
    assert lint_graph(trial).sparse
    repair.rewrite_for_sparse_kernels(graph)
    assert [graph.op_name(op) for op in graph.ops] == kinds


def test_an_eligible_network_is_left_as_it_is(network: Any) -> None:
    content = build(network, SAME, MEAN, LINEAR)
    graph = read(content)
    kinds = [graph.op_name(op) for op in graph.ops]
    repair.repair(graph)
    repair.bar_faulty_parts(graph)
    assert [graph.op_name(op) for op in graph.ops] == kinds


def results(graph: Graph, path: Path) -> np.ndarray:
    path.write_bytes(graph.to_bytes())
    images = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    return litert.load(path).predict(images)
