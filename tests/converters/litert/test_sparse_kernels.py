"""On the runtime's own sparse kernels: x86 without AVX, emulated. What the linter says is what happens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.litert import repair
from converters.litert.graph import Graph, read
from converters.litert.linter import lint_graph
from converters.targets import Storage

EMULATOR = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
pytestmark = pytest.mark.skipif(EMULATOR is None, reason="needs qemu-user: apt-get install qemu-user-static")
TOLERANCE = 1e-4

# Runs each pair of files (dense, sparse): the largest difference, in parts of the largest answer.
SCRIPT = """
import json, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
results = []
for dense, sparse in zip(sys.argv[1::2], sys.argv[2::2]):
    outputs = []
    for path in (dense, sparse):
        interpreter = Interpreter(model_path=path, num_threads=1)
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()[0]
        image = np.random.default_rng(0).standard_normal(details["shape"]).astype(np.float32)
        interpreter.set_tensor(details["index"], image)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    difference = abs(outputs[0] - outputs[1]).max() / abs(outputs[0]).max()
    results.append(float(difference))
print(json.dumps(results))
"""


def body(net: Any, x: int, zeros: float = 0.8) -> int:
    """Two inverted bottlenecks with a residual."""
    for _ in range(2):
        y = net.depthwise(net.unary("HARD_SWISH", net.conv(x, 256, zeros=zeros)))
        x = net.binary("ADD", net.conv(y, 64, zeros=zeros), x)
    return x


def finish(net: Any, x: int) -> int:
    return net.linear(net.flatten(net.mean(x)), 10)


def scalar(net: Any, shape: tuple[int, ...]) -> int:
    return net.constant(np.full(shape, 0.5))


def leaking(net: Any) -> int:
    """The sparse part's map is read by a dense convolution."""
    return finish(net, net.conv(body(net, net.stem(64)), 16, kernel=3, same=True))


NETWORKS: dict[str, Callable[[Any], int]] = {
    "eligible": lambda n: finish(n, body(n, n.stem(64))),
    "60 % zeros": lambda n: finish(n, body(n, n.stem(64), zeros=0.6)),
    "constant first": lambda n: finish(n, body(n, n.binary("MUL", scalar(n, (1, 1, 1, 1)), n.stem(64)))),
    "constant second": lambda n: finish(n, body(n, n.binary("MUL", n.stem(64), scalar(n, (1, 1, 1, 1))))),
    "scalar constant": lambda n: finish(n, body(n, n.binary("MUL", scalar(n, ()), n.stem(64)))),
    "subtraction": lambda n: finish(n, body(n, n.binary("SUB", n.stem(64), scalar(n, (1, 1, 1, 1))))),
    "SAME stem": lambda n: finish(n, body(n, n.conv(n.image, 64, kernel=3, stride=2, same=True))),
    "leaking": leaking,
}


def joining(net: Any) -> int:
    """A map and what a depthwise convolution makes of it, side by side."""
    x = net.conv(net.stem(64), 32)
    parts = [x, net.depthwise(x)]
    shape = (*net.graph.shape(x)[:3], 64)
    return finish(net, body(net, net.op("CONCATENATION", parts, shape, "ConcatenationOptions", axis=3)))


def with_head(head: Callable[[Any, int], int]) -> Callable[[Any], int]:
    """Something between the mean and the classifier, as MobileNetV4 and GhostNet have a convolution."""
    return lambda net: net.linear(net.flatten(head(net, net.mean(body(net, net.stem(64))))), 10)


HEADS: dict[str, Callable[[Any], int]] = {
    "a convolution": with_head(lambda net, x: net.conv(x, 128, fusedActivationFunction=1)),
    "a convolution and its clamp": with_head(lambda net, x: net.unary("RELU6", net.conv(x, 128))),
    "a sum": with_head(lambda net, x: net.binary("ADD", net.conv(x, 64), x)),
    "two convolutions": with_head(lambda net, x: net.conv(net.conv(x, 128), 64)),
    "another activation": with_head(lambda net, x: net.unary("HARD_SWISH", net.conv(x, 128))),
}


