"""What `edgeprune bench` measures, written and read here: times and load memory by digest of file."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import parsing
from edgeprune.errors import UserError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class FileTiming:
    """One file of a measurement. A thing not measured is None, with a reason.

    Attributes:
        path: as it was given.
        bytes: on disk.
        sha256: of its content.
        refused: why the runtime does not run it; None where it does.
        sparse_kernels: whether the linter says that the runtime uses its sparse kernels.
        problems: what the linter has against that.
        milliseconds: of each round, (rounds,); empty where refused.
        median_ms: of those.
        quartiles_ms: around it, the lower and the upper.
        speed: how many times as fast as the first file: the median over the rounds.
        speed_quartiles: around it.
        speed_reason: why there is none.
        difference: largest difference of its output to the first file's, over the first's largest value.
        difference_reason: why there is none.
        load_memory_bytes: resident memory that loading the file and running it once adds at the peak to a
            fresh process of LiteRT on this machine, whatever the runtime of the times.
        load_memory_reason: why there is none.
    """

    path: str = ""
    bytes: int | None = None
    sha256: str
    refused: str | None = None
    sparse_kernels: bool | None = None
    problems: tuple[str, ...] = ()
    milliseconds: tuple[float, ...]
    median_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    speed: float | None = None
    speed_quartiles: tuple[float, float] | None = None
    speed_reason: str | None = None
    difference: float | None = None
    difference_reason: str | None = None
    load_memory_bytes: int | None = None
    load_memory_reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Of the image that every file of a measurement takes."""

    channels: int
    height_px: int
    width_px: int


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One measurement: files timed on one runtime, interleaved, the first being what the others compare with.

    Attributes:
        runtime: its name.
        description: of the runtime, in words.
        version: of LiteRT there.
        emulated: whether only ratios mean something.
        clock: what was taken: "wall time" or "processor time".
        processor: of the machine.
        threads: of the runtime.
        warmup: rounds before those that count.
        rounds: how often each file was timed.
        image: what the files take.
        files: in the order they were given.
        device: of a phone, what it says of itself and what was done to keep it cool, in words by name.
    """

    runtime: str
    description: str = ""
    version: str = ""
    emulated: bool = False
    clock: str = ""
    processor: str = ""
    threads: int = 1
    warmup: int = 0
    rounds: int = 0
    image: ImageSize | None = None
    files: tuple[FileTiming, ...]
    device: dict[str, str] | None = None


def to_plain(result: BenchResult) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    return {"schema": SCHEMA, **dataclasses.asdict(result)}


def read(path: Path) -> BenchResult:
    """Read what `edgeprune bench --json PATH` wrote.

    Raises:
        UserError: it cannot be read, or is something else; every mistake, one line each.
    """
    advice = f"{path} is not what edgeprune bench --json writes"
    data = parsing.read_json(path, "edgeprune bench --json makes it")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not isinstance(data.get("files"), list):
        raise UserError(f"{advice}: no 'files' of schema {SCHEMA} in it")
    try:
        known = _known(BenchResult, data) | {"files": [_known(FileTiming, file) for file in data["files"]]}
        return parsing.build(BenchResult, known, "bench")
    except UserError as error:
        raise UserError([f"{advice}: {problem}" for problem in error.problems]) from None


def load_memory_bytes(measurements: Iterable[BenchResult], sha256: str) -> int | None:
    """The load memory of a file: the most that was measured; None where none was."""
    values = [
        file.load_memory_bytes
        for measurement in measurements
        for file in measurement.files
        if file.sha256 == sha256 and file.load_memory_bytes is not None
    ]
    return max(values, default=None)


def time_ratio(
    measurements: Iterable[BenchResult], sha256: str, dense_sha256: str | None = None
) -> float | None:
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


def _ratio(files: Sequence[FileTiming], sha256: str, dense_sha256: str | None) -> float | None:
    own = next((file for file in files if file.sha256 == sha256), None)
    dense = next((file for file in files if dense_sha256 in (None, file.sha256)), None)
    if own is None or dense is None or not own.milliseconds or not dense.milliseconds:
        return None
    # Round by round, as `edgeprune bench` compares: what slowed a round down slowed both files.
    pairs = zip(own.milliseconds, dense.milliseconds, strict=False)
    ratios = [mine / theirs for mine, theirs in pairs if min(mine, theirs) > 0]  # a coarse clock may read 0
    return statistics.median(ratios) if ratios else None


def _known(record: type[BenchResult] | type[FileTiming], data: object) -> Any:
    """What is asked for here, of all that was written."""
    names = [field.name for field in dataclasses.fields(record)]
    return {name: data[name] for name in names if name in data} if isinstance(data, dict) else data
