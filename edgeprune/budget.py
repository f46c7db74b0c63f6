"""What a run must meet: limits of bytes, accuracy, memory and time, in a recipe or a budget.toml."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.format import FORMATS, timed_suffixes
from converters.targets import TARGETS
from edgeprune import parsing
from edgeprune.errors import UserError
from edgeprune.report.records import METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DROPS = tuple(f"{metric}_drop_points" for metric in METRICS)


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
        if known is not None and FORMATS[known.format].no_times is not None:
            for name in BENCHED:
                if getattr(self, name) is not None:
                    yield (
                        f"{where}.{name}: only a device can measure it for {target}: "
                        f"edgeprune bench runs {' and '.join(timed_suffixes())} files"
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
    budget = parsing.build(Budget, data, "budget")
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
