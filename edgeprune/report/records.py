"""The records of a report and `report.json`, the one source every page is rendered from."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from converters.files import write_text
from edgeprune import parsing
from edgeprune.errors import UserError
from edgeprune.evaluation.records import Examination, Row, Training, from_plain, to_plain
from edgeprune.tasks import TASKS, metrics

SCHEMA = 1
FILE_NAME = "report.json"

T = TypeVar("T")


@dataclass(frozen=True)
class LayerDrops:
    """One layer of the dense model, pruned alone: its weights, and points lost at each sparsity."""

    name: str
    weights: int
    drops_points: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What `edgeprune sensitivity` left in the run folder.

    Attributes:
        block: (out, in) channels zeroed together.
        images: how many.
        image_source: which, for people.
        metric: key of what it is told in; in JSON it stands in the place of "score".
        score: of the dense model on them, 0 to 1.
        sparsities: rising, each layer's columns.
        layers: in the order they have in the model.
        left_dense: layers that the block does not fit, and why.
    """

    block: tuple[int, int]
    images: int
    image_source: str
    metric: str
    score: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerDrops, ...]
    left_dense: dict[str, str]


@dataclass(frozen=True)
class Timing:
    """One file against the clock.

    Attributes:
        path: of the file, relative to the run folder.
        median_ms: of its rounds, in milliseconds.
        quartiles_ms: the lower and the upper, likewise.
        load_memory_bytes: what loading it and running it once adds to a process of LiteRT on the machine that
            timed it; None: not measured.
    """

    path: str
    median_ms: float
    quartiles_ms: tuple[float, float]
    load_memory_bytes: int | None = None


