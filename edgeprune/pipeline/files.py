"""The files of a variant, one for each target: written, read back, run, and what it gets wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from converters.facts import sha256
from converters.format import FORMATS
from converters.targets import TARGETS, Storage, Target
from edgeprune.data.dataset import Split, spread
from edgeprune.evaluation import exported_file
from edgeprune.evaluation.records import Row
from edgeprune.pipeline.context import RunContext
from edgeprune.pipeline.store import analysis_of, keep_analysis, keep_row, row_of
from edgeprune.pipeline.variants import Model
from edgeprune.tasks.task import Analysed

CALIBRATION_IMAGES = 64  # What a static int8 file takes its ranges from.


def rows(context: RunContext, model: Model, baseline: Model) -> Iterator[Row]:
    """Convert a variant for every target and measure the files, but for those that were measured before."""

    @functools.cache  # The slow half of a conversion, the same for every target of a format.
    def prepared(format: str) -> Any:
        return FORMATS[format].prepare(model.module, context.example, context.normalization)

    for target in (TARGETS[name] for name in context.recipe.targets):
        row = row_of(context.run, model.name, target.name)
        yield _row(context, model, baseline, target, prepared) if row is None else row


def _row(
    context: RunContext, model: Model, baseline: Model, target: Target, prepared: Callable[[str], Any]
) -> Row:
    """Convert a variant for one target and measure the file."""
    data, progress, format = context.data, context.progress, FORMATS[target.format]
    path = context.run.file(model.name, target.name, format.suffix)
    needs_images = target.storage is Storage.STATIC_INT8
    with progress.track(f"writing {path.name}", 1):
        converted = format.write(
            prepared(target.format),
            target,
            path,
            labels=data.classes,
            calibration=calibration_images(data.train) if needs_images else None,
            metadata=context.recipe.preprocessing.to_metadata() | context.task.metadata(),
        )
    row = exported_file.measure(
        converted,
        target,
        variant=model.name,
        folder=context.run.folder,
        task=context.task,
        held_out=data.held_out,
        classes=data.classes,
        normalization=context.normalization,
        torch_outputs=model.outputs,
        dense_outputs=baseline.outputs,
        dense_score=baseline.record.score,
        progress=progress,
    )
    keep_row(context.run, row)
    heading = context.task.metric.heading
    progress.say(f"  {row.path}: {row.bytes:,} bytes, {heading} {100 * row.score:.1f} %")
    return row


def analyse(context: RunContext, model: Model, baseline: Model) -> None:
    """Look at what a variant gets wrong, unless that was done before."""
    task = context.task
    if analysis_of(context.run, model.name, task) is not None:
        return
    with context.progress.track(f"corrupted images for {model.name}", task.analysis_steps()) as advance:
        looked_at, dense = (
            Analysed(
                own.name,
                own.module,
                own.outputs,
                sha256(context.run.weights(own.name)),
                context.normalization,
            )
            for own in (model, baseline)
        )
        keep_analysis(context.run, model.name, task.analyse(looked_at, dense, context.data, advance))


def calibration_images(train: Split) -> np.ndarray:
    """Plain pixels (n, 3, size, size) float32 of training images of every class: they are kept by class."""
    places = torch.tensor(spread(len(train), CALIBRATION_IMAGES))
    pixels: np.ndarray = train.batch(places)[0].float().numpy()
    return pixels
