"""What follows from a report: sizes against dense, what to recommend, what image corruptions break."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.format import FORMATS, Format
from converters.gains import Gain
from converters.gains import gains as known_gains
from converters.targets import TARGETS
from edgeprune import budget as budgets
from edgeprune import tasks
from edgeprune.evaluation.records import ClassTop1, Examination, Row
from edgeprune.report.formatting import bytes_exact, bytes_human, points_with_error
from edgeprune.report.records import Bench, LayerDrops, Report, Timing
from edgeprune.report.verdict import (
    RECOMMENDED_DROP_POINTS,
    FileVerdict,
    TargetVerdict,
    Verdict,
    evaluate,
    smallest_first,
)
from edgeprune.tasks.task import Metric

DENSE = "dense"
PHONE, PHONE_PLATFORM = "android", "arm64"
CLASSES_SHOWN, LAYERS_SHOWN, REASONS_SHOWN = 5, 3, 3
REASON = "; ["  # Between the reasons of the linter, each of which begins with its rule.


@dataclass(frozen=True)
class RankedFile:
    """One file among those of its target.

    Attributes:
        row: as measured.
        times_smaller: bytes of the dense file of the same target over its own; None without a dense file.
        efficient: no other file of the same format is at least as small and at least as accurate.
        verdict: against the limits of its target.
        ship: whether it is the one to ship for its target.
    """

    row: Row
    times_smaller: float | None
    efficient: bool
    verdict: FileVerdict
    ship: bool


@dataclass(frozen=True)
class Fastest:
    """The fastest of those files of a target that may be recommended, on one runtime.

    Attributes:
        row: the file.
        timing: its own.
        bench: where it was timed.
        timed: how many of them were timed there.
        on_target: whether that runtime stands for the target's.
    """

    row: Row
    timing: Timing
    bench: Bench
    timed: int
    on_target: bool


@dataclass(frozen=True)
class Recommendation:
    """Of the files of a target that lose no more than `RECOMMENDED_DROP_POINTS`: the smallest, the fastest.

    Attributes:
        accurate: how many files lose no more.
        smallest: None where all lose more.
        fastest: one a measurement.
        not_timed: why nothing was timed on the target's runtime; "" where it was.
        command: what would; "" where nothing here can, or it was.
    """

    accurate: int
    smallest: Row | None
    fastest: tuple[Fastest, ...]
    not_timed: str
    command: str


@dataclass(frozen=True)
class Group:
    """The files of one target, in the report's order."""

    target: str
    description: str
    verdict: TargetVerdict
    files: tuple[RankedFile, ...]
    recommended: Recommendation


@dataclass(frozen=True)
class Trial:
    """All variants on the same images, made worse in one way.

    Attributes:
        corruption: "noise", ...; "none" for the images as they are.
        strength: None for the images as they are.
        unit: what the strength counts; "" for the images as they are.
        top1: by variant, 0 to 1.
        points: lost against the dense model, by variant; empty where that was not examined.
    """

    corruption: str
    strength: float | None
    unit: str
    top1: dict[str, float]
    points: dict[str, float]


@dataclass(frozen=True)
class ClassLoss:
    """One class of a variant on corrupted images, `points` below the dense model."""

    name: str
    images: int
    dense_top1: float
    top1: float
    points: float


def verdict(report: Report) -> Verdict:
    """The verdict on the budget that the report's own recipe names (none, when it names none).

    Raises:
        UserError: that budget is invalid.
    """
    return evaluate(budgets.from_plain(report.recipe.get("budget")), report.rows)


def metric(report: Report) -> Metric:
    """What its models are measured by; of a report without any, what the first of all tasks is."""
    measured = [*(row.metric for row in report.rows), *(training.metric for training in report.trainings)]
    return tasks.metric(measured[0]) if measured else tasks.metrics()[0]


def formats(report: Report) -> list[Format]:
    """Those of the files, each once, in the report's order."""
    names = [TARGETS[row.target].format for row in report.rows if row.target in TARGETS]
    return [FORMATS[name] for name in dict.fromkeys(names)]


def details(report: Report) -> dict[str, str]:
    """Headings of what else is told of the files' outputs, by their names in JSON."""
    found = dict.fromkeys(name for row in report.rows for name in row.details)
    known = metric(report).details
    return {name: known.get(name, name) for name in found}


def groups(report: Report, verdict: Verdict) -> list[Group]:
    """Sort the files by target, in the verdict's order; a budgeted target may have no file."""
    return [
        Group(
            target.target,
            _description(target.target),
            target,
            tuple(_files(target, report.rows)),
            recommendation(target.target, report),
        )
        for target in verdict.targets
    ]