@dataclass(frozen=True)
class Bench:
    """What `edgeprune bench` left in the run folder about the run's files as they are.

    Attributes:
        source: the file in the run folder.
        runtime: name in `converters.runtimes.environments.RUNTIMES`, or of a phone ("android").
        description: of the runtime.
        version: of the runtime.
        emulated: its times say only how files compare.
        processor: of the machine.
        threads: of the runtime.
        rounds: how often each file was timed.
        timings: one a file; those the runtime refuses are left out.
    """

    source: str
    runtime: str
    description: str
    version: str
    emulated: bool
    processor: str
    threads: int
    rounds: int
    timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Report:
    """Everything a run measured. `to_json(report)` is what `report.json` holds.

    Attributes:
        recipe: the resolved recipe as plain data.
        environment: versions, machine, data: what is needed to repeat the run.
        rows: one a file.
        trainings: one a torch variant, the dense one first.
        analyses: one a torch variant, the dense one first, of the records of the tasks' sections.
        not_examined: why there is none, by variant.
        sensitivity: None: the run folder has none.
        benches: one a runtime or more; empty: nothing was timed.
    """

    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    trainings: tuple[Training, ...] = ()
    schema: int = field(default=SCHEMA)
    analyses: tuple[Any, ...] = ()
    not_examined: dict[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    benches: tuple[Bench, ...] = ()

    def of(self, kind: type[T]) -> tuple[T, ...]:
        """The analyses of one kind."""
        return tuple(found for found in self.analyses if isinstance(found, kind))


def sections() -> dict[str, type[Any]]:
    """The lists of `report.json` that the tasks' analyses are in, and their records."""
    return {task.section.key: task.section.record for task in TASKS.values()}


def to_json(report: Report) -> dict[str, Any]:
    """Return what `report.json` holds: plain dicts and lists, `schema` first, the rest in field order.

    Raises:
        UserError: something JSON cannot hold (NaN, an infinity, an object), each named.
    """
    fields: dict[str, Any] = {}
    for name, value in dataclasses.asdict(
        dataclasses.replace(report, rows=(), trainings=(), analyses=())
    ).items():
        if name == "analyses":
            fields |= {
                key: [dataclasses.asdict(found) for found in report.of(kind)]
                for key, kind in sections().items()
            }
        else:
            fields[name] = value
    fields["rows"] = [to_plain(row) for row in report.rows]
    fields["trainings"] = [to_plain(training) for training in report.trainings]
    if report.sensitivity is not None:
        fields["sensitivity"] = _by_key(fields["sensitivity"])
    data = {"schema": fields.pop("schema"), **fields}
    problems = [problem for key in data for problem in parsing.not_plain(data[key], key)]
    if problems:
        raise UserError(problems)
    return {key: _lists(value) for key, value in data.items()}


def from_json(data: object) -> Report:
    """Make the `Report` that `to_json` was given.

    Raises:
        UserError: another schema; or every field that is missing, unknown, of another type or out of range.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise UserError(
            f"not an edgeprune report: it has no field 'schema' (this version reads schema {SCHEMA})"
        )
    if data["schema"] != SCHEMA or isinstance(data["schema"], bool):
        raise UserError(
            f"the report has schema {data['schema']!r}, this version of edgeprune reads schema {SCHEMA}: "
            "make the report again with this version, or read it with the version that wrote it"
        )
    problems: list[str] = []
    report = _build(data, problems)
    if report is not None and not problems:
        problems += _problems(report)
    if problems or report is None:
        raise UserError([*problems, f"(a report of schema {SCHEMA} was expected)"])
    return report


def _build(data: dict[str, Any], problems: list[str]) -> Report | None:
    """A report of the right types; what is wrong is added to `problems`."""
    readers: dict[str, Callable[[Any, str], Any]] = {
        "rows": functools.partial(from_plain, Row),
        "trainings": functools.partial(from_plain, Training),
        **{key: functools.partial(parsing.build, kind) for key, kind in sections().items()},
    }
    parts = {key: _records(read, data, key, problems) for key, read in readers.items()}
    rest = {key: value for key, value in data.items() if key not in parts or key == "rows"}
    rest |= {"rows": []} if "rows" in rest else {}
    rest |= {"sensitivity": _by_metric(rest["sensitivity"])} if "sensitivity" in rest else {}
    try:
        report = parsing.build(Report, rest, "report")
    except UserError as error:
        problems += error.problems
        return None
    analyses = tuple(found for key in sections() for found in parts[key])
    return dataclasses.replace(report, rows=parts["rows"], trainings=parts["trainings"], analyses=analyses)


def _records(
    read: Callable[[Any, str], Any], data: dict[str, Any], key: str, problems: list[str]
) -> tuple[Any, ...]:
    """The records of a list of the report; what is wrong with them is added to `problems`."""
    entries = data.get(key, [])
    if not isinstance(entries, (list, tuple)):
        problems.append(f"report.{key} must be a list, not {parsing.shown(entries)}")
        return ()
    found = []
    for index, entry in enumerate(entries):
        try:
            found.append(read(entry, f"report.{key}[{index}]"))
        except UserError as error:
            problems += error.problems
    return tuple(found)


def _by_key(sensitivity: dict[str, Any]) -> dict[str, Any]:
    """What `edgeprune sensitivity` found with its score under the metric's key."""
    metric = sensitivity.pop("metric")
    return {metric if name == "score" else name: value for name, value in sensitivity.items()}


def _by_metric(sensitivity: Any) -> Any:
    """The same with the metric named, and the score called so."""
    keys = {metric.key for metric in metrics()}
    found = [name for name in sensitivity if name in keys] if isinstance(sensitivity, dict) else []
    if len(found) != 1:
        return sensitivity
    named = {"score" if name in keys else name: value for name, value in sensitivity.items()}
    return named | {"metric": found[0]}


def to_text(report: Report) -> str:
    """The text of `report.json`.

    Raises:
        UserError: see `to_json`.
    """
    return json.dumps(to_json(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(report: Report, folder: Path) -> Path:
    """Write `report.json` into `folder`, whole or not at all, and return its path.

    Raises:
        UserError: it holds something JSON cannot, or `folder` cannot be written to.
    """
    return write_text(folder / FILE_NAME, to_text(report))


def read(folder: Path) -> Report:
    """Read `report.json` of a run folder.

    Raises:
        UserError: it is not there, is not JSON, or is not a report of this schema; see `from_json`.
    """
    path = folder / FILE_NAME
    data = parsing.read_json(path, f"name the folder of a finished run, it holds {FILE_NAME}")
    try:
        return from_json(data)
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from error


FRACTIONS = (
    "score", "top1", "miou", "iou", "dense_iou", "agreement",
    "zero_fraction", "prunable_zero_fraction", "corrupted_top1", "confidence",
    "dense_confidence",
)  # fmt: skip
NOT_NEGATIVE = (
    "bits_per_weight", "max_relative_error", "parameters", "macs", "seconds", "place", "pixels", "both_right",
    "only_dense_right", "only_variant_right", "dense_images", "median_ms",
    "load_memory_bytes", "download_bytes",
)  # fmt: skip
POSITIVE = ("bytes", "images", "label_images", "rounds", "threads", "weights")


def _problems(report: Report) -> Iterator[str]:
    """Values of the right type that cannot be true."""
    from converters.facts import LayerFacts

    records = _parts("rows", report.rows)
    for where, row in records:
        if row.sparse_runtime is None and not row.sparse_runtime_reason:
            yield f"{where}.sparse_runtime is null without a sparse_runtime_reason"
        for index, layer in enumerate(row.layers):
            try:
                parsing.build(LayerFacts, layer, f"{where}.layers[{index}]")
            except UserError as error:
                yield from error.problems
    for place, training in enumerate(report.trainings):
        for index, epoch in enumerate(training.epochs):
            for name, value in epoch.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    yield f"report.trainings[{place}].epochs[{index}].{name} must be a number, not {value!r}"
    records += _parts("trainings", report.trainings)
    for where, examination in _parts("examinations", report.of(Examination)):
        records += [(where, examination), (f"{where}.robustness", examination.robustness)]
        records += _parts("confusions", examination.confusions, where)
        records += _parts("samples", examination.samples, where)
        records += _parts("robustness.conditions", examination.robustness.conditions, where)
        records += _parts("robustness.classes", examination.robustness.classes, where)
    for key, kind in sections().items():
        for where, found in _parts(key, report.of(kind)):
            records += [(where, found), *_parts("classes", getattr(found, "classes", ()), where)]
    for where, bench in _parts("benches", report.benches):
        records += [(where, bench), *_parts("timings", bench.timings, where)]
    if report.sensitivity is not None:
        yield from _sensitivity_problems(report.sensitivity)
        records.append(("report.sensitivity", report.sensitivity))
    for where, record in records:
        values = vars(record)
        for name in FRACTIONS:
            if values.get(name) is not None and not 0 <= values[name] <= 1:
                told = values["metric"] if name == "score" else name
                yield f"{where}.{told} is {values[name]}, a fraction is from 0 to 1"
        for name in NOT_NEGATIVE:
            if values.get(name) is not None and values[name] < 0:
                yield f"{where}.{name} is {values[name]}, it cannot be below 0"
        for name in POSITIVE:
            if name in values and values[name] <= 0:
                yield f"{where}.{name} is {values[name]}, it must be above 0"


def _parts(name: str, parts: Sequence[Any], above: str = "report") -> list[tuple[str, Any]]:
    """Each part with the place it has in the report."""
    return [(f"{above}.{name}[{index}]", part) for index, part in enumerate(parts)]


def _sensitivity_problems(sensitivity: Sensitivity) -> Iterator[str]:
    expected = len(sensitivity.sparsities)
    for where, layer in _parts("sensitivity.layers", sensitivity.layers):
        if len(layer.drops_points) != expected:
            yield f"{where}.drops_points has {len(layer.drops_points)} values for {expected} sparsities"


def _lists(data: Any) -> Any:
    """`data` with each tuple as a list, as JSON reads it back."""
    if isinstance(data, dict):
        return {key: _lists(value) for key, value in data.items()}
    return [_lists(value) for value in data] if isinstance(data, (list, tuple)) else data
