"""`edgeprune check` on real files: every kind of limit, files from anywhere, what CI systems read of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from converters.facts import download_bytes, sha256
from converters.format import suffixes
from edgeprune.cli import main
from edgeprune.commands import ci_annotations
from edgeprune.commands.check import CheckResult, Entry, JudgedFile, Status
from edgeprune.report import records
from edgeprune.report.records import Report
from tests.support.reports import make_row
from tests.support.runs import TARGET, write_network, write_run

BLOCK = f"files/block80-{TARGET}.tflite"


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a dense file and one of 80 % zeros, which loses a point; timed, in its `bench.json`."""
    folder = tmp_path_factory.mktemp("made") / "run"
    write_run(folder, {"dense": (0.0, 0.0), "block80": (0.8, 0.8)}, {"block80": 1.0})
    files = [str(folder / "files" / f"{variant}-{TARGET}.tflite") for variant in ("dense", "block80")]
    assert main(["bench", *files, "--rounds", "3", "--json", str(folder / "bench.json")]) == 0
    return folder


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_run, tmp_path / "run"))


def budget(folder: Path, text: str) -> str:
    path = folder / "budget.toml"
    path.write_text(text)
    return str(path)


def measured(run: Path) -> dict[str, Any]:
    """What block80 really has, by the limit's name."""
    row = next(row for row in records.read(run).rows if row.variant == "block80")
    bench = json.loads((run / "bench.json").read_text())
    (timed,) = (file for file in bench["files"] if file["sha256"] == row.sha256)
    return {
        "bytes": row.bytes,
        "download_bytes": row.download_bytes,
        "top1_drop_points": 1.0,
        "load_memory_bytes": timed["load_memory_bytes"],
        "time_ratio": 1 / timed["speed"],
    }


WORDS = {
    "bytes": "1 bytes over the budget of ",
    "download_bytes": " bytes, the limit is ",
    "top1_drop_points": "loses 1 points, the limit is 0.9",
    "load_memory_bytes": "bytes of memory, the limit is ",
    "time_ratio": "of the dense file's time, the limit is ",
}


