"""Files that a runtime runs, refuses, or crashes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converters.litert.graph import read_file
from tests.support.networks import Network, eligible


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Takes (1, 16, 16, 3), gives 10 values."""
    net = eligible()
    path = tmp_path / "runs.tflite"
    path.write_bytes(net.finish(net.linear(net.flatten(net.mean(net.last)), 10)))  # type: ignore[attr-defined]
    return path


@pytest.fixture
def refused(runs: Path) -> Path:
    """A convolution whose weight is its bias: it holds together, and means nothing."""
    graph = read_file(runs)
    stem = next(op for op in graph.ops if graph.op_name(op) == "CONV_2D")
    stem.inputs = np.array([stem.inputs[0], *reversed(stem.inputs[1:])], np.int32)
    path = runs.with_name("refused.tflite")
    path.write_bytes(graph.to_bytes())
    return path


@pytest.fixture
def crashes(tmp_path: Path) -> Path:
    """Splits a map into no parts: LiteRT divides by that."""
    net = Network(16)
    axis = net.graph.add_constant("axis", np.array(0, np.int32))
    path = tmp_path / "crashes.tflite"
    path.write_bytes(net.finish(net.op("SPLIT", [axis, net.image], None, "SplitOptions", numSplits=0)))
    return path
