"""Uneven padding made even: what was refused runs sparse afterwards, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import litert
from converters.litert.graph import Graph, read
from converters.litert.linter import lint_graph
from converters.litert.mirror import even_padding
from converters.targets import Storage

Make = Callable[[Any], int]


def end(net: Any, x: int) -> int:
    return net.linear(net.flatten(net.mean(net.conv(x, 64))), 10)


def padded(net: Any, x: int, amounts: tuple[int, int, int, int], kernel: int) -> int:
    return net.depthwise(net.pad(x, amounts), kernel=kernel, stride=2, same=False)


def tensorflow(net: Any, kernel: int = 3) -> int:
    """SAME at stride 2 twice, and a residual."""
    x = net.conv(net.conv(net.image, 16, kernel=3, stride=2, same=True), 32)
    x = net.conv(net.depthwise(net.unary("HARD_SWISH", x), kernel=kernel, stride=2), 32)
    return end(net, net.binary("ADD", net.depthwise(x), x))


def keras(net: Any) -> int:
    """The same padding as a PAD of its own, which something else reads too."""
    x = net.conv(net.pad(net.image, (0, 1, 0, 1)), 16, kernel=3, stride=2)
    pad = net.pad(net.conv(x, 32), (1, 2, 1, 2))
    both = [net.depthwise(pad, kernel=5, stride=2, same=False) for _ in range(2)]
    return end(net, net.binary("MUL", *both))


def gated(net: Any) -> int:
    """With a squeeze-and-excite: what has no height and width goes through as it is."""
    x = net.conv(net.conv(net.image, 16, kernel=3, stride=2, same=True), 32)
    return end(net, net.binary("MUL", net.conv(net.conv(net.mean(x), 8), 32), x))


def too_much(net: Any) -> int:
    """More padding than the sparse kernels know, the rest of it unread."""
    x = net.conv(net.pad(net.image, (1, 2, 1, 2)), 16, kernel=3, stride=2)
    return end(net, net.conv(x, 32))


MENDED: dict[str, tuple[int, Make, bool]] = {
    "SAME": (16, tensorflow, True),
    "SAME with 5x5": (16, lambda net: tensorflow(net, 5), True),
    "PAD": (16, keras, True),
    "squeeze-and-excite": (16, gated, True),
    # SAME on an odd size is (1, 1) already, only not in a way the runtime sees.
    "SAME, odd image": (13, lambda net: end(net, net.conv(tensorflow_stem(net), 32)), False),
    "too much padding": (15, too_much, False),
}


def tensorflow_stem(net: Any) -> int:
    return net.conv(net.image, 16, kernel=3, stride=2, same=True)


def both_ways(net: Any) -> int:
    """One convolution padded as torch does, one as TensorFlow does: no mirror suits both."""
    return end(net, net.conv(net.depthwise(net.conv(net.stem(16), 32), stride=2), 32))


def with_a_place(net: Any) -> int:
    """Adds something to one place of the map."""
    mark = np.zeros((1, 8, 8, 16))
    mark[0, 0, 0] = 1
    return end(net, net.conv(net.binary("ADD", net.constant(mark), tensorflow_stem(net)), 32))


def cropped(net: Any) -> int:
    x = net.conv(tensorflow_stem(net), 32)
    begin, size = (net.graph.add_constant("c", np.array(v, np.int32)) for v in ((0, 1, 1, 0), (1, 6, 6, 32)))
    return end(net, net.op("SLICE", [x, begin, size], (1, 6, 6, 32), "SliceOptions"))


def dilated(net: Any) -> int:
    x = net.conv(tensorflow_stem(net), 32)
    return end(net, net.depthwise(x, dilationHFactor=2, dilationWFactor=2))


REFUSED: dict[str, tuple[Make, str]] = {
    "both ways": (both_ways, "op"),
    "a place": (with_a_place, "start"),
    "cropped": (cropped, "start"),
    "dilated": (dilated, "start"),
}


def build(network: Any, size: int, make: Make) -> Graph:
    net = network(size)
    return read(net.finish(make(net), Storage.FLOAT32))


@pytest.mark.parametrize(("size", "make", "mirrored"), MENDED.values(), ids=MENDED.keys())
def test_uneven_padding_is_made_even(
    network: Any, size: int, make: Make, mirrored: bool, tmp_path: Path
) -> None:
    graph = build(network, size, make)
    before = results(graph, size, tmp_path / "before.tflite")
    assert not lint_graph(graph).sparse
    even_padding(graph)
    assert lint_graph(graph).sparse, lint_graph(graph).problems
    assert np.allclose(results(graph, size, tmp_path / "after.tflite"), before, rtol=1e-5, atol=1e-6)
    assert ("REVERSE_V2" in [graph.op_name(op) for op in graph.ops]) == mirrored


@pytest.mark.parametrize(("make", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_mirror_would_change_is_left_alone(network: Any, make: Make, rule: str) -> None:
    graph = build(network, 16, make)
    kinds = [graph.op_name(op) for op in graph.ops]
    even_padding(graph)
    assert [graph.op_name(op) for op in graph.ops] == kinds
    assert rule in [problem.rule for problem in lint_graph(graph).problems]


def test_even_padding_is_left_as_it_is(network: Any) -> None:
    graph = build(network, 16, lambda net: end(net, net.conv(net.stem(16), 32)))
    content = graph.to_bytes()
    even_padding(graph)
    assert graph.to_bytes() == content


def results(graph: Graph, size: int, path: Path) -> np.ndarray:
    path.write_bytes(graph.to_bytes())
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    return litert.load(path).predict(images)
