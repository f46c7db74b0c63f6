"""Files timed by Apple's runtimes: the script up to their calls, and on a Mac through the command."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from converters.runtimes import apple, measure_on_mac
from edgeprune.cli import main


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers).eval()


def test_files_take_turns_after_warming_up() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    times = measure_on_mac.in_turns([lambda: run("a"), lambda: run("b")], 2)
    warmup = measure_on_mac.WARMUP
    assert "".join(order) == "a" * warmup + "b" * warmup + "abab"
    assert times == [[2 * warmup + 1, 2 * warmup + 3], [2 * warmup + 2, 2 * warmup + 4]]


@pytest.mark.parametrize(
    ("names", "asked", "message"),
    [
        ([], "", "name one with --ios-device NAME; connected by devicectl's word: none"),
        (["a", "b"], "", "name one with --ios-device NAME; connected by devicectl's word: a, b"),
        (["a"], "c", "--ios-device c: not connected; connected by devicectl's word: a"),
    ],
)
def test_a_device_that_cannot_be_told(names: list[str], asked: str, message: str) -> None:
    devices = [SimpleNamespace(name=name, udid=f"u{name}", identifier=f"i{name}") for name in names]
    with pytest.raises(SystemExit, match=message):
        measure_on_mac.chosen(devices, asked)


def test_a_device_is_known_by_name_and_identifiers() -> None:
    devices = [SimpleNamespace(name=name, udid=f"u{name}", identifier=f"i{name}") for name in ("a", "b")]
    assert {measure_on_mac.chosen(devices, asked).name for asked in ("b", "ub", "ib")} == {"b"}
    assert measure_on_mac.chosen(devices[:1], "").name == "a"


def test_what_coremltools_must_have_is_there() -> None:
    """Names of its experimental parts that the script calls; they only run on a Mac."""
    from coremltools.models.ml_program.experimental import perf_utils, remote_device

    assert callable(remote_device.Device.get_connected_devices)
    assert callable(remote_device.Device.prepare_for_model_debugging)
    assert remote_device.AppSigningCredentials(development_team="T").development_team == "T"
    for name in ("benchmark_predict", "benchmark_operation_execution"):
        assert asyncio.iscoroutinefunction(getattr(perf_utils.MLModelBenchmarker, name))


@pytest.mark.slow
def test_a_core_ai_file_is_timed_by_its_own_runtime(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the choice of a compute unit, which only macOS 27 has."""
    pytest.importorskip("coreai")
    from converters import coreai

    path = tmp_path / "a.aimodel"
    coreai.convert(network, torch.zeros(1, 3, 16, 16), path)
    if sys.platform != "darwin":
        monkeypatch.setattr(measure_on_mac, "specialization", lambda _: None)
    loop = asyncio.new_event_loop()
    timed = measure_on_mac.opened(path, "all", measure_on_mac.this_mac(), loop)
    times = measure_on_mac.in_turns([timed.once], 3)
    told = measure_on_mac.result([path], "all", times, [timed.where()], measure_on_mac.this_mac())
    loop.close()
    assert min(times[0]) > 0
    assert told["description"].startswith("Core AI on ALL")


@pytest.mark.slow
def test_apples_own_reader_takes_what_a_file_says_of_itself(network: nn.Module, tmp_path: Path) -> None:
    """It takes texts only."""
    pytest.importorskip("coreai")
    from coreai.authoring import AIModelAsset

    from converters import coreai

    path = tmp_path / "a.aimodel"
    coreai.convert(network, torch.zeros(1, 3, 16, 16), path, labels=["a", "b", "c", "d"])
    assert AIModelAsset.load(path) is not None
    assert coreai.load(path).input.labels == ("a", "b", "c", "d")


@pytest.mark.macos
@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_a_package_is_timed_on_this_mac(network: nn.Module, tmp_path: Path, capsys: Any) -> None:
    from converters import coreml

    path = tmp_path / "a.mlpackage"
    coreml.convert(network, torch.zeros(1, 3, 32, 32), path)
    for unit in apple.UNITS:
        command = [
            "bench",
            str(path),
            "--runtime",
            "mac",
            "--accelerator",
            unit,
            "--rounds",
            "3",
            "--json",
            "-",
        ]
        assert main(command) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["runtime"] == f"mac-{unit}"
        assert len(told["files"][0]["milliseconds"]) == 3
        assert min(told["files"][0]["milliseconds"]) > 0
