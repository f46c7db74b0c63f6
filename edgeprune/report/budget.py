"""The budget the files of a run must meet, and the verdict on them: pure functions of the report's rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.targets import TARGETS
from edgeprune.errors import UserError
from edgeprune.report import strict
from edgeprune.report.records import Row
from edgeprune.report.wording import bytes_exact, plain, points_fine, points_lost

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECOMMENDED_DROP_POINTS = 0.5
"""With no budget, the smallest file that loses no more than this is recommended."""


@dataclass(frozen=True)
class Budget:
    """What a run must meet: at least one file of each budgeted target within both limits.

    Attributes:
        bytes: most bytes of a file, by target name.
        top1_drop_points: most percentage points a file may lose against the dense float32 model, 0 to 100.
            Without `bytes` it holds for every target of the report, with `bytes` for the targets named there.
    """

    bytes: Mapping[str, int] = field(default_factory=dict)
    top1_drop_points: float | None = None

    def __bool__(self) -> bool:
        """Whether anything is limited at all."""
        return bool(self.bytes) or self.top1_drop_points is not None

    def problems(self) -> list[str]:
        """Everything that makes no sense in this budget, each with what would; empty when all is well."""
        found = []
        for name, limit in self.bytes.items():
            if name not in TARGETS:
                found.append(f"budget.bytes: unknown target {name!r}: choose from {', '.join(TARGETS)}")
            if isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0:
                found.append(f"budget.bytes.{name} is {limit!r}: give a whole number of bytes above 0")
        drop = self.top1_drop_points
        if drop is not None and (isinstance(drop, bool) or not 0 <= drop <= 100):  # NaN is refused here too
            found.append(
                f"budget.top1_drop_points is {drop!r}: give percentage points from 0 to 100, such as 0.5"
            )
        return found


def from_plain(data: object) -> Budget:
    """Make a budget from plain data: `{"bytes": {target: most}, "top1_drop_points": points}` or None.

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
    """Read a `budget.toml`: `top1_drop_points = 0.5` and a table `[bytes]` with `litert-arm64 = 400_000`, ...

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
            f"{path} limits nothing: give top1_drop_points, or a table [bytes] with a target in it"
        )
    return budget


@dataclass(frozen=True)
class FileVerdict:
    """One file against the limits of its target: `reasons` says why it does not fit; empty when it does."""

    row: Row
    reasons: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the file is within every limit."""
        return not self.reasons


@dataclass(frozen=True)
class TargetVerdict:
    """The files of one target.

    Attributes:
        target: its name.
        budgeted: whether the budget holds for it; if not, `ship` is only a recommendation.
        limit_bytes: most bytes; None: no limit.
        limit_points: most percentage points lost, from the budget or the recommended limit; None: no limit.
        files: every file of the target, in the report's order.
    """

    target: str
    budgeted: bool
    limit_bytes: int | None
    limit_points: float | None
    files: tuple[FileVerdict, ...]

    @property
    def ship(self) -> Row | None:
        """The smallest file that fits; None when none does."""
        return min((file.row for file in self.files if file.fits), key=smallest_first, default=None)

    @property
    def ok(self) -> bool:
        """Whether the budget holds; a target without one cannot break it."""
        return not self.budgeted or self.ship is not None

    def limits(self) -> str:
        """The limits in words."""
        if not self.budgeted:
            return f"no budget; the smallest that loses at most {plain(self.limit_points)} points"
        words = [] if self.limit_bytes is None else [f"{bytes_exact(self.limit_bytes)} bytes"]
        if self.limit_points is not None:
            words.append(f"{plain(self.limit_points)} points of accuracy lost")
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
        broken = [target.target for target in self.targets if not target.ok]
        return f"Over budget: {', '.join(broken)}" if broken else "Within budget"

    def message(self) -> str:
        """The verdict as plain text: what to ship; of a broken target each file, its bytes, the budget."""
        lines = [self.headline]
        for target in self.targets:
            lines += [*_target_lines(target)]
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


def evaluate(budget: Budget, rows: Sequence[Row]) -> Verdict:
    """Hold every file against the budget.

    A target is within budget when at least one of its files, the dense one included, is within both limits.
    """
    present = list(dict.fromkeys(row.target for row in rows))
    budgeted = list(budget.bytes) or (present if budget else [])
    targets = dict.fromkeys([*present, *budgeted])
    return Verdict(budget, tuple(_judge(target, budget, rows, target in budgeted) for target in targets))


def smallest_first(row: Row) -> tuple[int, float, str]:
    """Sorting key: by bytes, of equally small ones the more accurate first."""
    return row.bytes, -row.top1, row.path


def _judge(target: str, budget: Budget, rows: Iterable[Row], budgeted: bool) -> TargetVerdict:
    limit_bytes = budget.bytes.get(target)
    limit_points = budget.top1_drop_points
    if limit_points is None and not budgeted:
        limit_points = RECOMMENDED_DROP_POINTS
    files = tuple(
        FileVerdict(row, tuple(_reasons(row, limit_bytes, limit_points)))
        for row in rows
        if row.target == target
    )
    return TargetVerdict(target, budgeted, limit_bytes, limit_points, files)


def _reasons(row: Row, limit_bytes: int | None, limit_points: float | None) -> Iterable[str]:
    if limit_bytes is not None and row.bytes > limit_bytes:
        yield f"{bytes_exact(row.bytes - limit_bytes)} bytes over the budget of {bytes_exact(limit_bytes)}"
    if limit_points is not None and not _accurate(row, limit_points):
        yield f"loses {points_fine(row.top1_drop_points)} points, the limit is {plain(limit_points)}"


def _accurate(row: Row, limit_points: float | None) -> bool:
    # Rounded: 5 images of 1,000 are 0.5 points, but 0.5000000000000004 as a difference of floats.
    return limit_points is None or round(row.top1_drop_points, 6) <= limit_points


def _target_lines(target: TargetVerdict) -> Iterable[str]:
    ship = target.ship
    if ship is not None:
        yield (
            f"{target.target}: ship {ship.path}, {bytes_exact(ship.bytes)} bytes, "
            f"{points_lost(ship.top1_drop_points)} ({target.limits()})"
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
        rows = [file.row for file in target.files]
        small = [row for row in rows if target.limit_bytes is None or row.bytes <= target.limit_bytes]
        accurate = [row for row in rows if _accurate(row, target.limit_points)]
        if not rows:
            yield f"Add {target.target} to the targets of the recipe, or take it out of the budget."
        elif small:
            best = max(small, key=lambda row: row.top1)
            too_inaccurate.setdefault(best.variant, []).append(target.target)
        elif accurate:
            best = min(accurate, key=smallest_first)
            more = f"raise its budget to {bytes_exact(best.bytes)} bytes for {best.path}"
            yield f"For {target.target}, prune more, or {more}."
        else:
            yield f"For {target.target}, no file is small or accurate enough: prune more, fine-tune longer."
    for variant, targets in too_inaccurate.items():
        yield f"Fine-tune {variant} longer: for {', '.join(targets)} it is small enough but loses too much."
