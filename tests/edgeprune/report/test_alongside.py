"""What `edgeprune bench` and `edgeprune sensitivity` leave in a run folder, and what follows from it."""

from __future__ import annotations

import dataclasses
import json

import pytest

from converters.format import FORMATS
from edgeprune.errors import UserError
from edgeprune.evaluation import sensitivity_result
from edgeprune.evaluation.records import Row
from edgeprune.report import alongside, records, summary


def timed(row: Row, median_ms: float | None) -> dict[str, object]:
    quartiles = None if median_ms is None else [median_ms - 0.1, median_ms + 0.2]
    return {
        "path": f"elsewhere/{row.path}",
        "sha256": row.sha256,
        "milliseconds": [] if median_ms is None else [median_ms],
        "median_ms": median_ms,
        "quartiles_ms": quartiles,
        "speed": 1.0,
        "load_memory_bytes": None if median_ms is None else int(1e6 * median_ms),
    }


def bench(files: list[dict[str, object]], **changes: object) -> str:
    plain: dict[str, object] = {
        "schema": 1,
        "runtime": "arm64",
        "description": "LiteRT on a 64-bit ARM processor, emulated",
        "version": "LiteRT 2.1.0",
        "emulated": True,
        "clock": "processor time",
        "processor": "Some CPU",
        "threads": 1,
        "rounds": 20,
        "files": files,
    }
    return json.dumps(plain | changes)


@pytest.fixture
def rows(row):
    names = ("dense", "block80", "channels", "block95")
    drops = (0.0, 0.5000000000000004, 0.2, 3.0)
    return tuple(
        row(
            variant=name,
            path=f"files/{name}-litert-arm64.tflite",
            sha256=f"{i}a" * 32,
            bytes=1000 - 100 * i,
            drop_points=drop,
        )
        for i, (name, drop) in enumerate(zip(names, drops, strict=True))
    )


def recommended(rows, folder) -> summary.Recommendation:
    benches = alongside.benches(folder, rows)
    report = records.Report({"output": "runs/my run"}, {}, rows, benches=benches)
    return summary.recommendation("litert-arm64", report)


def test_times_belong_to_files_by_their_digest(rows, tmp_path):
    other = timed(rows[0], 0.1) | {"sha256": "ff" * 32}
    files = [timed(rows[2], 2.0), other, timed(rows[0], 3.0), timed(rows[1], None), timed(rows[2], 9.0)]
    (tmp_path / "bench-arm64.json").write_text(bench(files))
    (found,) = alongside.benches(tmp_path, rows)
    assert (found.source, found.runtime, found.emulated, found.rounds) == (
        "bench-arm64.json",
        "arm64",
        True,
        20,
    )
    assert [(timing.path, timing.median_ms) for timing in found.timings] == [
        (rows[0].path, 3.0),
        (rows[2].path, 2.0),
    ]
    assert found.timings[1].quartiles_ms == (1.9, 2.2)
    assert found.timings[1].load_memory_bytes == 2_000_000
    (tmp_path / "bench-arm64.json").write_text(bench([other]))
    assert alongside.benches(tmp_path, rows) == (), "none of its files is the run's"


def test_the_smallest_and_the_fastest_lose_no_more_than_half_a_point(rows, tmp_path):
    (tmp_path / "bench.json").write_text(
        bench([timed(r, ms) for r, ms in zip(rows, (4, 2.0, 3.0, 1.0), strict=True)])
    )
    found = recommended(rows, tmp_path)
    assert (found.accurate, found.smallest.variant) == (3, "channels"), "0.5000000000000004 is 0.5"
    (fastest,) = found.fastest
    assert (fastest.row.variant, fastest.timing.median_ms, fastest.timed) == ("block80", 2.0, 3)
    assert fastest.on_target
    assert (found.not_timed, found.command) == ("", "")


def test_without_times_there_is_the_command_that_takes_them(rows, tmp_path):
    found = recommended(rows, tmp_path)
    assert found.fastest == ()
    assert found.not_timed == "no times from its runtime in the run folder"
    words = found.command.split("'")
    assert found.command.startswith("edgeprune bench 'runs/my run/files/dense-litert-arm64.tflite' ")
    assert found.command.endswith("--runtime arm64 --json 'runs/my run/bench-litert-arm64.json'")
    assert len([word for word in words if word.endswith(".tflite")]) == 4


def test_times_of_another_runtime_do_not_stand_for_the_target(rows, tmp_path):
    (tmp_path / "bench.json").write_text(bench([timed(rows[0], 1.0)], runtime="host", emulated=False))
    found = recommended(rows, tmp_path)
    (fastest,) = found.fastest
    assert (fastest.on_target, fastest.timed) == (False, 1)
    assert "--runtime arm64" in found.command


def test_nothing_is_recommended_where_all_lose_too_much(rows, tmp_path):
    found = recommended(rows[3:], tmp_path)
    assert (found.accurate, found.smallest, found.fastest, found.command) == (0, None, (), "")


def test_core_ml_cannot_be_timed_here(row):
    report = records.Report({}, {}, (row(target="coreml-ios16", path="files/a.mlpackage"),))
    found = summary.recommendation("coreml-ios16", report)
    assert (found.not_timed, found.command) == (FORMATS["coreml"].no_times, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no 'files' of schema 1 in it"),
        (bench([], schema=2), "no 'files' of schema 1 in it"),
        (bench([], rounds="many"), "bench.rounds must be a whole number, not 'many'"),
        (
            bench([{"sha256": 5, "milliseconds": [1.0], "median_ms": 1.0, "quartiles_ms": None}]),
            "bench.files[0].sha256 must be text",
        ),
    ],
)
def test_another_file_of_that_name_is_refused(rows, tmp_path, text, message):
    (tmp_path / "bench-x.json").write_text(text)
    with pytest.raises(UserError) as refused:
        alongside.benches(tmp_path, rows)
    assert message in str(refused.value)
    assert "bench-x.json" in str(refused.value)


def test_sensitivity_is_taken_over(tmp_path):
    assert alongside.sensitivity(tmp_path) is None
    layers = (sensitivity_result.LayerSensitivity("a.0", 96, (0.75, 0.5), (0.1, 0.2)),)
    measured = sensitivity_result.Sensitivity(
        schema=sensitivity_result.SCHEMA,
        model="m",
        block=(1, 4),
        images=100,
        image_source="some images",
        score=0.875,
        loss=0.3,
        sparsities=(0.5, 0.9),
        layers=layers,
        left_dense={"b": "too narrow"},
        metric="top1",
    )
    (tmp_path / "sensitivity.json").write_text(json.dumps(sensitivity_result.to_plain(measured)))
    found = alongside.sensitivity(tmp_path)
    assert found.layers == (records.LayerDrops("a.0", 96, (12.5, 37.5)),)
    expected = {"metric": "top1", "score": 0.875, "images": 100, "block": (1, 4)}
    assert dataclasses.asdict(found).items() >= expected.items()
    (tmp_path / "sensitivity.json").write_text("{}")
    with pytest.raises(UserError, match="lacks"):
        alongside.sensitivity(tmp_path)