def recommendation(target: str, report: Report) -> Recommendation:
    """What to take for a target whatever the budget: the smallest and the fastest of the accurate files."""
    # Rounded: 5 images of 1,000 are 0.5 points, but 0.5000000000000004 as a difference of floats.
    own = [row for row in report.rows if row.target == target]
    accurate = [row for row in own if round(row.drop_points, 6) <= RECOMMENDED_DROP_POINTS]
    smallest = min(accurate, key=smallest_first, default=None)
    fastest = tuple(found for bench in report.benches if (found := _fastest(target, accurate, bench)))
    if smallest is None or any(found.on_target for found in fastest):
        return Recommendation(len(accurate), smallest, fastest, "", "")
    format = _format(target)
    reason = format.no_times if format else f"{target} is no target of this version"
    if reason is not None:
        return Recommendation(len(accurate), smallest, fastest, reason, "")
    reason = "no times from its runtime in the run folder"
    return Recommendation(len(accurate), smallest, fastest, reason, _bench_command(target, own, report))


def _fastest(target: str, rows: Sequence[Row], bench: Bench) -> Fastest | None:
    timings = {timing.path: timing for timing in bench.timings}
    timed = [row for row in rows if row.path in timings]
    if not timed:
        return None
    best = min(timed, key=lambda row: timings[row.path].median_ms)
    return Fastest(best, timings[best.path], bench, len(timed), bench.runtime in _runtimes(target))


def _runtimes(target: str) -> tuple[str | None, ...]:
    """Whose times are those of a target: the emulator's, and a phone's where it runs on one."""
    known = TARGETS.get(target)  # A report may be of a version that had others.
    phones = (PHONE,) if known and known.platform == PHONE_PLATFORM else ()
    return (_runtime(target), *phones)


def _runtime(target: str) -> str | None:
    """The runtime of `edgeprune bench` that stands for a target's; None where none does."""
    from converters.runtimes.environments import RUNTIMES

    platform = TARGETS[target].platform if target in TARGETS else None
    return next((name for name, known in RUNTIMES.items() if known.lint_runtime == platform), None)


def _bench_command(target: str, rows: Sequence[Row], report: Report) -> str:
    """The command that times these files on the runtime of their target."""
    folder = run_folder(report)
    files = [f"{folder}/{row.path}" for row in rows]
    runtime = _runtime(target) or "host"
    words = ["edgeprune", "bench", *files, "--runtime", runtime, "--json", f"{folder}/bench-{target}.json"]
    return shlex.join(words)


def run_folder(report: Report) -> str:
    """Where the run was written, as its recipe says."""
    output = report.recipe.get("output")
    return output if isinstance(output, str) and output else "RUN"


def not_timed(groups: Iterable[Group]) -> dict[str, list[str]]:
    """The targets on which nothing here can tell the fastest, by the reason."""
    found: dict[str, list[str]] = {}
    for group in groups:
        if group.recommended.not_timed and not group.recommended.command:
            found.setdefault(group.recommended.not_timed, []).append(group.target)
    return found


def not_examined(report: Report) -> dict[str, list[str]]:
    """The variants that were not examined, by the reason."""
    found: dict[str, list[str]] = {}
    for variant, reason in report.not_examined.items():
        found.setdefault(reason, []).append(variant)
    return found


def most_sensitive(report: Report) -> list[LayerDrops]:
    """The layers that lose most, all sparsities taken together; only those that lose anything."""
    layers = report.sensitivity.layers if report.sensitivity else ()
    losing = [layer for layer in layers if sum(layer.drops_points) > 0]
    return sorted(losing, key=lambda layer: -sum(layer.drops_points))[:LAYERS_SHOWN]


def trials(report: Report) -> list[Trial]:
    """The images as they are, then every condition in the order of the examinations."""
    clean: dict[str, float] = {}
    conditions: dict[tuple[str, float, str], dict[str, float]] = {}
    for examination in report.of(Examination):
        clean[examination.variant] = examination.robustness.top1
        for condition in examination.robustness.conditions:
            key = (condition.corruption, condition.strength, condition.unit)
            conditions.setdefault(key, {})[examination.variant] = condition.top1
    if not clean:
        return []
    return [
        Trial("none", None, "", clean, _points(clean)),
        *(Trial(*key, top1, _points(top1)) for key, top1 in conditions.items()),
    ]


def worst_trial(report: Report, variant: str) -> Trial | None:
    """The condition under which a variant loses most against the dense model; None where none is known."""
    known = [trial for trial in trials(report) if trial.strength is not None and variant in trial.points]
    return max(known, key=lambda trial: trial.points[variant], default=None)


def classes_lost(report: Report, variant: str) -> list[ClassLoss]:
    """The classes in which a variant loses most against the dense model on corrupted images; only losses."""
    dense, own = (_classes(report, name) for name in (DENSE, variant))
    losses = [
        ClassLoss(
            name,
            known.images,
            dense[name].corrupted_top1,
            known.corrupted_top1,
            100 * (dense[name].corrupted_top1 - known.corrupted_top1),
        )
        for name, known in own.items()
        if name in dense and known.corrupted_top1 < dense[name].corrupted_top1
    ]
    return sorted(losses, key=lambda loss: -loss.points)[:CLASSES_SHOWN]


