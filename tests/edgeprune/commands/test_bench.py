"""`edgeprune bench` on real files: ratios, refusals, crashes, mistakes."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.facts import sha256, size_bytes
from converters.litert import metadata
from converters.litert.graph import read_file
from edgeprune.cli import main
from edgeprune.commands import bench
from edgeprune.commands.output import json_text
from edgeprune.evaluation import bench_result
from edgeprune.evaluation.bench_result import BenchResult, time_ratio, to_plain
from tests.support.networks import Network, eligible

EMULATED = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
SIZE_PX = 32


def save(net: Network, x: int, path: Path) -> Path:
    path.write_bytes(net.finish(net.linear(net.flatten(net.mean(x)), 10)))
    return path


def network(path: Path, width: int, zeros: float = 0.0, size: int = SIZE_PX, layers: int = 1) -> Path:
    """A network the sparse kernels take where `zeros` are enough, of a size to choose."""
    net = Network(size)
    x = net.stem(16)
    for _ in range(layers):
        x = net.depthwise(net.conv(x, width, zeros=zeros))
    return save(net, net.conv(x, 16, zeros=zeros), path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bench")
    return {
        "small": network(folder / "small.tflite", 16),
        "large": network(folder / "large.tflite", 256, layers=2),
        "sparse": network(folder / "sparse.tflite", 256, zeros=0.8, layers=2),
        "tiny": network(folder / "tiny.tflite", 8, size=16),
        "refused": refused(folder),
        "crashes": crashes(folder),
        "damaged": damaged(folder),
    }


def refused(folder: Path) -> Path:
    path = network(folder / "refused.tflite", 16)
    graph = read_file(path)
    stem = next(op for op in graph.ops if graph.op_name(op) == "CONV_2D")
    stem.inputs = np.array([stem.inputs[0], *reversed(stem.inputs[1:])], np.int32)
    path.write_bytes(graph.to_bytes())
    return path


def crashes(folder: Path) -> Path:
    """Splits a map into no parts: LiteRT divides by that."""
    net = Network(SIZE_PX)
    axis = net.graph.add_constant("axis", np.array(0, np.int32))
    path = folder / "crashes.tflite"
    path.write_bytes(net.finish(net.op("SPLIT", [axis, net.image], None, "SplitOptions", numSplits=0)))
    return path


def damaged(folder: Path) -> Path:
    path = folder / "damaged.tflite"
    path.write_bytes(b"not a model")
    return path


@pytest.fixture(scope="module")
def measured(files: dict[str, Path]) -> BenchResult:
    paths = [files["large"], files["small"], files["refused"], files["large"]]
    return bench.time_files(bench.plan_bench(paths, "host", rounds=15))


def test_a_file_of_less_work_is_faster_by_about_that(measured: BenchResult) -> None:
    large, small, _, again = (
        bench.speed(file.milliseconds, measured.files[0].milliseconds) for file in measured.files
    )
    assert large is not None
    assert large.median == large.low == large.high == 1
    assert small is not None
    assert small.median > 4  # 40 times the multiplications
    assert small.low <= small.median <= small.high
    assert again is not None
    assert 0.5 < again.median < 2  # the same file, on a machine that may be busy


def test_outputs_are_compared_with_the_first_files(measured: BenchResult) -> None:
    large, small, refused_, again = measured.files
    assert (large.difference, again.difference) == (0, 0)
    assert small.difference is not None
    assert small.difference > 0.01
    assert refused_.difference is None
    assert refused_.difference_reason == "it is refused"


def test_a_refused_file_is_a_row_that_says_so(measured: BenchResult, files: dict[str, Path]) -> None:
    row = to_plain(measured)["files"][2]
    assert "failed to prepare" in row["refused"]
    assert row["speed_reason"] == row["refused"]
    assert row["milliseconds"] == ()
    assert {row[key] for key in ("median_ms", "speed", "speed_quartiles", "difference")} == {None}
    assert any(
        line.startswith(f"{files['refused']}: refused by the runtime: ") for line in bench.notes(measured)
    )


def test_the_json_has_everything(measured: BenchResult, files: dict[str, Path]) -> None:
    plain = json.loads(json_text(to_plain(measured)))
    fixed = {
        "schema": 1,
        "runtime": "host",
        "emulated": False,
        "clock": "wall time",
        "threads": 1,
        "rounds": 15,
    }
    fixed["image"] = {"channels": 3, "height_px": SIZE_PX, "width_px": SIZE_PX}
    assert {key: plain[key] for key in fixed} == fixed
    assert set(plain) == {*fixed, "version", "description", "processor", "device", "warmup", "files"}
    assert plain["version"].startswith("LiteRT 2.")
    row = plain["files"][1]
    assert set(row) == {
        "path", "bytes", "sha256", "refused", "sparse_kernels", "problems", "milliseconds", "median_ms",
        "quartiles_ms", "speed", "speed_quartiles", "speed_reason", "difference", "difference_reason",
        "load_memory_bytes", "load_memory_reason",
    }  # fmt: skip
    assert row["path"] == str(files["small"])
    assert row["bytes"] == files["small"].stat().st_size
    assert len(row["milliseconds"]) == 15
    assert row["median_ms"] == pytest.approx(np.median(row["milliseconds"]))
    ratios = np.divide(plain["files"][0]["milliseconds"], row["milliseconds"])
    assert [row["speed"], *row["speed_quartiles"]] == pytest.approx(np.quantile(ratios, [0.5, 0.25, 0.75]))
    assert row["sparse_kernels"] is False
    assert row["problems"]


def test_the_table_names_runtime_and_resolution(files: dict[str, Path], capsys: Any, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = ["bench", str(files["large"]), str(files["small"]), "--rounds", "3", "--json", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for word in (
        "large.tflite",
        "small.tflite",
        "32x32 px, 1 thread",
        "3 interleaved rounds",
        "[encoding]",
        "LiteRT 2.",
    ):
        assert word in shown
    assert "emulated" not in shown
    assert len(json.loads(out.read_text())["files"]) == 2


def test_json_alone_on_stdout(files: dict[str, Path], capsys: Any) -> None:
    assert main(["bench", str(files["small"]), "--rounds", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


@pytest.mark.skipif(EMULATED is None, reason="needs qemu-user: make runtime-x86-sparse")
def test_sparse_kernels_show_where_the_linter_says_so(files: dict[str, Path], capsys: Any) -> None:
    command = ["bench", str(files["large"]), str(files["sparse"]), "--runtime", "x86-sparse", "--rounds", "3"]
    assert main([*command, "--json", "-"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["clock"] == "processor time"
    assert plain["emulated"]
    assert [row["sparse_kernels"] for row in plain["files"]] == [False, True]
    assert plain["files"][1]["speed"] > 1.3


def test_emulated_times_come_with_a_warning(measured: BenchResult) -> None:
    lines = bench.notes(replace(measured, emulated=True))
    assert any(line.startswith("emulated: the times say nothing by themselves") for line in lines)


def test_a_crash_names_the_file(files: dict[str, Path], capsys: Any) -> None:
    assert main(["bench", str(files["small"]), str(files["crashes"])]) == 3
    told = capsys.readouterr().err
    assert f"ended at {files['crashes']}: signal" in told
    assert "Traceback" not in told


def test_a_refused_first_file_leaves_no_speeds(files: dict[str, Path]) -> None:
    plan = bench.plan_bench([files["refused"], files["small"]], "host", rounds=1)
    row = to_plain(bench.time_files(plan))["files"][1]
    assert row["median_ms"] > 0
    assert row["speed"] is None
    assert row["speed_reason"] == "the first file is refused"
    assert row["difference_reason"] == "the first file is refused"


def test_pixels_are_in_the_files_own_range_and_layout(files: dict[str, Path], tmp_path: Path) -> None:
    graph = read_file(files["small"])
    content = metadata.describe((3, SIZE_PX, SIZE_PX), None, None, False, None)
    content["input"]["range"] = [0.0, 255.0]
    metadata.write(graph, content)
    plain = tmp_path / "plain.tflite"
    plain.write_bytes(graph.to_bytes())
    normal, pixels = bench.plan_bench([files["small"], plain], "host").files
    assert bench.image(normal).shape == (1, SIZE_PX, SIZE_PX, 3)
    assert abs(bench.image(normal).mean()) < 0.1
    assert bench.image(pixels).min() == 0
    assert bench.image(pixels).max() == 255
    assert np.array_equal(bench.image(pixels), np.rint(bench.image(pixels)))
    first = bench.image(replace(pixels, channels_last=False))
    assert np.array_equal(first.transpose(0, 2, 3, 1), bench.image(pixels))
    result = bench.time_files(bench.plan_bench([files["small"], plain], "host", rounds=1))
    assert result.files[1].difference_reason == "it takes pixels in another range than the first file"


def test_all_mistakes_come_in_one_message(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "weights.onnx").touch()
    paths = [files["small"], tmp_path / "nowhere.tflite", tmp_path / "weights.onnx", files["damaged"]]
    options = [
        "--runtime",
        "ios",
        "--rounds",
        "0",
        "--threads",
        "-1",
        "--json",
        str(tmp_path / "no" / "x.json"),
    ]
    assert main(["bench", *map(str, [*paths, files["tiny"], tmp_path / "nowhere.tflite"]), *options]) == 2
    told = capsys.readouterr().err
    expected = (
        "--rounds 0: must be 1 or more",
        "--threads -1: must be 1 or more",
        f"cannot write {tmp_path}/no/x.json: no such folder",
        "unknown runtime 'ios': choose from host, x86-sparse, arm64, browser",
        f"{tmp_path}/nowhere.tflite: no such file",
        f"{tmp_path}/weights.onnx: expected a .tflite file",
        f"{files['damaged']}: not a usable .tflite file",
        f"{files['tiny']} takes 16x16 px of 3 channels, {files['small']} takes 32x32 px of 3 channels",
    )
    for mistake in expected:
        assert told.count(mistake) == 1, mistake
    assert len(told.splitlines()) == len(expected)


def test_a_runtime_that_is_not_prepared_is_a_mistake(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    assert main(["bench", str(files["small"]), "--runtime", "arm64"]) == 2
    assert "run make runtime-arm64" in capsys.readouterr().err


def test_a_browser_has_one_thread(files: dict[str, Path], capsys: Any) -> None:
    assert main(["bench", str(files["small"]), "--runtime", "browser", "--threads", "2"]) == 2
    assert "--threads 2: the browser runtime runs on one thread" in capsys.readouterr().err


def test_something_else_than_an_image_is_a_mistake(tmp_path: Path, capsys: Any) -> None:
    net = eligible()
    path = tmp_path / "features.tflite"
    graph = net.graph
    graph.tensors[net.image].shape = np.array([1, 16, 16, 7], np.int32)
    path.write_bytes(net.finish(net.image))
    assert main(["bench", str(path)]) == 2
    assert f"{path}: takes [1, 16, 16, 7], which is not one image" in capsys.readouterr().err


def test_options_of_a_phone_mean_nothing_elsewhere(files: dict[str, Path], capsys: Any) -> None:
    command = ["bench", str(files["small"]), "--device", "ABC", "--accelerator", "gpu"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "--device: only with --runtime android or ios-device" in told
    assert "--accelerator: only with --runtime android or mac or ios-device" in told


def test_mistakes_about_a_phone_are_one_message(
    files: dict[str, Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    monkeypatch.setenv("EDGEPRUNE_BENCHMARK_MODEL_URL", "http://127.0.0.1:1/benchmark_model")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    command = ["bench", str(files["small"]), str(files["tiny"]), str(files["damaged"]), "--rounds", "0"]
    assert main([*command, "--runtime", "android"]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    told_all = ("--rounds 0: must be", "damaged.tflite: ", "compare files of one", "benchmark_model is not")
    for words in told_all:
        assert words in told


def test_a_phone_without_adb_is_a_mistake(
    files: dict[str, Path], tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "benchmark_model"
    tool.write_text("")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    command = ["bench", str(files["small"]), "--runtime", "android", "--benchmark-model", str(tool)]
    assert main(command) == 2
    assert "error: adb is not installed: install" in capsys.readouterr().err


def test_the_script_for_a_mac_writes_what_the_report_takes_in(tmp_path: Path, capsys: Any) -> None:
    """All but Core ML itself: there is no Mac here."""
    packages = [tmp_path / f"{name}.mlpackage" for name in ("dense", "sparse")]
    for number, package in enumerate(packages):
        (package / "Data").mkdir(parents=True)
        (package / "Manifest.json").write_text("{}")
        (package / "Data" / "weight.bin").write_bytes(bytes(100 * (number + 1)))
    script = tmp_path / "time_it.py"
    assert main(["bench", *map(str, packages), "--write-script", str(script)]) == 0
    assert "mac/bin/python time_it.py dense.mlpackage sparse.mlpackage" in capsys.readouterr().out
    space = runpy.run_path(str(script), run_name="time_it")
    times, place = [[4.0, 5.0, 6.0], [2.0, 2.5, 4.0]], space["this_mac"]()
    plain = space["result"](packages, "ane", times, [{"MLCPU": 3}, {}], place)
    out = tmp_path / "bench-mac-ane.json"
    out.write_text(json.dumps(plain))
    found = bench_result.read(out)
    assert [file.sha256 for file in found.files] == [sha256(package) for package in packages]
    assert [file.bytes for file in found.files] == [size_bytes(package) for package in packages]
    assert (found.runtime, found.files[1].median_ms, found.files[1].speed) == ("mac-ane", 2.5, 2.0)
    assert found.files[0].problems == ("operations by MLComputePlan: 3 on MLCPU",)
    assert time_ratio([found], found.files[1].sha256) == 0.5
    done = subprocess.run([sys.executable, str(script), str(packages[0])], capture_output=True, text=True)
    if sys.platform != "darwin":
        assert (done.returncode, done.stdout) == (1, "")
        assert "Core ML runs on macOS only" in done.stderr


def test_the_script_for_a_mac_is_for_packages(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    missing, script = tmp_path / "no.mlpackage", tmp_path / "script.py"
    assert main(["bench", str(files["small"]), str(missing), "--write-script", str(script)]) == 2
    told = capsys.readouterr().err
    assert "small.tflite: Apple's runtimes are timed with Core ML packages and Core AI files" in told
    assert "no.mlpackage: no such file" in told
    assert not script.exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="is about other systems")
@pytest.mark.parametrize("place", ["mac", "ios-device"])
def test_apples_runtimes_need_a_mac_and_offer_the_script(place: str, tmp_path: Path, capsys: Any) -> None:
    package, other = tmp_path / "a.mlpackage", tmp_path / "b.tflite"
    package.mkdir()
    other.write_bytes(b"")
    command = ["bench", str(package), str(other), "--runtime", place, "--threads", "2", "--rounds", "0"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    for words in (
        f"--runtime {place} needs ",
        f"edgeprune bench {package} {other} --write-script time_on_mac.py writes a script",
        f"{other}: Apple's runtimes are timed with Core ML packages",
        "--threads 2: Apple's runtimes choose",
        "--rounds 0: must be",
    ):
        assert words in told


def test_what_an_accelerator_or_a_device_is_not_is_one_message(tmp_path: Path, capsys: Any) -> None:
    asset = tmp_path / "a.aimodel"
    asset.mkdir()
    assert main(["bench", str(asset), "--runtime", "ios-device", "--benchmark-model", "x"]) == 2
    assert "--benchmark-model: only with --runtime android" in capsys.readouterr().err
    assert main(["bench", str(asset), "--runtime", "ios-device"]) == 2
    assert (
        "times no Core AI files on a device: open it in the app of sample_apps/ios" in capsys.readouterr().err
    )
    assert main(["bench", str(asset), "--runtime", "android", "--accelerator", "ane", "--rounds", "0"]) == 2
    assert "--accelerator ane: android has cpu, gpu" in capsys.readouterr().err