@pytest.mark.parametrize("broken", [None, *WORDS])
def test_each_kind_of_limit_broken_once(broken: str | None, run: Path, capsys: Any) -> None:
    """The dense file is far over its bytes; block80 is exactly within everything, then over in one thing."""
    most = measured(run)
    assert most["load_memory_bytes"] > 1_000_000
    most["time_ratio"] *= 1.001  # 1 / median(dense / own) is median(own / dense) but for the last digits
    if broken is not None:
        near = {name: most[name] - 1 for name in ("bytes", "download_bytes")}
        most[broken] = {**near, "top1_drop_points": 0.9}.get(broken, most[broken] // 2 or 1e-6)
    text = "\n".join([f"[target.{TARGET}]", *(f"{name} = {value}" for name, value in most.items())])
    status = main(["check", str(run), "--budget", budget(run, text)])
    told = capsys.readouterr().out
    assert status == (0 if broken is None else 1)
    if broken is None:
        assert f"{TARGET}: ship {BLOCK}" in told
    else:
        assert f"Over budget: {TARGET}" in told
        (line,) = (line for line in told.splitlines() if line.startswith(f"  {BLOCK}: "))
        assert WORDS[broken] in line
        assert not any(words in line for name, words in WORDS.items() if name != broken)


def test_the_download_of_an_older_report_is_measured_when_it_is_limited(run: Path, capsys: Any) -> None:
    report = records.read(run)
    size = next(row.download_bytes for row in report.rows if row.variant == "block80")
    rows = tuple(dataclasses.replace(row, download_bytes=None) for row in report.rows)
    records.write(dataclasses.replace(report, rows=rows), run)
    for most, status in ((size, 0), (size - 1, 1)):
        text = f"[target.{TARGET}]\ndownload_bytes = {most}\n"
        assert main(["check", str(run), "--budget", budget(run, text)]) == status
    assert f"downloads as {size:,} bytes, the limit is {size - 1:,}" in capsys.readouterr().out


def test_the_older_keys_of_a_budget_hold(run: Path, capsys: Any) -> None:
    most = measured(run)["bytes"]
    assert main(["check", str(run), "--budget", budget(run, f"[bytes]\n{TARGET} = {most}")]) == 0
    assert main(["check", str(run), "--budget", budget(run, f"[bytes]\n{TARGET} = {most - 1}")]) == 1
    text = f"top1_drop_points = 0.5\n[bytes]\n{TARGET} = {most}\n"
    assert main(["check", str(run), "--budget", budget(run, text)]) == 1
    # A target's own limit goes before the one for all.
    assert (
        main(["check", str(run), "--budget", budget(run, f"{text}[target.{TARGET}]\ntop1_drop_points = 1")])
        == 0
    )


def test_every_mistake_in_a_budget_is_one_message(run: Path, capsys: Any) -> None:
    text = f"""
        top1_drop_points = 200
        [bytes]
        ios = 5
        {TARGET} = 0
        [target.{TARGET}]
        bytes = 7
        time_ratio = 0.0
        load_memory_bytes = -1
        top1_drop_points = -0.1
        [target.coreml-ios16]
        time_ratio = 0.5
        [target.litert-web]
    """
    assert main(["check", str(run), "--budget", budget(run, text)]) == 2
    told = capsys.readouterr().err
    expected = (
        "budget.bytes: unknown target 'ios': choose from coreml-ios16, ",
        f"budget.bytes.{TARGET} is 0: give a whole number of bytes above 0",
        f"budget.bytes.{TARGET} and budget.target.{TARGET}.bytes: give one of them",
        "budget.top1_drop_points is 200.0: give percentage points",
        f"budget.target.{TARGET}.time_ratio is 0.0: give a ratio above 0",
        f"budget.target.{TARGET}.load_memory_bytes is -1: give a whole number of bytes above 0",
        f"budget.target.{TARGET}.top1_drop_points is -0.1",
        "budget.target.coreml-ios16.time_ratio: only a device can measure it for coreml-ios16",
        "budget.target.litert-web limits nothing: give one of bytes, ",
    )
    for mistake in expected:
        assert told.count(mistake) == 1, mistake
    assert len(told.splitlines()) == len(expected)


def test_mistakes_outside_the_budget_come_along(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "times.json").write_text('{"schema": 1, "runtime": 3, "files": [{"sha256": "a"}]}')
    options = ["--bench", str(tmp_path / "times.json"), "--bench", str(tmp_path / "none.json")]
    command = ["check", str(run), "--budget", budget(tmp_path, "drop = 1"), "--target", "ios", *options]
    assert main(command) == 2
    told = capsys.readouterr().err
    for mistake in (
        "--target: a run says itself what its files are for",
        "--target: unknown target 'ios'",
        "unknown field 'drop'",
        "bench.files[0] lacks 'milliseconds'",
        "bench.runtime must be text, not 3",
        f"cannot read {tmp_path / 'none.json'}: No such file",
    ):
        assert mistake in told


def test_a_limit_nobody_measured_is_not_met_and_its_command_measures_it(run: Path, capsys: Any) -> None:
    (run / "bench.json").unlink()
    limits = budget(run, f"[target.{TARGET}]\nload_memory_bytes = 900_000_000\n")
    assert main(["check", str(run), "--budget", limits]) == 1
    told = capsys.readouterr().out
    assert f"Not measured: {TARGET}" in told
    assert f"{BLOCK}: " in told
    (command,) = set(re.findall(r"run edgeprune (bench .*), then check again", told))
    assert main([*shlex.split(command), "--rounds", "1"]) == 0
    assert main(["check", str(run), "--budget", limits]) == 0


def test_times_are_asked_for_where_the_target_runs(run: Path, capsys: Any) -> None:
    limits = budget(run, f"[target.{TARGET}]\ntime_ratio = 5.0\n")
    assert main(["check", str(run), "--budget", limits]) == 0
    assert "times on host stand in for those of litert-arm64 on arm64" in capsys.readouterr().out
    (run / "bench.json").unlink()
    assert main(["check", str(run), "--budget", limits]) == 1
    told = capsys.readouterr().out
    assert re.search(rf"dense-{TARGET}\.tflite \S+block80-{TARGET}\.tflite --runtime arm64 --json", told)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def add_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_a_byte, "its content is not what was measured"),
        (add_a_byte, "were measured"),
        (Path.unlink, "no such file in the run folder"),
    ],
)
def test_a_file_that_is_not_the_one_measured_fails(change: Any, words: str, run: Path, capsys: Any) -> None:
    limits = budget(run, "top1_drop_points = 5")
    assert main(["check", str(run), "--budget", limits]) == 0
    change(run / BLOCK)
    assert main(["check", str(run), "--budget", limits]) == 1
    told = capsys.readouterr().out
    assert f"Not the file that was measured: {BLOCK}" in told
    assert words in told


