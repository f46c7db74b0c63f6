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
from edgeprune.tasks import metrics

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DROP = "_drop_points"
"""What a limit of points lost is called: the metric's key, and this."""


@dataclass(frozen=True)
class Limits:
    """The most a file of one target may have; None: no limit.

    Attributes:
        bytes: Size of the file on disk in bytes, above 0.
        drop_points: Loss against the dense float32 model in percentage points, from 0 to 100, by metric; in
            files each is a field of its own, "top1_drop_points".
        load_memory_bytes: Resident memory in bytes, above 0, that loading the file and running it once adds
            at its peak.
        time_ratio: Latency of the file over that of the dense file of the same target, above 0.
        download_bytes: Size of the file deflated, as a store sends it, in bytes, above 0.
    """

    bytes: int | None = None
    drop_points: Mapping[str, float] = field(default_factory=dict)
    load_memory_bytes: int | None = None
    time_ratio: float | None = None
    download_bytes: int | None = None

    def most(self, limit: str) -> float | None:
        """The most that a limit of `limit_names` allows; None: no limit."""
        if limit.endswith(DROP):
            return self.drop_points.get(limit.removesuffix(DROP))
        value: float | None = getattr(self, limit)
        return value

    def problems(self, where: str, target: str) -> Iterator[str]:
        """Validation errors of these limits, one message each."""
        for name in ("bytes", "download_bytes", "load_memory_bytes"):
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


BENCHED = ("load_memory_bytes", "time_ratio")
"""The limits that `edgeprune bench` measures; the others are in the report of a run."""
SIZES = ("bytes", "download_bytes")
"""Limits of the file itself, whoever made it."""
MEASURES = (*SIZES, *BENCHED)


def limit_names() -> tuple[str, ...]:
    """Everything that can be limited, as files and `--only` call it."""
    return (*SIZES, *(f"{metric.key}{DROP}" for metric in metrics()), *BENCHED)


@dataclass(frozen=True)
class Budget:
    """What a run must meet: at least one file of each budgeted target within all limits.

    Attributes:
        bytes: Largest size of a file in bytes, above 0, by target, e.g. 'litert-arm64-int8=700000'. Empty: no
            limit.
        drop_points: Largest loss against the dense float32 model in percentage points, from 0 to 100, by
            metric, e.g. 'top1=0.5'. Where other limits name targets it holds for those that have none of
            their own, else for every target of the report. In files each is a field of its own,
            'top1_drop_points', and --budget.top1-drop-points works too. Empty: no limit.
        target: All limits of a target by its name; set them in a recipe's file, not on the command line.
    """

    bytes: Mapping[str, int] = field(default_factory=dict)
    drop_points: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, Limits] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything is limited at all."""
        own = any(limits != Limits() for limits in self.target.values())
        return bool(self.bytes) or own or bool(self.drop_points)

    @property
    def targets(self) -> list[str]:
        """The targets it names, each once."""
        return list(dict.fromkeys([*self.bytes, *self.target]))

    def limits(self, target: str) -> Limits:
        """All that holds for a target."""
        own = self.target.get(target, Limits())
        return dataclasses.replace(
            own,
            bytes=self.bytes.get(target, own.bytes),
            drop_points={**self.drop_points, **own.drop_points},
        )

    def only(self, names: Collection[str]) -> Budget:
        """The same without the limits that are not named; of `limit_names`."""
        return Budget(
            self.bytes if "bytes" in names else {},
            _only_drops(self.drop_points, names),
            {
                target: dataclasses.replace(
                    limits,
                    drop_points=_only_drops(limits.drop_points, names),
                    **{name: None for name in MEASURES if name not in names},
                )
                for target, limits in self.target.items()
            },
        )

    def problems(self) -> list[str]:
        """Validation errors of this budget, one message each; empty when all is well."""
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
                found.append(f"budget.target.{name} limits nothing: give one of {', '.join(limit_names())}")
        return found


def _whole(limit: object) -> bool:
    return isinstance(limit, int) and not isinstance(limit, bool) and limit > 0


def _wrong_points(where: str, limits: Limits | Budget) -> list[str]:
    known = [metric.key for metric in metrics()]
    unknown = [
        f"{where}.drop_points: unknown metric {metric!r}: choose from {', '.join(known)}"
        for metric in limits.drop_points
        if metric not in known
    ]
    return unknown + [
        f"{where}.{metric}{DROP} is {limit!r}: give percentage points from 0 to 100, such as 0.5"
        for metric, limit in limits.drop_points.items()
        if isinstance(limit, bool) or not 0 <= limit <= 100  # NaN is refused here too
    ]


def _only_drops(drop_points: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    return {metric: most for metric, most in drop_points.items() if f"{metric}{DROP}" in names}


def _unknown_target(where: str, name: str) -> list[str]:
    choices = ", ".join(TARGETS)
    return [] if name in TARGETS else [f"{where}: unknown target {name!r}: choose from {choices}"]


def from_plain(data: object) -> Budget:
    """Make a budget from plain data, as files have it; None is a budget without limits.

    Raises:
        UserError: every mistake in it, one line each.
    """
    if data is None:
        return Budget()
    try:
        budget = parsing.build(Budget, with_drops_gathered(data), "budget")
    except UserError as error:
        raise named_as_in_files(error) from None
    if problems := budget.problems():
        raise UserError(problems)
    return budget


def to_plain(budget: Budget) -> dict[str, Any]:
    """A budget as plain data, as files have it: points lost as "top1_drop_points"; None: not limited.

    >>> to_plain(Budget({"litert-arm64": 400_000}, {"top1": 0.5}))["top1_drop_points"]
    0.5
    """
    targets = {
        name: {
            **{field: getattr(limits, field) for field in MEASURES},
            **_drop_fields(limits.drop_points),
        }
        for name, limits in budget.target.items()
    }
    return {"bytes": dict(budget.bytes), "target": targets, **_drop_fields(budget.drop_points)}


def with_drops_gathered(data: Any) -> Any:
    """Plain data of a budget or of limits with every field "METRIC_drop_points" gathered in "drop_points"."""
    if not isinstance(data, Mapping):
        return data
    known = {f"{metric.key}{DROP}": metric.key for metric in metrics()}
    gathered = {
        key: {name: with_drops_gathered(limits) for name, limits in value.items()}
        if key == "target" and isinstance(value, Mapping)
        else value
        for key, value in data.items()
        if key not in known
    }
    found = {known[key]: value for key, value in data.items() if key in known and value is not None}
    before = gathered.get("drop_points", {})
    if not found or not isinstance(before, Mapping):
        return gathered
    return gathered | {"drop_points": {**before, **found}}


def named_as_in_files(error: UserError) -> UserError:
    """The same mistakes, the limits of points lost called what files call them."""
    problems = list(error.problems)
    for metric in metrics():
        inside, outside = f".drop_points.{metric.key} ", f".{metric.key}{DROP} "
        problems = [problem.replace(inside, outside) for problem in problems]
    return UserError(problems)


def _drop_fields(drop_points: Mapping[str, float]) -> dict[str, float | None]:
    """The fields of files: every metric's, None where it is not limited."""
    return {f"{metric.key}{DROP}": drop_points.get(metric.key) for metric in metrics()}


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
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or nested without end
        raise UserError(f"{path} is not TOML: {error}") from error
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from error
    if not budget:
        raise UserError(
            f"{path} limits nothing: give top1_drop_points, a table [bytes] with a target in it, or a table "
            "such as [target.litert-arm64]"
        )
    return budget
