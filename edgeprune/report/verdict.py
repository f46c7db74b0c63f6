"""The budget the files of a run must meet, and the verdict on them: pure functions of the report's rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgeprune.budget import BENCHED, DROP, SIZES, Budget, Limits, limit_names
from edgeprune.evaluation import paired
from edgeprune.evaluation.paired import Interval
from edgeprune.evaluation.records import Row
from edgeprune.report.formatting import bytes_exact, plain, points, points_fine, points_lost
from edgeprune.tasks import metric, metrics

RECOMMENDED_DROP_POINTS = 0.5
"""With no budget, the smallest file that loses no more than this is recommended."""

NO_INTERVAL = (
    "its row does not count the images on which file and dense model differ, either because an older version "
    "made it (run the recipe again) or because the metric is no share of images: leave --confidence out"
)
NAMES = {
    "bytes": "bytes",
    "download_bytes": "download",
    "load_memory_bytes": "load memory",
    "time_ratio": "time",
}


@dataclass(frozen=True)
class Measured:
    """What is known of one file; None: not measured.

    Attributes:
        bytes, load_memory_bytes, time_ratio, download_bytes: see `Limits`.
        drop_points: percentage points lost, by the metrics that it is measured by.
        missing: of what was not measured, by its name, how it could be.
        drop_intervals: between what the points lost lie, by metric, where they are judged with confidence.
    """

    bytes: int
    drop_points: Mapping[str, float] = field(default_factory=dict)
    load_memory_bytes: int | None = None
    time_ratio: float | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    download_bytes: int | None = None
    drop_intervals: Mapping[str, Interval] = field(default_factory=dict)

    def value(self, limit: str) -> float | None:
        """What is known of a limit of `limit_names`."""
        if limit.endswith(DROP):
            return self.drop_points.get(limit.removesuffix(DROP))
        found: float | None = getattr(self, limit)
        return found


@dataclass(frozen=True)
class Judgement:
    """One limit of one file.

    Attributes:
        limit: its name, of `limit_names`.
        most: what is allowed.
        measured: what the file has; None where that is not known.
        words: what is wrong, or how it could be measured; "" where the file is within the limit.
        interval: between what the value lies, where it is judged with confidence.
    """

    limit: str
    most: float
    measured: float | None
    words: str
    interval: Interval | None = None

    @property
    def uncertain(self) -> bool:
        """Whether the images are too few to say on which side of the limit the value is."""
        return self.interval is not None and self.interval.least <= self.most < self.interval.most

    @property
    def ok(self) -> bool | None:
        """Whether the file is within the limit; None where nobody can say."""
        return None if self.measured is None or self.uncertain else not self.words


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

    @property
    def uncertain(self) -> bool:
        """Whether that is so because the images are too few."""
        open_files = [file for file in self.files if file.open]
        return self.open and any(judged.uncertain for file in open_files for judged in file.judgements)

    def limits(self) -> str:
        """The limits in words."""
        if not self.budgeted:
            points = next(iter(self.most.drop_points.values()), None)
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
        untold = [target.target for target in self.targets if target.uncertain]
        unjudged = [target.target for target in self.targets if target.open and not target.uncertain]
        parts = [f"Over budget: {', '.join(over)}"] * bool(over)
        parts += [f"Cannot be told: {', '.join(untold)}"] * bool(untold)
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
    missing = {**dict.fromkeys(BENCHED, bench), "download_bytes": "edgeprune report RUN measures it"}
    return with_scores(Measured(row.bytes, missing=missing, download_bytes=row.download_bytes), row)


def with_scores(measured: Measured, row: Row, confidence: float | None = None) -> Measured:
    """The same with the points that a row's file loses; of what it is not measured by, why it is not.

    With a confidence, above 0.5 and below 1, also between what they lie.
    """
    lost, unknown, intervals = {row.metric: row.drop_points}, {}, {}
    if confidence is not None:
        if row.lost_images is None or row.gained_images is None:
            lost, unknown = {}, {f"{row.metric}{DROP}": NO_INTERVAL}
        else:
            found = paired.between(row.lost_images, row.gained_images, row.images, confidence)
            intervals = {row.metric: found}
    return dataclasses.replace(
        measured,
        drop_points=lost,
        drop_intervals=intervals,
        missing={
            **measured.missing,
            **unknown,
            **{
                f"{metric.key}{DROP}": row.not_measured.get(metric.key, "the report does not say it")
                for metric in metrics()
                if metric.key != row.metric
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
        Judgement(
            name,
            most,
            value,
            _words(name, most, value, measured.missing.get(name, ""))
            if interval is None or value is None
            else _words_of_interval(most, value, interval),
            interval,
        )
        for name in limit_names()
        if (most := limits.most(name)) is not None
        for value in [measured.value(name)]
        for interval in [measured.drop_intervals.get(name.removesuffix(DROP))]
    )


def reasons(judgements: Iterable[Judgement]) -> tuple[str, ...]:
    """What is wrong with a file; where nothing is, what nobody can say; empty where all is well."""
    judgements = tuple(judgements)
    unjudged: dict[str, list[str]] = {}  # what could not be judged, by how it could be measured
    untold = tuple(judgement.words for judgement in judgements if judgement.uncertain)
    for judgement in judgements:
        if judgement.ok is None and not judgement.uncertain:
            unjudged.setdefault(judgement.words, []).append(_name(judgement.limit))
    wrong = tuple(judgement.words for judgement in judgements if judgement.ok is False)
    return wrong or (
        *untold,
        *(f"{' and '.join(names)} not measured: {how}" for how, names in unjudged.items()),
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
    metric = rows[0].metric if rows else metrics()[0].key
    return Limits(drop_points={metric: budget.drop_points.get(metric, RECOMMENDED_DROP_POINTS)})


def _name(limit: str) -> str:
    """A limit for people: "bytes", "accuracy"."""
    return metric(limit.removesuffix(DROP)).word if limit.endswith(DROP) else NAMES[limit]


def _words(name: str, most: float, value: float | None, missing: str) -> str:
    """What is wrong with a value; "" where nothing is."""
    if value is None:
        return missing
    if round(value, 6) <= most:  # 5 images of 1,000 are 0.5 points, but 0.5000000000000004 as floats.
        return ""
    if name == "bytes":
        return f"{bytes_exact(int(value - most))} bytes over the budget of {bytes_exact(int(most))}"
    if name == "download_bytes":
        return f"downloads as {bytes_exact(int(value))} bytes, the limit is {bytes_exact(int(most))}"
    if name.endswith(DROP):
        return f"loses {points_fine(value)} points, the limit is {plain(most)}"
    if name == "load_memory_bytes":
        return f"adds {bytes_exact(int(value))} bytes of memory, the limit is {bytes_exact(int(most))}"
    return f"takes {value:.3g} of the dense file's time, the limit is {plain(most)}"


def _words_of_interval(most: float, value: float, interval: Interval) -> str:
    """The same of points lost that are judged with confidence."""
    if interval.most <= most:
        return ""
    lies = f"{points(interval.least)} to {points(interval.most)} at {interval.confidence:.4g} confidence"
    if interval.least > most:
        return f"loses {points_fine(value)} points ({lies}), the limit is {plain(most)}"
    return (
        f"loses {points_fine(value)} points ({lies}): from {bytes_exact(interval.images)} images it "
        f"cannot be told whether that is within {plain(most)}"
    )


def _in_words(limits: Limits) -> Iterator[str]:
    if limits.bytes is not None:
        yield f"{bytes_exact(limits.bytes)} bytes"
    if limits.download_bytes is not None:
        yield f"{bytes_exact(limits.download_bytes)} bytes to download"
    for key, most in limits.drop_points.items():
        yield f"{plain(most)} points of {metric(key).word} lost"
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
        small = [file.row for file in target.files if not file.breaks(*SIZES, *BENCHED)]
        accurate = [file for file in target.files if not file.breaks(*_drops(), *BENCHED)]
        if not target.files:
            yield f"Add {target.target} to the targets of the recipe, or take it out of the budget."
        elif target.uncertain:
            yield f"For {target.target}, measure on more held-out images, or ask for less confidence."
        elif target.open:
            yield f"Measure what is missing of {target.target}, and check again."
        elif small:
            best = max(small, key=lambda row: row.score)
            too_inaccurate.setdefault(best.variant, []).append(target.target)
        elif accurate:
            nearest = min(accurate, key=lambda file: smallest_first(file.row))
            more = f"raise its budget to {_sizes(nearest)} for {nearest.row.path}"
            yield f"For {target.target}, prune more, or {more}."
        elif all(file.breaks(*BENCHED) for file in target.files):
            yield f"For {target.target}, no file is light and fast enough: prune more, or channels."
        else:
            yield f"For {target.target}, no file is small or accurate enough: prune more, fine-tune longer."
    for variant, targets in too_inaccurate.items():
        yield f"Fine-tune {variant} longer: for {', '.join(targets)} it is small enough but loses too much."


def _sizes(file: FileVerdict) -> str:
    """The sizes of a file that its limits forbid."""
    units = {"bytes": "bytes", "download_bytes": "bytes to download"}
    return " and ".join(
        f"{bytes_exact(int(judgement.measured))} {units[judgement.limit]}"
        for judgement in file.judgements
        if judgement.limit in units and judgement.ok is False and judgement.measured is not None
    )


def _drops() -> list[str]:
    """The limits of points lost."""
    return [f"{known.key}{DROP}" for known in metrics()]
