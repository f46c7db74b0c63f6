"""What follows from the rows of a report: how much smaller than dense, which are efficient or unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from converters.targets import TARGETS
from edgeprune.report import budget
from edgeprune.report.budget import FileVerdict, TargetVerdict, Verdict
from edgeprune.report.records import Report, Row

DENSE = "dense"


@dataclass(frozen=True)
class File:
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
class Group:
    """The files of one target, in the report's order."""

    target: str
    description: str
    verdict: TargetVerdict
    files: tuple[File, ...]


def verdict(report: Report) -> Verdict:
    """The verdict on the budget that the report's own recipe names (none, when it names none).

    Raises:
        UserError: that budget makes no sense.
    """
    return budget.evaluate(budget.from_plain(report.recipe.get("budget")), report.rows)


def groups(report: Report, verdict: Verdict) -> list[Group]:
    """Sort the files by target, in the verdict's order; a budgeted target may have no file."""
    return [
        Group(target.target, _description(target.target), target, tuple(_files(target, report.rows)))
        for target in verdict.targets
    ]


def is_efficient(row: Row, rows: Iterable[Row]) -> bool:
    """Whether no other of `rows` of the same format is as small and as accurate, and better in one."""
    return not any(
        other.bytes <= row.bytes
        and other.top1 >= row.top1
        and (other.bytes < row.bytes or other.top1 > row.top1)
        for other in rows
        if format_name(other.target) == format_name(row.target)
    )


def format_name(target: str) -> str:
    """The file format of a target in words; files of different formats never compete."""
    known = TARGETS.get(target)
    names = {"coreml": "Core ML", "litert": "LiteRT"}
    return names[known.format.value] if known else target


def sparse_word(row: Row) -> str:
    """Whether the runtime uses sparse kernels: "yes", "no" or "unknown"."""
    return {True: "yes", False: "no", None: "unknown"}[row.sparse_runtime]


def sparse_reasons(rows: Sequence[Row], answer: bool | None) -> dict[str, str]:
    """Which files have this answer, in words, by the reason given."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.sparse_runtime is answer and row.sparse_runtime_reason:
            found.setdefault(row.sparse_runtime_reason, []).append(row)
    every = list(dict.fromkeys(row.target for row in rows))
    return {reason: _in_words(own, every) for reason, own in found.items()}


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
    return sorted(dict.fromkeys(names), key=lambda name: name != DENSE)


def _files(target: TargetVerdict, rows: Sequence[Row]) -> Iterable[File]:
    dense = next((file.row for file in target.files if file.row.variant == DENSE), None)
    ship = target.ship
    for verdict in target.files:
        row = verdict.row
        smaller = dense.bytes / row.bytes if dense else None
        yield File(row, smaller, is_efficient(row, rows), verdict, row is ship)


def _description(target: str) -> str:
    return TARGETS[target].description if target in TARGETS else ""
