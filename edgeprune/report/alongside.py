"""What other commands measured of a run and left in its folder: `sensitivity.json` and `bench*.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeprune.errors import UserError
from edgeprune.evaluation import bench_result, sensitivity_result
from edgeprune.evaluation.records import Row
from edgeprune.report.records import Bench, LayerDrops, Sensitivity, Timing

SENSITIVITY = "sensitivity.json"
BENCHES = "bench*.json"
AUGMENTED = "thumbnails/augmented.jpg"  # Training images as training sees them.
# What the report says of a measurement as it was.
SHARED = ("runtime", "description", "version", "emulated", "processor", "threads", "rounds")


def sensitivity(folder: Path) -> Sensitivity | None:
    """Read a run folder's `sensitivity.json`; None where there is none.

    Raises:
        UserError: it holds something else.
    """
    path = folder / SENSITIVITY
    if not path.exists():
        return None
    found = sensitivity_result.read(path)
    return Sensitivity(
        block=found.block,
        images=found.images,
        image_source=found.image_source,
        metric=found.metric,
        score=found.score,
        sparsities=found.sparsities,
        layers=tuple(
            LayerDrops(layer.name, layer.weights, tuple(drops))
            for layer, drops in zip(found.layers, found.drops_points(), strict=True)
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
        try:
            measured = bench_result.read(source)
        except UserError as error:
            advice = f"move {source.name} out of the run folder"
            raise UserError([*error.problems, advice]) from None
        timings = {  # by path: a file may have been timed twice, and the first counts
            paths[file.sha256]: Timing(
                paths[file.sha256], file.median_ms, file.quartiles_ms, file.load_memory_bytes
            )
            for file in reversed(measured.files)
            if file.sha256 in paths and file.median_ms is not None and file.quartiles_ms is not None
        }
        if timings:
            values = {name: getattr(measured, name) for name in SHARED}
            in_order = tuple(timings[row.path] for row in rows if row.path in timings)
            found.append(Bench(source=source.name, timings=in_order, **values))
    return tuple(found)
