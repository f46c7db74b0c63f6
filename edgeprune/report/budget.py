"""The budget the files of a run must meet, and the verdict on them: pure functions of the report's rows."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.targets import TARGETS, Format
from edgeprune.errors import UserError
from edgeprune.report import strict
from edgeprune.report.records import METRICS, Row
from edgeprune.report.wording import bytes_exact, plain, points_fine, points_lost

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECOMMENDED_DROP_POINTS = 0.5
"""With no budget, the smallest file that loses no more than this is recommended."""

DROPS = tuple(f"{metric}_drop_points" for metric in METRICS)
NAMES = {
    "bytes": "bytes",
    "top1_drop_points": "accuracy",
    "miou_drop_points": "mean IoU",
    "load_memory_bytes": "load memory",
    "time_ratio": "time",
}


@dataclass(frozen=True)
class Limits:
    """The most a file of one target may have; None: no limit.

    Attributes:
        bytes: on disk.
        top1_drop_points: percentage points lost against the dense float32 model, 0 to 100.
        load_memory_bytes: resident memory that loading the file and running it once adds at its peak.
        time_ratio: its time over that of the dense file of the same target, above 0.
        miou_drop_points: points of mean IoU lost, of a segmentation's maps, 0 to 100.
    """

    bytes: int | None = None
    top1_drop_points: float | None = None
    load_memory_bytes: int | None = None
    time_ratio: float | None = None
    miou_drop_points: float | None = None

    def problems(self, where: str, target: str) -> Iterator[str]:
        """Everything that makes no sense in these limits."""
        for name in ("bytes", "load_memory_bytes"):
            limit = getattr(self, name)
            if limit is not None and not _whole(limit):
                yield f"{where}.{name} is {limit!r}: give a whole number of bytes above 0"
        yield from _wrong_points(where, self)
        if self.time_ratio is not None and not self.time_ratio > 0:
            yield f"{where}.time_ratio is {self.time_ratio!r}: give a ratio above 0, such as 0.5"
        known = TARGETS.get(target)
        if known is not None and known.format is not Format.LITERT:
            for name in BENCHED:
                if getattr(self, name) is not None:
                    yield (
                        f"{where}.{name}: only a device can measure it for {target}: "
                        "edgeprune bench runs .tflite files"
                    )


LIMITS = tuple(limit.name for limit in dataclasses.fields(Limits))
BENCHED = ("load_memory_bytes", "time_ratio")
"""The limits that `edgeprune bench` measures; the others are in the report of a run."""


@dataclass(frozen=True)
class Budget:
    """What a run must meet: at least one file of each budgeted target within all limits.

    Attributes:
        bytes: most bytes of a file, by target name.
        top1_drop_points: most percentage points a file may lose against the dense float32 model, 0 to 100.
            Where targets are named it holds for those that have no limit of their own, else for every target
            of the report.
        target: all limits of a target, by its name.
        miou_drop_points: most points of mean IoU, for a segmentation, likewise.
    """

    bytes: Mapping[str, int] = field(default_factory=dict)
    top1_drop_points: float | None = None
    target: Mapping[str, Limits] = field(default_factory=dict)
    miou_drop_points: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is limited at all."""
        own = any(limits != Limits() for limits in self.target.values())
        return bool(self.bytes) or own or any(getattr(self, name) is not None for name in DROPS)

    @property
    def targets(self) -> list[str]:
        """The targets it names, each once."""
        return list(dict.fromkeys([*self.bytes, *self.target]))

    def limits(self, target: str) -> Limits:
        """All that holds for a target."""
        own = self.target.get(target, Limits())
        general = {name: getattr(self, name) for name in DROPS if getattr(own, name) is None}
        return dataclasses.replace(own, bytes=self.bytes.get(target, own.bytes), **general)

    def only(self, names: Collection[str]) -> Budget:
        """The same without the limits that are not named; of `LIMITS`."""
        left_out = {name: None for name in LIMITS if name not in names}
        return Budget(
            self.bytes if "bytes" in names else {},
            target={
                target: dataclasses.replace(limits, **left_out) for target, limits in self.target.items()
            },
            **{name: getattr(self, name) for name in DROPS if name in names},
        )

    def problems(self) -> list[str]:
        """Everything that makes no sense in this budget, each with what would; empty when all is well."""
        found = []
        for name, limit in self.bytes.items():
            found += _unknown_target("budget.bytes", name)
            if not _whole(limit):
                found.append(f"budget.bytes.{name} is {limit!r}: give a whole number of bytes above 0")
            if self.target.get(name, Limits()).bytes is not None:
                found.append(f"budget.bytes.{name} and budget.target.{name}.bytes: give one of them")
        found += _wrong_points("budget", self)
        for name, limits in self.target.items():
            found += _unknown_target("budget.target", name)
            found += limits.problems(f"budget.target.{name}", name)
            if limits == Limits():
                found.append(f"budget.target.{name} limits nothing: give one of {', '.join(LIMITS)}")
        return found


