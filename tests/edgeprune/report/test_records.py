from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import jsonschema
import pytest

from edgeprune.errors import UserError
from edgeprune.report import records, schema


def _set(data, path, value):
    """Set data["a"][0]["b"] for the path ("a", 0, "b")."""
    *above, last = path
    for key in above:
        data = data[key]
    data[last] = value


def test_what_is_written_reads_back_equal(report, tmp_path):
    written = report({"bytes": {"litert-arm64": 3_000_000}, "top1_drop_points": 0.5})
    path = records.write(written, tmp_path)
    assert path == tmp_path / "report.json"
    assert records.read(tmp_path) == written
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"], "nothing temporary is left"


def test_the_file_is_the_same_every_time_and_starts_with_the_schema(report, tmp_path):
    first = records.write(report(), tmp_path).read_bytes()
    again = records.write(records.read(tmp_path), tmp_path).read_bytes()
    assert again == first
    assert list(json.loads(first)) == [
        *("schema", "recipe", "environment", "rows", "trainings", "examinations", "maps"),
        "detections",
        *("not_examined", "sensitivity", "benches"),
    ]
    assert list(json.loads(first)["rows"][0]) == [
        *("variant", "target", "path", "bytes", "top1", "top1_drop_points", "agreement"),
        *("max_relative_error", "zero_fraction", "prunable_zero_fraction", "bits_per_weight"),
        *("sparse_runtime", "sparse_runtime_reason", "images", "sha256", "input_range", "layers"),
        *("miou", "miou_drop_points", "not_measured", "details", "download_bytes"),
        *("lost_images", "gained_images"),
    ]
    assert list(json.loads(first)["trainings"][0]) == [
        *("variant", "top1", "parameters", "macs", "seconds", "epochs", "left_dense"),
        *("miou", "not_measured", "trained_on", "details"),
    ]


def test_a_report_of_an_earlier_version_reads(report):
    """It has nothing of what came later, and says nothing about it."""
    data = records.to_json(report())
    for name in ("examinations", "not_examined", "sensitivity", "benches"):
        del data[name]
    older = records.from_json(data)
    assert older.rows == report().rows
    assert (older.analyses, older.not_examined, older.sensitivity, older.benches) == ((), {}, None, ())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("examinations", 1, "samples", 0, "confidence"),
            1.2,
            "report.examinations[1].samples[0].confidence is 1.2",
        ),
        (("examinations", 0, "robustness", "top1"), -0.1, "report.examinations[0].robustness.top1 is -0.1"),
        (
            ("examinations", 2, "robustness", "conditions", 1, "top1"),
            88.0,
            "report.examinations[2].robustness.conditions[1].top1 is 88.0",
        ),
        (
            ("examinations", 2, "robustness", "classes", 0, "images"),
            0,
            "classes[0].images is 0, it must be above 0",
        ),
        (("examinations", 1, "confusions", 0, "dense_images"), -1, "confusions[0].dense_images is -1"),
        (("benches", 0, "timings", 0, "median_ms"), -1.0, "report.benches[0].timings[0].median_ms is -1.0"),
        (
            ("sensitivity", "layers", 0, "drops_points"),
            [1.0],
            "layers[0].drops_points has 1 values for 2 sparsities",
        ),
        (("sensitivity", "top1"), 99.0, "report.sensitivity.top1 is 99.0"),
    ],
)
def test_what_cannot_be_true_of_an_examination_is_refused(report, path, value, message):
    data = records.to_json(report())
    _set(data, path, value)
    with pytest.raises(UserError, match=re.escape(message)):
        records.from_json(data)


