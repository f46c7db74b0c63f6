"""Jobs done for real: here, without AVX, and on emulated ARM where that is prepared."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters import litert
from converters.errors import ToolError, UserError
from converters.litert.graph import read_file
from converters.runtimes.environments import Runtime, runtime
from converters.runtimes.running import FileRun, run_files
from tests.support.networks import Network

HOST = runtime("host")
FOREVER = 10**7


def images(count: int) -> np.ndarray:
    """In the files' own layout, channels last."""
    return np.random.default_rng(0).standard_normal((count, 16, 16, 3)).astype(np.float32)


def ready(name: str) -> Runtime:
    """The runtime, or a skipped test that says what is missing."""
    try:
        runtime(name).command()
    except UserError as error:
        pytest.skip(str(error))
    return runtime(name)


@pytest.mark.parametrize("name", ["host", "x86-sparse", "arm64"])
def test_outputs_are_those_of_the_file(name: str, runs: Path) -> None:
    ran = run_files([FileRun(runs, images(3))], ready(name), rounds=2)
    expected = litert.load(runs).predict(images(3).transpose(0, 3, 1, 2))
    (answer,) = ran.answers
    assert ran.version.startswith("LiteRT 2.")
    assert answer.outputs is not None
    assert answer.outputs.shape == (3, 10)
    assert np.abs(answer.outputs - expected).max() < 1e-4 * np.abs(expected).max()
    assert len(answer.milliseconds) == 2
    assert all(0 < time_ms < 1000 for time_ms in answer.milliseconds)


def test_integer_ends_are_fed_and_read_as_float(tmp_path: Path) -> None:
    """What no converter here writes, but others do: int8 in, int8 out, scale 1/4."""
    net = Network(4)
    scales = [schema.QuantizationParametersT() for _ in range(2)]
    for quantization, offset in zip(scales, (3, -5), strict=True):
        quantization.scale, quantization.zeroPoint = [0.25], [offset]
    tensor = net.graph.tensors[net.image]
    tensor.type, tensor.quantization = schema.TensorType.INT8, scales[0]
    floats = net.op("DEQUANTIZE", [net.image], None)
    output = net.op("QUANTIZE", [net.unary("RELU", floats)], None)
    net.graph.tensors[output].type = schema.TensorType.INT8
    net.graph.tensors[output].quantization = scales[1]
    path = tmp_path / "int8.tflite"
    path.write_bytes(net.finish(output, None))
    image = np.linspace(-8, 8, 48, dtype=np.float32).reshape(1, 4, 4, 3)
    (answer,) = run_files([FileRun(path, image)], HOST).answers
    assert answer.outputs is not None
    assert np.abs(answer.outputs.reshape(-1) - np.maximum(image.reshape(-1), 0)).max() <= 0.125


def test_a_refused_file_does_not_stop_the_others(runs: Path, refused: Path) -> None:
    first, second = run_files([FileRun(refused, images(1)), FileRun(runs, images(1))], HOST, rounds=1).answers
    assert first.outputs is None
    assert first.milliseconds == ()
    assert "failed to prepare" in str(first.refused)
    assert second.refused is None
    assert second.outputs is not None
    assert len(second.milliseconds) == 1


def test_several_inputs_are_refused_in_words(tmp_path: Path) -> None:
    net = Network(16)
    other = net.graph.add_tensor("other", (1, 16, 16, 3), schema.TensorType.FLOAT32)
    content = net.finish(net.binary("ADD", net.image, other))
    path = tmp_path / "two.tflite"
    path.write_bytes(content)
    graph = read_file(path)
    graph.subgraph.inputs = np.array([0, 1], np.int32)
    path.write_bytes(graph.to_bytes())
    (answer,) = run_files([FileRun(path, images(1))], HOST).answers
    assert answer.refused == "2 inputs and 1 outputs: must be one, and one or more"


def test_every_step_is_shown(runs: Path) -> None:
    steps: list[tuple[int, int]] = []
    tasks = [FileRun(runs, images(2))] * 2
    run_files(tasks, HOST, rounds=3, warmup=1, show=lambda step, of: steps.append((step, of)))
    assert steps == [(step, 10) for step in range(10)]


def test_a_crash_names_the_file(runs: Path, crashes: Path) -> None:
    tasks = [FileRun(runs, images(1)), FileRun(crashes, images(1)), FileRun(runs, images(1))]
    with pytest.raises(ToolError, match=rf"ended at {crashes}: signal \d+ \("):
        run_files(tasks, HOST, rounds=1)


def test_a_runtime_that_does_not_start_says_what_it_said(runs: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('LiteRT is not here')"]
    broken = Runtime("broken", "A broken runtime", False, "host", lambda: command)
    with pytest.raises(ToolError) as caught:
        run_files([FileRun(runs, images(1))], broken)
    assert str(caught.value) == "A broken runtime ended at the start: exit status 1\nLiteRT is not here"


def test_a_job_that_takes_too_long_is_ended(runs: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(ToolError, match=r"stopped because it was not done after 3 s"):
        run_files([FileRun(runs, images(1))], HOST, rounds=FOREVER, limit_s=3)
    assert psutil.Process().children() == before


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_nothing_runs_on_when_the_caller_stops(reason: type[BaseException], runs: Path) -> None:
    def stop(step: int, _: int) -> None:
        if step == 3:
            raise reason

    before = psutil.Process().children()
    with pytest.raises(reason):
        run_files([FileRun(runs, images(1))], HOST, rounds=FOREVER, show=stop)
    assert psutil.Process().children() == before
