"""What accelerators do with files: faults are named with what to do, verdicts have a source and a date."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from converters.accelerators import Backend, Kind, Outcome
from converters.coreml import accelerators as coreml
from converters.coreml.program import Operation, Program, TensorType
from converters.format import format_of
from converters.gains import GAINS, gains, markdown
from converters.litert import accelerators as litert
from converters.litert.graph import read
from converters.targets import TARGETS, Storage
from tests.support.networks import Network


def finished(net: Network, x: int, kind: Storage | None = Storage.FLOAT32) -> bytes:
    return net.finish(net.linear(net.flatten(net.mean(x)), 10), kind)


def plain(net: Network) -> int:
    return net.depthwise(net.conv(net.stem(16), 64))


def gathered(net: Network) -> int:
    x = plain(net)
    indices = net.graph.add_constant("indices", np.zeros((1, 4, 4, 3), np.int32))
    return net.op("GATHER_ND", [x, indices], (1, 4, 4, 64), "GatherNdOptions")


def five_dimensions(net: Network) -> int:
    x = plain(net)
    _, height, width, channels = net.graph.shape(x)
    tall = net.op("RESHAPE", [x], (1, height, width, channels // 2, 2))
    return net.op("RESHAPE", [tall], (1, height, width, channels))


def int64(net: Network) -> int:
    x = plain(net)
    y = net.op("CAST", [x], net.graph.shape(x), "CastOptions")
    net.graph.tensors[y].type = schema.TensorType.INT64
    return net.op("CAST", [y], net.graph.shape(x), "CastOptions")


def unheard_of(net: Network) -> int:
    x = plain(net)
    return net.op("ATAN2", [x, x], net.graph.shape(x))


@pytest.mark.parametrize(
    ("make", "op", "words"),
    [
        (gathered, "GATHER_ND", "slice or resize otherwise: grid_sample, bicubic"),
        (five_dimensions, "RESHAPE", "has 5 dimensions: reshape so that none has more than 4"),
        (int64, "CAST", "is INT64: compute in float32 or int32"),
        (unheard_of, "ATAN2", "the GPU delegate has no such op"),
    ],
)
def test_what_leaves_the_gpu_is_named_with_what_to_do(
    make: Callable[[Network], int], op: str, words: str
) -> None:
    net = Network()
    (gpu, npu) = litert.examine(read(finished(net, make(net)), "file"))
    fallen = gpu.of(Outcome.FALLS_BACK)
    assert {verdict.op for verdict in fallen} == {op}
    assert all(words in verdict.change for verdict in fallen)
    assert re.match(r"op \d+ \(.+\)", fallen[0].place)
    line = next(line for line in gpu.lines() if op in line)
    assert words in line
    assert "google-ai-edge/" in line
    assert {verdict.outcome for verdict in npu.verdicts} == {Outcome.UNKNOWN}


def test_a_dilated_depthwise_convolution_runs_and_is_named_with_what_to_do() -> None:
    net = Network()
    x = net.depthwise(plain(net), dilationHFactor=2, dilationWFactor=2)
    (gpu, _) = litert.examine(read(finished(net, x), "file"))
    (minded,) = [verdict for verdict in gpu.minded() if verdict.op == "DEPTHWISE_CONV_2D"]
    assert (minded.outcome, minded.source.date) == (Outcome.RUNS, "2019-05-09")
    (line,) = [line for line in gpu.lines() if "takes its dilation" in line]
    assert line.startswith("  to mind (1): DEPTHWISE_CONV_2D: the delegate takes its dilation")
    assert "compare them on the phone, or use a larger kernel" in line
    assert gpu.of(Outcome.FALLS_BACK) == []


def files() -> Iterator[bytes]:
    """24 networks: shapes, storages and zeros of every kind that the converter writes."""
    for storage in (Storage.FLOAT32, Storage.INT8):
        for zeros in (0.0, 0.5, 0.8):
            for width in (16, 64):
                for layers in (1, 3):
                    net = Network(seed=width + layers)
                    x = net.stem(16)
                    for _ in range(layers):
                        x = net.unary("HARD_SWISH", net.depthwise(net.conv(x, width, zeros=zeros)))
                    yield finished(net, x, storage)


def test_every_verdict_over_many_files_has_its_source_and_date() -> None:
    examined = [backend for content in files() for backend in litert.examine(read(content, "file"))]
    assert len(examined) == 48
    for backend in examined:
        check_sources(backend)
        assert backend.of(Outcome.FALLS_BACK) == []
    expanded = {v.change for b in examined for v in b.minded()}
    assert expanded == {litert.DENSIFY}, "sparse weights are expanded by one delegate of two"


def check_sources(backend: Backend) -> None:
    assert backend.verdicts
    for verdict in backend.verdicts:
        assert re.fullmatch(r"20\d\d-\d\d(-\d\d)?", verdict.source.date)
        assert verdict.source.where
        assert (verdict.source.kind is Kind.NONE) == (verdict.outcome is Outcome.UNKNOWN)
        assert verdict.change or verdict.outcome is Outcome.RUNS
    plain = backend.to_plain()
    assert sum(plain["counts"].values()) == len(plain["ops"]) == len(backend.verdicts)


def operation(kind: str, dtype: str = "FLOAT16", **arguments: np.ndarray) -> Operation:
    given = {name: (value,) for name, value in arguments.items()}
    return Operation(kind, given, (TensorType(f"{kind}_0", dtype, (1, 8, 4, 4)),))


@pytest.mark.parametrize(
    ("op", "outcome", "words"),
    [
        (
            operation("conv", dilations=np.array([2, 2])),
            Outcome.FALLS_BACK,
            "use a larger kernel or a stride",
        ),
        (
            operation("conv", dilations=np.array([1, 3]), groups=np.array(8)),
            Outcome.FALLS_BACK,
            "is dilated: use a larger kernel",
        ),
        (operation("gather_nd"), Outcome.FALLS_BACK, "looks values up: write it with other"),
        (operation("gather"), Outcome.FALLS_BACK, "looks values up: write it with other"),
        (operation("relu", dtype="FLOAT32"), Outcome.FALLS_BACK, "convert with float16 precision"),
        (operation("conv", dilations=np.array([1, 1])), Outcome.RUNS, ""),
        (operation("softmax"), Outcome.UNKNOWN, "MLComputePlan on a Mac says"),
    ],
)
def test_what_the_neural_engine_is_known_to_do(op: Operation, outcome: Outcome, words: str) -> None:
    engine, gpu = coreml.examine(Program((), (op,), {}, {}, ()))
    (verdict,) = engine.verdicts
    assert (verdict.outcome, words in verdict.change) == (outcome, True)
    assert gpu.verdicts[0].outcome is Outcome.UNKNOWN
    check_sources(engine)
    check_sources(gpu)


def test_inspect_tells_it(tmp_path: Path) -> None:
    net, path = Network(), tmp_path / "a.tflite"
    path.write_bytes(finished(net, gathered(net)))
    facts = format_of(path).inspect(path)
    assert facts.plain["accelerators"]["litert-gpu"]["counts"]["falls_back"] == 1
    assert any(line.startswith("  GATHER_ND at op ") for line in facts.lines)
    assert any(line.startswith("litert-npu: 0 ops run, 0 fall back, ") for line in facts.lines)


def test_the_page_has_the_table_of_gains_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chips.md").read_text(encoding="utf-8")
    assert f"\n{markdown()}\n" in page
    everywhere = gains({target.platform for target in TARGETS.values()})
    assert everywhere == list(GAINS)
    assert all(vars(gain)[part] for gain in GAINS for part in vars(gain))
    assert {gain.place for gain in gains({"web"})} == {"browser (LiteRT.js)"}