def windows(net: Any, out: int = 64, stride: int = 2, kernel: int = 3) -> int:
    """A dense convolution behind the stem, as MobileNetV4 has two."""
    x = net.conv(net.pad(net.stem(8), (kernel // 2,) * 4), out, kernel=kernel, stride=stride)
    return finish(net, body(net, x))


MENDED: dict[str, tuple[Callable[[Any], int], Callable[[Graph], None]]] = {
    "leaking, barred": (leaking, repair.bar_faulty_parts),
    "joining, as a sum": (joining, repair.repair_sparse),
    "windows, gathered": (windows, repair.repair_sparse),
    "windows at stride 1, gathered": (lambda net: windows(net, stride=1), repair.repair_sparse),
    **{f"{name} as a head": (make, repair.repair_sparse) for name, make in HEADS.items()},
}
# What is refused as it is, and what is not.
REFUSED_HEADS = ("a convolution", "a convolution and its clamp", "a sum")


def files(
    network: Any,
    make: Callable[[Any], int],
    folder: Path,
    name: str,
    mend: Callable[[Graph], None] | None = None,
) -> list[Path]:
    """The same network dense and sparse, this one mended."""
    paths = []
    for kind in ("dense", "sparse"):
        net = network(40, seed=1)
        content = net.finish(make(net), Storage.FLOAT32 if kind == "sparse" else None)
        if kind == "sparse" and mend is not None:
            graph = read(content)
            mend(graph)
            content = graph.to_bytes()
        paths.append(folder / f"{name}.{kind}.tflite")
        paths[-1].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def measured(network: Any, tmp_path_factory: Any) -> dict[str, tuple[float, Graph]]:
    """Difference and graph of each network, all in one emulated process."""
    folder = tmp_path_factory.mktemp("kernels")
    pairs = {
        name: files(network, make, folder, str(number))
        for number, (name, make) in enumerate(NETWORKS.items())
    }
    for name, (make, mend) in MENDED.items():
        pairs[name] = files(network, make, folder, name, mend)
    arguments = [str(path) for pair in pairs.values() for path in pair]
    done = subprocess.run(
        [str(EMULATOR), "-cpu", "Nehalem", sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(done.stdout)
    return {
        name: (difference, read(pair[1].read_bytes()))
        for (name, pair), difference in zip(pairs.items(), results, strict=True)
    }


@pytest.mark.parametrize("name", [*NETWORKS, *MENDED])
def test_the_linter_says_what_happens(measured: dict[str, tuple[float, Graph]], name: str) -> None:
    difference, graph = measured[name]
    verdict = lint_graph(graph, "x86-sparse")
    assert verdict.sparse or name not in MENDED or name == "leaking, barred"
    wrong = any(problem.rule == "leak" for problem in verdict.problems)
    if wrong:
        # Runs sparse, and computes nonsense: if this ever fails, the runtime was mended.
        assert difference > 100 * TOLERANCE
    else:
        assert difference < TOLERANCE
        # Dense kernels give the dense file's numbers to the last bit, sparse ones sum in another order.
        assert (difference > 0) == verdict.sparse


def test_both_kinds_of_verdict_are_there(measured: dict[str, tuple[float, Graph]]) -> None:
    verdicts = [lint_graph(graph).sparse for _, graph in measured.values()]
    assert verdicts.count(True) >= 2
    assert verdicts.count(False) >= 5


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_refused_by_the_runtime_where_the_linter_says_so(
    network: Any, tmp_path: Path, name: str
) -> None:
    _, path = files(network, HEADS[name], tmp_path, "head")
    told = {problem.rule for problem in lint_graph(read(path.read_bytes()), "x86-sparse").problems}
    done = subprocess.run(
        [str(EMULATOR), "-cpu", "Nehalem", sys.executable, "-c", SCRIPT, str(path), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    # If the first ever runs, the runtime was mended.
    assert (done.returncode != 0) == (name in REFUSED_HEADS), done.stderr[-300:]
    assert told & {"head", "branch"} if name in REFUSED_HEADS else not told
