"""Files that are damaged, or made to harm: one message each, never a crash, never a wait."""

from __future__ import annotations

import cProfile
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters import litert, verify
from converters.errors import UserError
from converters.litert import inspection, linter, verification
from converters.litert.graph import Graph, read, read_file
from converters.litert.memory import allowance_bytes
from converters.runtimes.environments import RUNTIMES
from converters.targets import Storage
from tests.support.mutations import mutated

MUTATIONS = 1_050
CRASHES = 25  # One that crashes LiteRT 2.1; with another release one may have to be searched for.
READERS: dict[str, Callable[[Path], Any]] = {
    "inspect": litert.inspect,
    "lint": litert.lint,
    "load": litert.load,
}


@pytest.fixture
def int8_bytes(network: Any) -> bytes:
    net = network(16)
    x = net.conv(net.stem(), 32)
    x = net.depthwise(net.pad(x), stride=2, same=False)
    gate = net.unary("LOGISTIC", net.conv(net.mean(x), 32))
    x = net.conv(net.binary("MUL", gate, x), 64)
    return net.finish(net.linear(net.flatten(net.mean(x)), 10, zeros=0.8), Storage.INT8)


@pytest.mark.parametrize("count", [120, pytest.param(MUTATIONS, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(count: int, int8_bytes: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mutated.tflite"
    outcomes: Counter[str] = Counter()
    for seed in range(count):
        path.write_bytes(mutated(int8_bytes, seed))
        for name, reader in READERS.items():
            try:
                reader(path)
                outcomes[f"{name} read"] += 1
            except UserError as error:
                outcomes[f"{name} refused"] += len(error.problems) == 1 and str(path) in str(error)
    assert sum(outcomes.values()) == count * len(READERS), "a message that names no file"
    # A test that refuses everything, or nothing, would show nothing.
    assert all(outcomes[f"{name} {what}"] > count // 10 for name in READERS for what in ("read", "refused"))


def truncated(graph: Graph) -> bytes:
    return graph.to_bytes()[:-200]


def another_flatbuffer(graph: Graph) -> bytes:
    content = graph.to_bytes()
    return content[:4] + b"ABCD" + content[8:]


def packed(graph: Graph) -> Any:
    """A sparse tensor of the graph."""
    return next(graph.tensors[int(op.inputs[0])] for op in graph.ops if graph.op_name(op) == "DENSIFY")


def wrong_shape(graph: Graph) -> bytes:
    packed(graph).shape = np.array([7, 1, 1, 16], np.int32)
    return graph.to_bytes()


def index_out_of_range(graph: Graph) -> bytes:
    for level in packed(graph).sparsity.dimMetadata:
        if level.format == 1:
            level.arrayIndices.values = np.full_like(level.arrayIndices.values, 200)
    return graph.to_bytes()


def missing_values(graph: Graph) -> bytes:
    buffer = graph.model.buffers[packed(graph).buffer]
    buffer.data = buffer.data[:-8]
    return graph.to_bytes()


def huge_sparse(graph: Graph) -> bytes:
    """2 GB decoded, from a few bytes: an all-zero tensor."""
    tensor = packed(graph)
    tensor.shape = np.array([1 << 15, 1, 1, 1 << 16], np.int32)
    return graph.to_bytes()


def huge_activation(graph: Graph) -> bytes:
    graph.tensors[int(graph.ops[0].outputs[0])].shape = np.array([1, 1 << 15, 1 << 15, 3], np.int32)
    return graph.to_bytes()


def tensor_out_of_range(graph: Graph) -> bytes:
    graph.ops[3].inputs = np.array([9999, 1, 2], np.int32)
    return graph.to_bytes()


def buffer_out_of_range(graph: Graph) -> bytes:
    graph.tensors[3].buffer = 12345
    return graph.to_bytes()


def cycle(graph: Graph) -> bytes:
    graph.ops[1].inputs = np.array([graph.ops[-1].outputs[0], *graph.ops[1].inputs[1:]], np.int32)
    return graph.to_bytes()


def short_constant(graph: Graph) -> bytes:
    stem = next(op for op in graph.ops if graph.op_name(op) == "CONV_2D")
    buffer = graph.model.buffers[graph.tensors[int(stem.inputs[1])].buffer]
    buffer.data = buffer.data[:-4]
    return graph.to_bytes()


HOSTILE: dict[str, tuple[Callable[[Graph], bytes], str]] = {
    "empty": (lambda graph: b"", "no TFL3 mark"),
    "text": (lambda graph: b"hello, this is not a model at all", "no TFL3 mark"),
    "random": (lambda graph: np.random.default_rng(0).bytes(5000), "no TFL3 mark"),
    "marked random": (
        lambda graph: b"\x10\0\0\0TFL3" + np.random.default_rng(0).bytes(5000),
        "damaged|claims|holds",
    ),
    "truncated": (truncated, "damaged or truncated|needs|names"),
    "another flatbuffer": (another_flatbuffer, "no TFL3 mark"),
    "sparsity disagrees with the shape": (wrong_shape, "the shape says|do not divide"),
    "index out of range": (index_out_of_range, "outside 0.."),
    "missing values": (missing_values, "values, .* are stored"),
    "2 GB of zeros": (huge_sparse, "bytes of decoded weights"),
    "3 GB activation": (huge_activation, "it claims 12,884,901,888 bytes"),
    "tensor out of range": (tensor_out_of_range, "names a tensor that is not among"),
    "buffer out of range": (buffer_out_of_range, "names buffer 12345"),
    "cycle": (cycle, "before it is computed"),
    "short constant": (short_constant, "needs 1,728 bytes, has 1,724"),
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_hostile_files_get_one_message(
    make: Callable[[Graph], bytes], message: str, reader: Callable[[Path], Any], sparse_file: Path
) -> None:
    sparse_file.write_bytes(make(read_file(sparse_file)))
    with pytest.raises(UserError, match=message) as caught:
        reader(sparse_file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_missing_file_is_named(reader: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.tflite: cannot be read: No such file"):
        reader(tmp_path / "missing.tflite")


def test_a_file_that_litert_refuses_is_the_users(sparse_file: Path) -> None:
    """It holds together, and means nothing: a convolution whose weight has other channels than its input."""
    graph = read_file(sparse_file)
    stem = next(op for op in graph.ops if graph.op_name(op) == "CONV_2D")
    stem.inputs = np.array([stem.inputs[0], *reversed(stem.inputs[1:])], np.int32)
    sparse_file.write_bytes(graph.to_bytes())
    with pytest.raises(UserError, match=r"not a usable \.tflite file: LiteRT"):
        litert.load(sparse_file)


def test_a_file_that_crashes_litert_cannot_be_verified(
    int8_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crashes.tflite"
    for seed in (CRASHES, *range(MUTATIONS)):
        path.write_bytes(mutated(int8_bytes, seed))
        try:
            litert.load(path)
        except UserError as error:
            if str(error).endswith("LiteRT crashes on it"):
                break
    else:
        pytest.fail("no mutation crashes LiteRT: nothing was tested")
    there = dataclasses.replace(RUNTIMES["host"], name="x86-sparse")  # on any machine
    monkeypatch.setitem(verification.KNOWN, "x86-sparse", there)
    with pytest.raises(UserError, match=r"crashes\.tflite: not a usable \.tflite file: LiteRT crashes on it"):
        verify.verify(path, np.zeros((1, 3, 16, 16), np.float32), runtimes=["x86-sparse"])


def test_a_crash_ends_only_the_child(sparse_file: Path) -> None:
    model = litert.load(sparse_file)
    running = psutil.Process().children()
    children = [child for child in running if "converters.litert.apart" in child.cmdline()]
    assert children
    for child in children:
        child.kill()
    assert model.predict(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_a_file_that_asks_for_gigabytes_does_not_get_them(network: Any, tmp_path: Path) -> None:
    """Its tensors are small, it says; LiteRT computes their sizes anew, from a padding with a bit changed."""
    net = network(16)
    x = net.conv(net.pad(net.stem()), 16, same=False)
    content = net.finish(net.linear(net.flatten(net.mean(x)), 10))
    path = tmp_path / "padded.tflite"
    path.write_bytes(content)
    assert litert.load(path).predict(np.zeros((1, 3, 16, 16), np.float32)).shape == (1, 10)
    graph = read(content)
    pad = [op for op in graph.ops if graph.op_name(op) == "PAD"][-1]
    amounts = graph.constant(int(pad.inputs[1])).copy()
    amounts[1, 1] += 1 << 20  # Rows of 10 pixels of 16 channels: 671 MB, and as much behind it.
    graph.replace_constant(int(pad.inputs[1]), amounts)
    path.write_bytes(graph.to_bytes())
    assert allowance_bytes(graph, len(content)) < 600 << 20
    assert allowance_bytes(graph, len(content), 8) == allowance_bytes(graph, len(content)) + (7 * 16 << 20)
    with pytest.raises(UserError, match=r"padded\.tflite: not a usable \.tflite file: LiteRT"):
        litert.load(path)


def test_sizes_beyond_all_limits_are_no_larger_limit(network: Any, tmp_path: Path) -> None:
    net = network(16)
    graph = read(net.finish(net.linear(net.flatten(net.mean(net.stem())), 10)))
    graph.add_tensor("words", (2**31 - 1,) * 8, schema.TensorType.STRING)
    path = tmp_path / "words.tflite"
    path.write_bytes(graph.to_bytes())
    assert allowance_bytes(read_file(path), path.stat().st_size) == 1 << 40
    assert litert.load(path).predict(np.zeros((1, 3, 16, 16), np.float32)).shape == (1, 10)


def test_here_and_apart_agree(sparse_file: Path) -> None:
    images = np.random.default_rng(0).standard_normal((70, 3, 16, 16)).astype(np.float32)
    found = [litert.load(sparse_file, threads=1, apart=where).predict(images) for where in (True, False)]
    assert np.array_equal(*found)
    assert found[0].shape == (70, 10)


def test_reading_grows_with_the_file(network: Any) -> None:
    """Four times the layers may not take sixteen times the work: nothing is quadratic."""

    def calls(layers: int) -> int:
        net = network(8)
        x = net.stem()
        for _ in range(layers):
            x = net.conv(x, 16)
        graph = read(net.finish(net.linear(net.flatten(net.mean(x)), 10)))
        profile = cProfile.Profile()
        with profile:
            inspection.layer_facts(graph)
            linter.lint_graph(graph)
        return sum(entry.callcount for entry in profile.getstats())

    calls(20)  # what is imported or remembered once
    assert calls(400) < 5 * calls(100)
