"""The schema of `report.json`: what is written down is what the records say, and what the reader takes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgeprune.errors import UserError
from edgeprune.report import records, schema

WRITTEN = Path(__file__).parents[3] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    written = json.loads(WRITTEN.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(written)
    return jsonschema.Draft202012Validator(written)


def test_the_schema_that_is_written_down_is_that_of_the_records() -> None:
    made = schema.to_text(schema.report_schema())
    again = "python -m edgeprune.report.schema > docs/report.schema.json"
    assert WRITTEN.read_text(encoding="utf-8") == made, f"a record changed: {again}"


def test_every_field_of_a_row_is_described() -> None:
    row = schema.report_schema()["$defs"]["Row"]
    assert {name for name, field in row["properties"].items() if "description" not in field} == set()


def test_the_report_of_a_run_is_valid(finished_run: Path, validator: jsonschema.Draft202012Validator) -> None:
    data = json.loads((finished_run / records.FILE_NAME).read_text(encoding="utf-8"))
    assert len(data["rows"]) > 1
    assert data["rows"][0]["layers"]
    validator.validate(data)


def change(data: Any, where: str, value: Any) -> None:
    *path, last = (int(step) if step.isdigit() else step for step in where.split("."))
    for step in path:
        data = data[step]
    if value is None and last in data:
        del data[last]
    else:
        data[last] = value


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("schema", 2),
        ("schema", None),
        ("rows.0.bytes", None),
        ("rows.0.bytes", 0),
        ("rows.0.bytes", 1.5),
        ("rows.0.bytes", True),
        ("rows.0.top1", 1.1),
        ("rows.0.top1", "high"),
        ("rows.0.sparse_runtime", "yes"),
        ("rows.4.sparse_runtime_reason", ""),
        ("rows.0.colour", "red"),
        ("rows.0.input_range", [0.0]),
        ("rows.0.layers.0.kind", None),
        ("rows.0.layers.0.depth", 3),
        ("trainings.0.seconds", -1),
        ("trainings.0.epochs.0.loss", "low"),
        ("trainings.0.left_dense", {"features.0": 4}),
        ("notes", []),
    ],
)
def test_schema_and_reader_refuse_the_same(
    where: str, value: Any, report: Any, validator: jsonschema.Draft202012Validator
) -> None:
    data = records.to_json(report())
    validator.validate(data)
    records.from_json(data)
    wrong = copy.deepcopy(data)
    change(wrong, where, value)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(wrong)
    with pytest.raises(UserError):
        records.from_json(wrong)


def test_the_report_of_maps_is_valid(report: Any, validator: jsonschema.Draft202012Validator) -> None:
    data = records.to_json(report())
    lost = {"miou": 0.6, "miou_drop_points": 1.0, "top1": None, "top1_drop_points": None}
    reason = {"not_measured": {"top1": "it gives maps"}}
    for row in data["rows"]:
        row |= lost | reason
    for training in data["trainings"]:
        training |= {"miou": 0.6, "top1": None} | reason
    validator.validate(data)
    records.from_json(data)
    del data["trainings"][0]["not_measured"]
    assert not validator.is_valid(data)
