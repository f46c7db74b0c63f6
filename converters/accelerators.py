"""What an accelerator does with the operations of a file, from published tables, with source and date.

Never a guess: what no table says is "unknown", with what would tell. Whether a part that could run on an
accelerator does so is the runtime's choice in the end: bench on a device, or MLComputePlan on a Mac, knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """Where a verdict comes from."""

    SOURCE = "the vendor's source code"
    DOCUMENTATION = "the vendor's documentation"
    MEASURED = "measured by others"
    INFERRED = "inferred"
    NONE = "no published table"


class Outcome(str, Enum):
    """What becomes of an operation."""

    RUNS = "runs"
    FALLS_BACK = "falls back to the CPU"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Source:
    """Who says so.

    Attributes:
        kind: what sort of source.
        where: which, so that it can be found.
        date: of it, or of when it was read: "2026-11-26".
    """

    kind: Kind
    where: str
    date: str


@dataclass(frozen=True)
class OpVerdict:
    """One operation on one accelerator.

    Attributes:
        op: kind of it, as the file has it.
        place: which of them.
        outcome: what becomes of it.
        change: what to change, or what would tell; of one that runs, what to mind, or "".
        source: who says so.
    """

    op: str
    place: str
    outcome: Outcome
    change: str
    source: Source


@dataclass(frozen=True)
class Backend:
    """All operations of a file on one accelerator.

    Attributes:
        name: "litert-gpu".
        verdicts: in the order of the file.
    """

    name: str
    verdicts: tuple[OpVerdict, ...]

    def of(self, outcome: Outcome) -> list[OpVerdict]:
        """Those with an outcome."""
        return [verdict for verdict in self.verdicts if verdict.outcome is outcome]

    def minded(self) -> list[OpVerdict]:
        """Those that run, and of which something is to be minded."""
        return [verdict for verdict in self.of(Outcome.RUNS) if verdict.change]

    def lines(self) -> list[str]:
        """For people: how many of each, every operation that falls back, then by kind the rest to tell."""
        counts = ", ".join(f"{len(self.of(outcome))} {_WORDS[outcome]}" for outcome in Outcome)
        told = [f"{self.name}: {counts}"]
        for verdict in self.of(Outcome.FALLS_BACK):
            told.append(f"  {verdict.op} at {verdict.place}: {verdict.change} [{_cited(verdict.source)}]")
        for (kinds, change, source), count in _by_kind(self.minded()).items():
            told.append(f"  to mind ({count}): {kinds}: {change} [{_cited(source)}]")
        for (kinds, change, source), count in _by_kind(self.of(Outcome.UNKNOWN)).items():
            told.append(f"  unknown ({count}): {kinds}: {change} [{_cited(source)}]")
        return told

    def to_plain(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {
            "counts": {outcome.name.lower(): len(self.of(outcome)) for outcome in Outcome},
            "ops": [
                {
                    "op": verdict.op,
                    "place": verdict.place,
                    "outcome": verdict.outcome.value,
                    "change": verdict.change,
                    "source": {**vars(verdict.source), "kind": verdict.source.kind.value},
                }
                for verdict in self.verdicts
            ],
        }


_WORDS = {Outcome.RUNS: "ops run", Outcome.FALLS_BACK: "fall back", Outcome.UNKNOWN: "unknown"}


def _by_kind(verdicts: Sequence[OpVerdict]) -> dict[tuple[str, str, Source], int]:
    """Operations of one reason together: their kinds, the reason, and how many."""
    kinds: dict[tuple[str, Source], Counter[str]] = {}
    for verdict in verdicts:
        kinds.setdefault((verdict.change, verdict.source), Counter())[verdict.op] += 1
    return {
        (_listed(found), change, source): sum(found.values()) for (change, source), found in kinds.items()
    }


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds))


def _cited(source: Source) -> str:
    return f"{source.kind.value}: {source.where}, {source.date}"