def _whole(limit: object) -> bool:
    return isinstance(limit, int) and not isinstance(limit, bool) and limit > 0


def _wrong_points(where: str, limits: Limits | Budget) -> list[str]:
    given = {name: getattr(limits, name) for name in DROPS if getattr(limits, name) is not None}
    return [
        f"{where}.{name} is {limit!r}: give percentage points from 0 to 100, such as 0.5"
        for name, limit in given.items()
        if isinstance(limit, bool) or not 0 <= limit <= 100  # NaN is refused here too
    ]


def _unknown_target(where: str, name: str) -> list[str]:
    choices = ", ".join(TARGETS)
    return [] if name in TARGETS else [f"{where}: unknown target {name!r}: choose from {choices}"]


def from_plain(data: object) -> Budget:
    """Make a budget from plain data, the fields of `Budget`; None is a budget without limits.

    Raises:
        UserError: every mistake in it, one line each.
    """
    if data is None:
        return Budget()
    budget = strict.build(Budget, data, "budget")
    if problems := budget.problems():
        raise UserError(problems)
    return budget


def read(path: Path) -> Budget:
    """Read a `budget.toml`: `top1_drop_points = 0.5`, a table `[bytes]` with `litert-arm64 = 400_000`, and
    tables such as `[target.litert-arm64]` with the fields of `Limits`.

    Raises:
        UserError: it cannot be read, is not TOML, limits nothing; or every mistake in it, one line each.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        budget = from_plain(data)
    except OSError as error:
        raise UserError(f"cannot read the budget {path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8 or not TOML
        raise UserError(f"{path} is not TOML: {error}") from error
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from error
    if not budget:
        raise UserError(
            f"{path} limits nothing: give top1_drop_points, a table [bytes] with a target in it, or a table "
            "such as [target.litert-arm64]"
        )
    return budget


@dataclass(frozen=True)
class Measured:
    """What is known of one file; None: not measured.

    Attributes:
        bytes, top1_drop_points, load_memory_bytes, time_ratio, miou_drop_points: see `Limits`.
        missing: of what was not measured, by its name, how it could be.
    """

    bytes: int
    top1_drop_points: float | None
    load_memory_bytes: int | None = None
    time_ratio: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    miou_drop_points: float | None = None


@dataclass(frozen=True)
class Judgement:
    """One limit of one file.

    Attributes:
        limit: its name, of `LIMITS`.
        most: what is allowed.
        measured: what the file has; None where that is not known.
        words: what is wrong, or how it could be measured; "" where the file is within the limit.
    """

    limit: str
    most: float
    measured: float | None
    words: str

    @property
    def ok(self) -> bool | None:
        """Whether the file is within the limit; None where nobody can say."""
        return None if self.measured is None else not self.words


@dataclass(frozen=True)
class FileVerdict:
    """One file against the limits of its target: `judgements` has one for each limit."""

    row: Row
    judgements: tuple[Judgement, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it does not fit, or why nobody can say; empty when it does."""
        return reasons(self.judgements)

    @property
    def fits(self) -> bool:
        """Whether the file was measured to be within every limit."""
        return not self.reasons

    @property
    def open(self) -> bool:
        """Whether it breaks no limit, but was not held against all of them."""
        return not self.fits and all(judgement.ok is not False for judgement in self.judgements)

    def breaks(self, *limits: str) -> bool:
        """Whether it was measured to be over one of these limits."""
        return any(judgement.ok is False for judgement in self.judgements if judgement.limit in limits)


@dataclass(frozen=True)
class TargetVerdict:
    """The files of one target.

    Attributes:
        target: its name.
        budgeted: whether the budget holds for it; if not, `ship` is only a recommendation.
        most: its limits, from the budget or the recommended one.
        files: every file of the target, in the report's order.
    """

    target: str
    budgeted: bool
    most: Limits
    files: tuple[FileVerdict, ...]

    @property
    def ship(self) -> Row | None:
        """The smallest file that fits; None when none does."""
        return min((file.row for file in self.files if file.fits), key=smallest_first, default=None)

    @property
    def nearest(self) -> FileVerdict | None:
        """The file that ships; where none does the one with the fewest reasons; None without files."""
        return min(self.files, key=lambda f: (len(f.reasons), smallest_first(f.row)), default=None)

    @property
    def ok(self) -> bool:
        """Whether the budget holds; a target without one cannot break it."""
        return not self.budgeted or self.ship is not None

    @property
    def open(self) -> bool:
        """Whether no file fits, but one may: not all of its limits could be judged."""
        return not self.ok and any(file.open for file in self.files)

    def limits(self) -> str:
        """The limits in words."""
        if not self.budgeted:
            points = next((most for name in DROPS if (most := getattr(self.most, name)) is not None), None)
            return f"no budget; the smallest that loses at most {plain(points)} points"
        words = list(_in_words(self.most))
        return "at most " + " and ".join(words) if words else "no limit"