def processor_seconds() -> float:
    """Of the processes that have ended: steadier than the clock on a machine with other work."""
    used = os.times()
    return used.children_user + used.children_system


def test_a_run_of_40_files_is_checked_within_a_second(tmp_path: Path) -> None:
    rows = []
    template = write_network(tmp_path / "template.tflite").read_bytes()
    (tmp_path / "files").mkdir()
    for number in range(40):
        path = tmp_path / "files" / f"{number}.tflite"
        path.write_bytes(template + number.to_bytes(2, "little") * 1_000_000)
        layers = tuple(
            {
                "name": f"layer.{place}",
                "kind": "conv1x1",
                "shape": [96, 24, 1, 1],
                "zero_fraction": 0.8,
                "bits_per_weight": 3.5,
                "encoding": "sparse int8",
            }
            for place in range(55)
        )
        rows.append(
            make_row(
                variant=f"v{number}",
                path=f"files/{path.name}",
                bytes=path.stat().st_size,
                sha256=sha256(path),
                layers=layers,
            )
        )
    records.write(Report({}, {}, tuple(rows)), tmp_path)
    limits = budget(tmp_path, f"[bytes]\n{TARGET} = 3_000_000\n")
    command = [sys.executable, "-m", "edgeprune", "check", str(tmp_path), "--budget", limits]
    seconds = []
    for _ in range(3):
        began = processor_seconds()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds.append(processor_seconds() - began)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 1
    change_a_byte(tmp_path / "files" / "39.tflite")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


# --- Files from anywhere ------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_network(tmp_path / "model.tflite")


def test_a_file_from_elsewhere_is_held_against_the_bytes_of_its_target(
    model: Path, tmp_path: Path, capsys: Any
) -> None:
    size = model.stat().st_size
    assert main(["check", str(model), "--budget", budget(tmp_path, f"[bytes]\nlitert-web = {size}")]) == 0
    assert main(["check", str(model), "--budget", budget(tmp_path, f"[bytes]\nlitert-web = {size - 1}")]) == 1
    told = capsys.readouterr().out
    assert f"Not within budget: {model} (over budget)" in told
    assert f"{model}: {size:,} bytes for litert-web; 1 bytes over the budget of {size - 1:,}" in told


def test_a_file_from_elsewhere_is_held_against_its_download(model: Path, tmp_path: Path, capsys: Any) -> None:
    size = download_bytes(model)
    assert size < model.stat().st_size
    for most, status in ((size, 0), (size - 1, 1)):
        limits = budget(tmp_path, f"[target.{TARGET}]\ndownload_bytes = {most}\n")
        assert main(["check", str(model), "--budget", limits, "--target", TARGET]) == status
    assert f"downloads as {size:,} bytes, the limit is {size - 1:,}" in capsys.readouterr().out


def test_what_a_file_alone_cannot_tell_is_said(model: Path, tmp_path: Path, capsys: Any) -> None:
    text = f"top1_drop_points = 1.0\n[target.{TARGET}]\nbytes = 9_000_000\ntime_ratio = 0.5\n"
    limits = budget(tmp_path, text)
    assert main(["check", str(model), "--budget", limits]) == 1
    told = capsys.readouterr().out
    assert f"Not within budget: {model} (not measured)" in told
    assert "accuracy not measured: a file carries no labelled images: check the run that made it" in told
    assert f"time not measured: run edgeprune bench DENSE.tflite {model} --runtime arm64" in told
    assert main(["check", str(model), "--budget", limits, "--only", "bytes"]) == 0
    assert main(["check", str(model), "--budget", limits, "--only", "load_memory_bytes"]) == 2
    assert "has no such limit" in capsys.readouterr().err


def test_the_time_of_a_file_is_that_over_the_first_one_timed(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / BLOCK, tmp_path / "sparse.tflite")
    command = ["check", str(tmp_path / "sparse.tflite"), "--bench", str(run / "bench.json"), "--budget"]
    ratio = measured(run)["time_ratio"]
    for most, status in ((ratio * 1.01, 0), (ratio * 0.99, 1)):
        text = f"[target.{TARGET}]\ntime_ratio = {most}\nload_memory_bytes = 900_000_000"
        assert main([*command, budget(tmp_path, text)]) == status