def _points(top1: Mapping[str, float]) -> dict[str, float]:
    dense = top1.get(DENSE)
    if dense is None:
        return {}
    return {name: 100 * (dense - value) for name, value in top1.items() if name != DENSE}


def _classes(report: Report, variant: str) -> dict[str, ClassTop1]:
    found: Examination | None = next((e for e in report.of(Examination) if e.variant == variant), None)
    return {} if found is None else {known.name: known for known in found.robustness.classes}


def is_efficient(row: Row, rows: Iterable[Row]) -> bool:
    """Whether no other of `rows` of the same format is as small and as accurate, and better in one."""
    return not any(
        other.bytes <= row.bytes
        and other.score >= row.score
        and (other.bytes < row.bytes or other.score > row.score)
        for other in rows
        if format_name(other.target) == format_name(row.target)
    )


def format_name(target: str) -> str:
    """The file format of a target in words; files of different formats never compete."""
    format = _format(target)
    return format.title if format else target


def not_measured(rows: Iterable[Row]) -> list[str]:
    """What the rows say nothing of, by the formats of their files."""
    formats = {format.name: format for row in rows if (format := _format(row.target))}
    return [format.not_measured for format in formats.values() if format.not_measured]


def _format(target: str) -> Format | None:
    return FORMATS[TARGETS[target].format] if target in TARGETS else None


def sparse_word(row: Row) -> str:
    """Whether the runtime uses sparse kernels: "yes", "no" or "unknown"."""
    return {True: "yes", False: "no", None: "unknown"}[row.sparse_runtime]


def gains(rows: Sequence[Row]) -> list[Gain]:
    """What compression buys where the files of these rows run."""
    return known_gains({TARGETS[row.target].platform for row in rows if row.target in TARGETS})


def download(row: Row, *, exact: bool = True) -> str:
    """Bytes that a store sends, for people; a dash where nobody measured them."""
    if row.download_bytes is None:
        return "–"
    return bytes_exact(row.download_bytes) if exact else bytes_human(row.download_bytes)


def lost(row: Row) -> str:
    """Points lost, for people, with their standard error where the images tell one."""
    return points_with_error(row.drop_points, row.standard_error_points)


def sparse_reasons(rows: Sequence[Row], answer: bool | None) -> dict[str, str]:
    """Which files have this answer, in words, by the reason given."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.sparse_runtime is answer and row.sparse_runtime_reason:
            found.setdefault(shortened(row.sparse_runtime_reason), []).append(row)
    every = list(dict.fromkeys(row.target for row in rows))
    return {reason: _in_words(own, every) for reason, own in found.items()}


def shortened(reason: str) -> str:
    """The first of many reasons, and how many more there are.

    >>> shortened("[op] a; [op] b; [op] c; [op] d; [end] e")
    '[op] a; [op] b; [op] c; and 2 more, which edgeprune inspect lists'
    """
    parts = reason.split(REASON)
    more = len(parts) - REASONS_SHOWN
    shown = REASON.join(parts[:REASONS_SHOWN])
    return f"{shown}; and {more} more, which edgeprune inspect lists" if more > 0 else reason


def flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Write nested settings as pairs of a readable name and a value.

    >>> flat({"seed": 0, "data": {"image_size_px": 64}})
    [('seed', 0), ('data: image size px', 64)]
    """
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = above + key.replace("_", " ")
        pairs += flat(value, f"{name}: ") if isinstance(value, dict) and value else [(name, value)]
    return pairs


def _in_words(rows: Sequence[Row], every: Sequence[str]) -> str:
    """Name files by variant and target, those of the same targets together."""
    targets: dict[str, list[str]] = {}
    for row in rows:
        targets.setdefault(row.variant, []).append(row.target)
    same: dict[str, list[str]] = {}  # the variants by the targets they share
    for variant, own in targets.items():
        where = "every target" if own == list(every) and len(own) > 1 else ", ".join(own)
        same.setdefault(where, []).append(variant)
    return "; ".join(f"{', '.join(names)} on {where}" for where, names in same.items())


def variants(report: Report) -> list[str]:
    """Every variant once, dense first, then as the report has them."""
    names = [training.variant for training in report.trainings] + [row.variant for row in report.rows]
    names += [examination.variant for examination in report.analyses]
    return sorted(dict.fromkeys(names), key=lambda name: name != DENSE)


def _files(target: TargetVerdict, rows: Sequence[Row]) -> Iterable[RankedFile]:
    dense = next((file.row for file in target.files if file.row.variant == DENSE), None)
    ship = target.ship
    for verdict in target.files:
        row = verdict.row
        smaller = dense.bytes / row.bytes if dense else None
        yield RankedFile(row, smaller, is_efficient(row, rows), verdict, row is ship)


def _description(target: str) -> str:
    return TARGETS[target].description if target in TARGETS else ""
