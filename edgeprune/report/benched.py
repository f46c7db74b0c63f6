"""What `edgeprune bench --json` wrote, read back: times and load memory by digest of file."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import parsing
from edgeprune.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Timed:
    """One file of a measurement.

    Attributes:
        sha256: of its content.
        milliseconds: of each round; empty where the runtime refused it.
        load_memory_bytes: see `converters.runtimes.running.Answer`; None where it was not measured.
        median_ms: of those; None where there are none.
        quartiles_ms: around it.
    """

    sha256: str
    milliseconds: tuple[float, ...]
    load_memory_bytes: int | None = None
    median_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None


@dataclass(frozen=True)
class Benched:
    """One measurement: files timed in turns on one runtime, the first being what the others compare with.

    Attributes:
        runtime: its name.
        files: in the order they were given.
        description: of the runtime, in words.
        version: of LiteRT there.
        emulated: whether only ratios mean something.
        processor: of the machine.
        threads: of the runtime.
        rounds: how often each file was timed.
    """

    runtime: str
    files: tuple[Timed, ...]
    description: str = ""
    version: str = ""
    emulated: bool = False
    processor: str = ""
    threads: int = 1
    rounds: int = 0


def read(path: Path) -> Benched:
    """Read what `edgeprune bench --json PATH` wrote.

    Raises:
        UserError: it cannot be read, or is something else; every mistake, one line each.
    """
    advice = f"{path} is not what edgeprune bench --json writes"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: edgeprune bench --json makes it") from None
    except ValueError as error:
        raise UserError(f"{advice}: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("files"), list):
        raise UserError(f"{advice}: no 'files' of schema {SCHEMA} in it")
    try:
        known = _known(Benched, data) | {"files": [_known(Timed, file) for file in data["files"]]}
        return parsing.build(Benched, known, "bench")
    except UserError as error:
        raise UserError([f"{advice}: {problem}" for problem in error.problems]) from None


def load_memory_bytes(measurements: Iterable[Benched], sha256: str) -> int | None:
    """The load memory of a file: the most that was measured; None where none was."""
    values = [
        file.load_memory_bytes
        for measurement in measurements
        for file in measurement.files
        if file.sha256 == sha256 and file.load_memory_bytes is not None
    ]
    return max(values, default=None)


def time_ratio(measurements: Iterable[Benched], sha256: str, dense_sha256: str | None = None) -> float | None:
    """A file's time over the dense file's: the median of the rounds in which both were timed.

    Args:
        measurements: where to look; of several the largest ratio counts.
        sha256: of the file.
        dense_sha256: of what it is compared with; None for the first file of each measurement.

    Returns:
        None where no measurement has both.
    """
    ratios = [
        ratio
        for measurement in measurements
        if (ratio := _ratio(measurement.files, sha256, dense_sha256)) is not None
    ]
    return max(ratios, default=None)


def _ratio(files: Sequence[Timed], sha256: str, dense_sha256: str | None) -> float | None:
    own = next((file for file in files if file.sha256 == sha256), None)
    dense = next((file for file in files if dense_sha256 in (None, file.sha256)), None)
    if own is None or dense is None or not own.milliseconds or not dense.milliseconds:
        return None
    # Round by round, as `edgeprune bench` compares: what slowed a round down slowed both files.
    pairs = zip(own.milliseconds, dense.milliseconds, strict=False)
    ratios = [mine / theirs for mine, theirs in pairs if min(mine, theirs) > 0]  # a coarse clock may read 0
    return statistics.median(ratios) if ratios else None


def _known(record: type[Benched] | type[Timed], data: object) -> Any:
    """What is asked for here, of all that was written."""
    names = [field.name for field in dataclasses.fields(record)]
    return {name: data[name] for name in names if name in data} if isinstance(data, dict) else data