@pytest.mark.parametrize(
    ("name", "targets", "options", "expected"),
    [
        ("block80-litert-web-int8", ("litert-web", "litert-web-int8"), [], "litert-web-int8"),
        (
            "model",
            ("coreml-ios16", "litert-arm64-int8"),
            [],
            "litert-arm64-int8",
        ),  # the only one of the format
        ("model", ("litert-web", "litert-arm64-int8"), [], "litert-web"),  # it stores float32
        ("model", ("litert-web", "litert-arm64"), ["--target", "litert-arm64"], "litert-arm64"),
    ],
)
def test_the_target_of_a_file(
    name: str, targets: tuple[str, ...], options: list[str], expected: str, tmp_path: Path, capsys: Any
) -> None:
    path = write_network(tmp_path / f"{name}.tflite")
    limits = budget(tmp_path, "[bytes]\n" + "\n".join(f"{target} = 9_000_000" for target in targets))
    assert main(["check", str(path), "--budget", limits, *options, "--json", "-"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["target"] == expected


def test_mistakes_about_files_come_together(model: Path, tmp_path: Path, capsys: Any) -> None:
    damaged = tmp_path / "damaged-litert-web.tflite"
    damaged.write_bytes(b"not a model")
    other = write_network(tmp_path / "other-litert-arm64-int8.tflite")
    limits = budget(tmp_path, "[bytes]\nlitert-web = 9\nlitert-arm64 = 9\n")
    files = [model, damaged, other, tmp_path / "none.tflite"]
    assert main(["check", *map(str, files), "--budget", limits]) == 2
    told = capsys.readouterr().err
    for mistake in (
        f"{model}: it may be for litert-web or litert-arm64: name it with --target",
        f"{damaged}: not a usable .tflite file",
        f"{other}: it is for litert-arm64-int8, which the budget does not name",
        "none.tflite: no such file",
    ):
        assert mistake in told
    assert main(["check", str(model), "--budget", limits, "--target", "coreml-ios16"]) == 2
    assert "coreml-ios16 takes .mlpackage files" in capsys.readouterr().err
    assert main(["check", str(model)]) == 2
    assert "files carry no budget" in capsys.readouterr().err
    assert main(["check", str(model), str(tmp_path), "--budget", limits]) == 2
    assert f"check one run folder, or {' and '.join(suffixes())} files" in capsys.readouterr().err


def test_a_package_from_elsewhere(finished_run: Path, tmp_path: Path, capsys: Any) -> None:
    package = Path(
        shutil.copytree(finished_run / "files/dense-coreml-ios16.mlpackage", tmp_path / "M.mlpackage")
    )
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    for most, status in ((size, 0), (size - 1, 1)):
        limits = budget(tmp_path, f"[bytes]\ncoreml-ios16 = {most}\ncoreml-ios18-int8 = 5\nlitert-web = 5\n")
        assert main(["check", str(package), "--budget", limits]) == status
    assert f"{package}: {size:,} bytes for coreml-ios16; 1 bytes over" in capsys.readouterr().out


# --- For programs -------------------------------------------------------------------------------------------


def test_junit_has_a_case_for_each_target_and_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "check.xml"
    limits = budget(tmp_path, f"[bytes]\n{TARGET} = 9_000_000\nlitert-web = 9_000_000\n")
    change_a_byte(run / BLOCK)
    assert main(["check", str(run), "--budget", limits, "--junit", str(out)]) == 1
    suite = ElementTree.parse(out).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    failed = {case.get("name"): case.findtext("failure") for case in suite.iter("testcase")}
    assert failed[TARGET] is None
    assert "the run has no file for this target" in (failed["litert-web"] or "")
    assert "its content is not what was measured" in (failed[BLOCK] or "")


def test_on_github_each_failure_is_an_annotation(
    run: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    limits = budget(tmp_path, f"[bytes]\n{TARGET} = 10\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["check", str(run), "--budget", limits]) == 1
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    (command,) = commands
    assert command.startswith(
        f"::error file={run / BLOCK},title={TARGET}%3A over budget::{TARGET}: no file fits"
    )
    assert f"%0A  {BLOCK}: " in command
    # JSON on stdout stays JSON.
    assert main(["check", str(run), "--budget", limits, "--json", "-"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["ok"] is False
    assert told.err.startswith("::error ")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert main(["check", str(run), "--budget", limits]) == 1
    assert "::" not in capsys.readouterr().out


def test_names_that_would_end_an_annotation_or_xml_are_escaped() -> None:
    path = Path("a,b:c%d\n::error::\x1b.tflite")
    entry = Entry(str(path), TARGET, Status.OVER, (), JudgedFile(path, ()), ("50 % over\r\n::warning::x",))
    checked = CheckResult("<run>", "", (entry,), "")
    (command,) = ci_annotations.github_annotations(checked)
    assert "\n" not in command
    assert command.startswith("::error file=a%2Cb%3Ac%25d%0A%3A%3Aerror%3A%3A\x1b.tflite,title=")
    assert command.endswith("::50 %25 over%0D%0A::warning::x")
    suite = ElementTree.fromstring(ci_annotations.junit(checked).encode()).find("testsuite")
    assert suite is not None
    assert suite.get("name") == "edgeprune check <run>"
    (case,) = suite
    assert case.get("name") == str(path).replace("\x1b", "\ufffd")


def test_json_tells_every_limit_of_every_file(run: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "check.json"
    limits = budget(tmp_path, f"top1_drop_points = 0.5\n[bytes]\n{TARGET} = 9_000_000\n")
    assert main(["check", str(run), "--budget", limits, "--json", str(out)]) == 0
    assert "Within budget" in capsys.readouterr().out
    plain = json.loads(out.read_text())
    (entry,) = plain["entries"]
    assert (plain["ok"], entry["ok"], entry["target"]) == (True, True, TARGET)
    assert entry["nearest"].endswith("dense-litert-arm64.tflite")
    limits_of = {Path(file["path"]).name: file["limits"] for file in entry["files"]}
    assert limits_of[Path(BLOCK).name][1] == {
        "limit": "top1_drop_points",
        "most": 0.5,
        "measured": 1.0,
        "ok": False,
        "reason": "loses 1 points, the limit is 0.5",
        "interval": None,
    }


def test_what_cannot_be_written_is_said_first(run: Path, tmp_path: Path, capsys: Any) -> None:
    options = ["--json", str(tmp_path / "no" / "a.json"), "--junit", str(tmp_path)]
    assert main(["check", str(run), "--budget", "nowhere.toml", *options]) == 2
    told = capsys.readouterr().err
    assert "a.json: no such folder" in told
    assert f"cannot write {tmp_path}: a folder" in told
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_with_confidence_too_few_images_do_not_pass(run: Path, capsys: Any) -> None:
    limits = budget(run, "top1_drop_points = 0.5")
    report = json.loads((run / "report.json").read_text())
    for row in report["rows"]:
        row.update(top1_drop_points=0.0, lost_images=0, gained_images=0, images=50)
    (run / "report.json").write_text(json.dumps(report))
    assert main(["check", str(run), "--budget", limits]) == 0
    capsys.readouterr()
    assert main(["check", str(run), "--budget", limits, "--confidence", "0.95", "--json", "-"]) == 1
    told = json.loads(capsys.readouterr().out)
    (status,) = {entry["status"] for entry in told["entries"]}
    assert status == "cannot be told"
    limit = told["entries"][0]["files"][0]["limits"][0]
    assert limit["interval"][0] < 0.5 < limit["interval"][1]
    assert "from 50 images it cannot be told whether that is within 0.5" in limit["reason"]
    for row in report["rows"]:
        row["images"] = 50_000
    (run / "report.json").write_text(json.dumps(report))
    assert main(["check", str(run), "--budget", limits, "--confidence", "0.95"]) == 0


def test_a_confidence_that_is_none_is_refused(run: Path, model: Path, capsys: Any) -> None:
    limits = budget(run, "top1_drop_points = 0.5")
    assert main(["check", str(run), "--budget", limits, "--confidence", "95"]) == 2
    assert "--confidence 95: above 0.5 and below 1" in capsys.readouterr().err
    assert main(["check", str(model), "--budget", limits, "--confidence", "0.9"]) == 2
    assert "files carry no labelled images" in capsys.readouterr().err