def test_tuples_in_free_parts_become_lists(report):
    changed = dataclasses.replace(report(), environment={"input_px": (64, 64)})
    assert records.to_json(changed)["environment"] == {"input_px": [64, 64]}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "has schema 2, this version of edgeprune reads schema 1"),
        (("schema",), True, "has schema True"),
        (("rows",), {}, "report.rows must be a list, not {}"),
        (("rows", 0), 5, "report.rows[0] must be an object with named values, not 5"),
        (("rows", 1, "bytes"), 12.5, "report.rows[1].bytes must be a whole number, not 12.5"),
        (("rows", 1, "bytes"), True, "report.rows[1].bytes must be a whole number, not True"),
        (("rows", 1, "bytes"), 0, "report.rows[1].bytes is 0, it must be above 0"),
        (("rows", 0, "images"), -1, "report.rows[0].images is -1, it must be above 0"),
        (("rows", 0, "top1"), "0.9", "report.rows[0].top1 must be a finite number, not '0.9'"),
        (("rows", 0, "top1"), None, "report.rows[0] has no score: it must have one of top1, miou"),
        (("rows", 0, "top1"), math.nan, "report.rows[0].top1 must be a finite number, not nan"),
        (("rows", 0, "top1"), 99.3, "report.rows[0].top1 is 99.3, a fraction is from 0 to 1"),
        (("rows", 0, "bits_per_weight"), -1, "report.rows[0].bits_per_weight is -1.0, it cannot be below 0"),
        (("rows", 0, "variant"), None, "report.rows[0].variant must be text, not null"),
        (("rows", 0, "sparse_runtime"), 1, "report.rows[0].sparse_runtime must be true or false, not 1"),
        (
            ("rows", 5, "sparse_runtime_reason"),
            None,
            "sparse_runtime is null without a sparse_runtime_reason",
        ),
        (("rows", 0, "input_range"), [0], "report.rows[0].input_range must have 2 values, not 1"),
        (
            ("rows", 0, "input_range"),
            [0, "1"],
            "report.rows[0].input_range[1] must be a finite number, not '1'",
        ),
        (
            ("rows", 0, "speed"),
            2,
            "report.rows[0] has an unknown field 'speed': the fields are variant, target",
        ),
        (
            ("rows", 0, "layers", 1, "shape"),
            "8x8",
            "report.rows[0].layers[1].shape must be a list, not '8x8'",
        ),
        (("rows", 0, "layers", 0, "zeros"), 1, "report.rows[0].layers[0] has an unknown field 'zeros'"),
        (
            ("trainings", 0, "epochs", 2, "loss"),
            "low",
            "report.trainings[0].epochs[2].loss must be a number, not 'low'",
        ),
        (("trainings", 1, "macs"), -5, "report.trainings[1].macs is -5, it cannot be below 0"),
        (("recipe",), [], "report.recipe must be an object with named values, not []"),
        (("environment", "load"), math.inf, "report.environment.load is inf, which is not a finite number"),
        (("notes",), "", "report has an unknown field 'notes': the fields are recipe, environment, rows"),
    ],
)
def test_a_wrong_value_is_named(report, path, value, message):
    data = records.to_json(report())
    _set(data, path, value)
    with pytest.raises(UserError) as caught:
        records.from_json(data)
    assert message in str(caught.value)
    assert "schema 1" in str(caught.value)


@pytest.mark.parametrize("name", ["recipe", "environment", "rows"])
def test_a_missing_part_is_named(report, name):
    data = records.to_json(report())
    del data[name]
    with pytest.raises(UserError, match=f"report lacks '{name}'"):
        records.from_json(data)


def test_every_mistake_is_named_at_once(report):
    data = records.to_json(report())
    del data["rows"][0]["sha256"]
    data["rows"][2]["bytes"] = "many"
    data["rows"][2]["color"] = "red"
    with pytest.raises(UserError) as caught:
        records.from_json(data)
    assert len(caught.value.problems) == 4, "three mistakes and the schema that was expected"


@pytest.mark.parametrize("data", [None, [], {}, {"rows": []}])
def test_other_data_is_no_report(data):
    with pytest.raises(UserError, match="not an edgeprune report: it has no field 'schema'"):
        records.from_json(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {"data": {"mean": [0.1, math.nan]}}}, r"environment\.data\.mean\[1\] is nan"),
        ({"environment": {"folder": Path("images")}}, r"environment\.folder is a PosixPath"),
        ({"recipe": {1: "one"}}, "recipe: key 1 is not text"),
        (
            {"trainings": (records.Training("dense", "top1", math.inf, 1, 1, 1.0),)},
            r"trainings\[0\]\.top1 is inf",
        ),
    ],
)
def test_what_json_cannot_hold_is_refused_and_nothing_is_written(report, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        records.write(dataclasses.replace(report(), **changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_older_report_survives_a_refused_write(report, tmp_path):
    before = records.write(report(), tmp_path).read_bytes()
    with pytest.raises(UserError):
        records.write(dataclasses.replace(report(), recipe={"rate": math.nan}), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == before


def test_writing_into_a_folder_that_is_not_there_says_so(report, tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*report\.json: No such file or directory"):
        records.write(report(), tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "name the folder of a finished run"),
        (b"{", "report.json is not JSON"),
        (b"\xff\xfe", "report.json is not JSON"),
        (b'{"schema": NaN}', "NaN is not a number JSON knows"),
        (b'{"schema": 9}', "report.json: the report has schema 9"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        records.read(tmp_path)


MAPS = {
    "metric": "miou",
    "score": 0.61,
    "drop_points": 1.5,
    "not_measured": {"top1": "it gives maps"},
}


def test_a_row_of_maps_reads_back_with_its_score(report, row):
    maps = dataclasses.replace(report(), rows=(row(**MAPS),))
    (read,) = records.from_json(records.to_json(maps)).rows
    assert (read.metric, read.score, read.drop_points) == ("miou", 0.61, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"not_measured": {}}, "report.rows[0].top1 is null, and not_measured does not say why"),
        ({"top1": 0.5}, "report.rows[0] has top1 and miou: it must have one of top1, miou"),
        ({"miou_drop_points": None}, "report.rows[0].miou_drop_points does not go with its miou"),
        ({"top1_drop_points": 0.0}, "report.rows[0].top1_drop_points does not go with its top1"),
        ({"miou": 1.2}, "report.rows[0].miou is 1.2, a fraction is from 0 to 1"),
    ],
)
def test_a_row_of_maps_must_be_whole(changes, message, report, row):
    data = records.to_json(dataclasses.replace(report(), rows=(row(**MAPS),)))
    data["rows"][0] |= changes
    with pytest.raises(UserError) as caught:
        records.from_json(data)
    assert message in str(caught.value)
    validator = jsonschema.Draft202012Validator(schema.report_schema())
    assert not validator.is_valid(data)