@dataclass(frozen=True)
class Verdict:
    """Whether a run meets its budget, and what to ship for each target.

    Attributes:
        budget: what was asked for; empty when nothing was.
        targets: in the report's order, then those the budget names and the report lacks.
    """

    budget: Budget
    targets: tuple[TargetVerdict, ...]

    @property
    def ok(self) -> bool:
        """Whether every budgeted target has a file that fits; with nothing to check no budget holds."""
        return all(target.ok for target in self.targets) and (bool(self.targets) or not self.budget)

    @property
    def exit_status(self) -> int:
        """0 within the budget or without one, 1 over it."""
        return 0 if self.ok else 1

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        if not self.budget:
            return "No budget was set"
        if not self.targets:
            return "Over budget: the report has no file to check"
        over = [target.target for target in self.targets if not target.ok and not target.open]
        unjudged = [target.target for target in self.targets if target.open]
        parts = [f"Over budget: {', '.join(over)}"] * bool(over)
        parts += [f"Not measured: {', '.join(unjudged)}"] * bool(unjudged)
        return "; ".join(parts) or "Within budget"

    def message(self) -> str:
        """The verdict as plain text: what to ship; of a broken target each file, its bytes, the budget."""
        lines = [self.headline]
        for target in self.targets:
            lines += [*target_lines(target)]
        return "\n".join(lines)

    def next_step(self) -> str:
        """One sentence: what to do now."""
        broken = [target for target in self.targets if not target.ok]
        if not self.targets:
            return "No file was written: name at least one target in the recipe."
        if broken:
            return " ".join(_remedies(broken))
        if not self.budget:
            return (
                "Set a budget (bytes of a target, points lost) and the command fails when a file breaks it."
            )
        return "Ship the files named here."


def of_row(row: Row) -> Measured:
    """What the report of a run knows of a file."""
    bench = "edgeprune bench measures it, and check --bench takes what it wrote"
    return with_scores(Measured(row.bytes, None, missing=dict.fromkeys(BENCHED, bench)), row)


def with_scores(measured: Measured, row: Row) -> Measured:
    """The same with the points that a row's file loses; of what it is not measured by, why it is not."""
    return dataclasses.replace(
        measured,
        top1_drop_points=row.top1_drop_points,
        miou_drop_points=row.miou_drop_points,
        missing={
            **measured.missing,
            **{
                f"{metric}_drop_points": row.not_measured.get(metric, "the report does not say it")
                for metric in METRICS
                if metric != row.metric
            },
        },
    )


def evaluate(budget: Budget, rows: Sequence[Row], measured: Callable[[Row], Measured] = of_row) -> Verdict:
    """Hold every file against the budget.

    A target is within budget when at least one of its files, the dense one included, is within all limits. A
    limit that cannot be judged is not met.
    """
    present = list(dict.fromkeys(row.target for row in rows))
    budgeted = budget.targets or (present if budget else [])
    return Verdict(
        budget,
        tuple(
            _judge(
                target, budget, [row for row in rows if row.target == target], target in budgeted, measured
            )
            for target in dict.fromkeys([*present, *budgeted])
        ),
    )


def judge(limits: Limits, measured: Measured) -> tuple[Judgement, ...]:
    """Hold what is known of one file against every limit there is."""
    return tuple(
        Judgement(name, most, value, _words(name, most, value, measured.missing.get(name, "")))
        for name in LIMITS
        if (most := getattr(limits, name)) is not None
        for value in [getattr(measured, name)]
    )


def reasons(judgements: Iterable[Judgement]) -> tuple[str, ...]:
    """What is wrong with a file; where nothing is, what nobody can say; empty where all is well."""
    judgements = tuple(judgements)
    unjudged: dict[str, list[str]] = {}  # what could not be judged, by how it could be measured
    for judgement in judgements:
        if judgement.ok is None:
            unjudged.setdefault(judgement.words, []).append(NAMES[judgement.limit])
    return tuple(judgement.words for judgement in judgements if judgement.ok is False) or tuple(
        f"{' and '.join(names)} not measured: {how}" for how, names in unjudged.items()
    )


