"""What other commands measured of a run and left in its folder: `sensitivity.json` and `bench*.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import UserError
from edgeprune.report import strict
from edgeprune.report.records import Bench, LayerDrops, Row, Sensitivity, Timing

SENSITIVITY = "sensitivity.json"
BENCHES = "bench*.json"


@dataclass(frozen=True)
class _TimedFile:
    """A file as `edgeprune bench --json` writes it; the rest of its fields are not read here."""

    sha256: str
    median_ms: float | None
    quartiles_ms: tuple[float, float] | None
    load_memory_bytes: int | None = None


@dataclass(frozen=True)
class _Measurement:
    runtime: str
    description: str
    version: str
    emulated: bool
    processor: str
    threads: int
    rounds: int
    files: tuple[_TimedFile, ...]


def sensitivity(folder: Path) -> Sensitivity | None:
    """Read a run folder's `sensitivity.json`; None where there is none.

    Raises:
        UserError: it holds something else.
    """
    from edgeprune import sensitivity as measured  # brings torch

    path = folder / SENSITIVITY
    if not path.exists():
        return None
    found = measured.read(path)
    return Sensitivity(
        block=found.block,
        images=found.images,
        image_source=found.image_source,
        top1=found.top1,
        sparsities=found.sparsities,
        layers=tuple(
            LayerDrops(layer.name, layer.weights, tuple(drops))
            for layer, drops in zip(found.layers, found.drops_points().tolist(), strict=True)
        ),
        left_dense=found.left_dense,
    )


def benches(folder: Path, rows: Sequence[Row]) -> tuple[Bench, ...]:
    """Read every `bench*.json` of a run folder; of its files those that are the run's, by their digests.

    Raises:
        UserError: one of them holds something else.
    """
    paths = {row.sha256: row.path for row in rows}
    found = []
    for source in sorted(folder.glob(BENCHES)):
        measured = _read(source)
        timings = {  # by path: a file may have been timed twice, and the first counts
            paths[file.sha256]: Timing(
                paths[file.sha256], file.median_ms, file.quartiles_ms, file.load_memory_bytes
            )
            for file in reversed(measured.files)
            if file.sha256 in paths and file.median_ms is not None and file.quartiles_ms is not None
        }
        if timings:
            values = {key: value for key, value in vars(measured).items() if key != "files"}
            in_order = tuple(timings[row.path] for row in rows if row.path in timings)
            found.append(Bench(source=source.name, timings=in_order, **values))
    return tuple(found)


def _read(path: Path) -> _Measurement:
    advice = f"{path}: not what edgeprune bench --json writes; move it out of the run folder"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{advice}: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != 1 or not isinstance(data.get("files"), list):
        raise UserError(f"{advice}: it has no 'files' of schema 1")
    try:
        known = _only(_Measurement, data) | {"files": [_only(_TimedFile, file) for file in data["files"]]}
        return strict.build(_Measurement, known, "bench")
    except UserError as error:
        raise UserError([f"{advice}: {problem}" for problem in error.problems]) from None


def _only(cls: Any, data: Any) -> dict[str, Any]:
    """The fields of a record, without those that only `edgeprune bench` itself has to know."""
    names = cls.__dataclass_fields__
    return {key: value for key, value in data.items() if key in names} if isinstance(data, dict) else {}