def smallest_first(row: Row) -> tuple[int, float, str]:
    """Sorting key: by bytes, of equally small ones the more accurate first."""
    return row.bytes, -row.score, row.path


def _judge(
    target: str, budget: Budget, rows: Sequence[Row], budgeted: bool, measured: Callable[[Row], Measured]
) -> TargetVerdict:
    limits = budget.limits(target) if budgeted else _recommended(budget, rows)
    files = tuple(FileVerdict(row, judge(limits, measured(row))) for row in rows)
    return TargetVerdict(target, budgeted, limits, files)


def _recommended(budget: Budget, rows: Sequence[Row]) -> Limits:
    """What a file may lose at most where no budget holds, by the metric of the rows."""
    name = f"{rows[0].metric if rows else METRICS[0]}_drop_points"
    asked = getattr(budget, name)
    most: dict[str, Any] = {name: RECOMMENDED_DROP_POINTS if asked is None else asked}
    return Limits(**most)


def _words(name: str, most: float, value: float | None, missing: str) -> str:
    """What is wrong with a value; "" where nothing is."""
    if value is None:
        return missing
    if round(value, 6) <= most:  # 5 images of 1,000 are 0.5 points, but 0.5000000000000004 as floats.
        return ""
    if name == "bytes":
        return f"{bytes_exact(int(value - most))} bytes over the budget of {bytes_exact(int(most))}"
    if name in DROPS:
        return f"loses {points_fine(value)} points, the limit is {plain(most)}"
    if name == "load_memory_bytes":
        return f"adds {bytes_exact(int(value))} bytes of memory, the limit is {bytes_exact(int(most))}"
    return f"takes {value:.3g} of the dense file's time, the limit is {plain(most)}"


def _in_words(limits: Limits) -> Iterator[str]:
    if limits.bytes is not None:
        yield f"{bytes_exact(limits.bytes)} bytes"
    if limits.top1_drop_points is not None:
        yield f"{plain(limits.top1_drop_points)} points of accuracy lost"
    if limits.miou_drop_points is not None:
        yield f"{plain(limits.miou_drop_points)} points of mean IoU lost"
    if limits.load_memory_bytes is not None:
        yield f"{bytes_exact(limits.load_memory_bytes)} bytes of memory"
    if limits.time_ratio is not None:
        yield f"{plain(limits.time_ratio)} of the dense file's time"


def target_lines(target: TargetVerdict) -> Iterable[str]:
    """What to ship; of a broken target each file, its bytes and what is wrong with it."""
    ship = target.ship
    if ship is not None:
        yield (
            f"{target.target}: ship {ship.path}, {bytes_exact(ship.bytes)} bytes, "
            f"{points_lost(ship.drop_points)} ({target.limits()})"
        )
    elif not target.files:
        yield f"{target.target}: the run has no file for this target ({target.limits()})"
    elif not target.budgeted:
        yield f"{target.target}: no file to recommend ({target.limits()})"
    else:
        yield f"{target.target}: no file fits ({target.limits()})"
        for file in sorted(target.files, key=lambda file: smallest_first(file.row)):
            yield f"  {file.row.path}: {bytes_exact(file.row.bytes)} bytes; {'; '.join(file.reasons)}"


def _remedies(broken: Iterable[TargetVerdict]) -> Iterable[str]:
    """What would bring the broken targets within budget: the nearest way for each, a sentence a way."""
    too_inaccurate: dict[str, list[str]] = {}
    for target in broken:
        small = [file.row for file in target.files if not file.breaks("bytes", *BENCHED)]
        accurate = [file.row for file in target.files if not file.breaks(*DROPS, *BENCHED)]
        if not target.files:
            yield f"Add {target.target} to the targets of the recipe, or take it out of the budget."
        elif target.open:
            yield f"Measure what is missing of {target.target}, and check again."
        elif small:
            best = max(small, key=lambda row: row.score)
            too_inaccurate.setdefault(best.variant, []).append(target.target)
        elif accurate:
            best = min(accurate, key=smallest_first)
            more = f"raise its budget to {bytes_exact(best.bytes)} bytes for {best.path}"
            yield f"For {target.target}, prune more, or {more}."
        elif all(file.breaks(*BENCHED) for file in target.files):
            yield f"For {target.target}, no file is light and fast enough: prune more, or channels."
        else:
            yield f"For {target.target}, no file is small or accurate enough: prune more, fine-tune longer."
    for variant, targets in too_inaccurate.items():
        yield f"Fine-tune {variant} longer: for {', '.join(targets)} it is small enough but loses too much."
