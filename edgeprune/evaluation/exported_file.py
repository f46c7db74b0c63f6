"""The truth about a file: read back from disk, decoded, and run on the held-out images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from converters.errors import ToolError
from converters.facts import Converted, LayerFacts, Normalization, download_bytes, sha256
from converters.format import FORMATS, Runnable
from converters.targets import Target
from edgeprune.data.dataset import Split, batches
from edgeprune.evaluation.records import Row
from edgeprune.progress import Progress
from edgeprune.pruning.select import PRUNABLE_KINDS
from edgeprune.tasks.task import Task, scored
from edgeprune.training.predict import normalized

BATCH = 64


def measure(
    converted: Converted,
    target: Target,
    *,
    variant: str,
    folder: Path,
    task: Task,
    held_out: Split,
    classes: Sequence[str],
    normalization: Normalization,
    torch_outputs: Tensor,
    dense_outputs: Tensor,
    dense_score: float,
    progress: Progress,
) -> Row:
    """Run the file on every held-out image and put down what it does.

    Args:
        converted: the file, as its converter described it.
        target: where it will run.
        variant: name of what was done to the weights.
        folder: of the run; the row's path is relative to it.
        task: what the model answers.
        held_out: images it was not trained on.
        classes: their names, in the order of the labels.
        normalization: what the torch model takes, where the file does not normalise itself.
        torch_outputs: (n, classes, ...) of the variant's torch model on the same images.
        dense_outputs: likewise of the dense float32 torch model.
        dense_score: of the dense float32 torch model on the same images, 0 to 1.
        progress: shows how far it is.
    """
    loaded = FORMATS[target.format].load(converted.path)
    outputs = _run(loaded, held_out, normalization, f"running {converted.path.name}", progress)
    outputs = by_class(task, outputs, loaded.input.labels, classes)
    reached, details = scored(task, outputs, held_out.labels, len(classes))
    lost, gained = differences(task, dense_outputs, outputs, held_out.labels)
    sparse, reason = sparse_runtime(converted, target)
    prunable = [layer for layer in converted.layers if layer.kind in PRUNABLE_KINDS]
    return Row(
        variant=variant,
        target=target.name,
        path=converted.path.relative_to(folder).as_posix(),
        bytes=converted.bytes,
        metric=task.metric.key,
        score=reached,
        drop_points=100 * (dense_score - reached),
        agreement=task.agreement(outputs, torch_outputs),
        max_relative_error=float((outputs - torch_outputs).abs().max() / torch_outputs.abs().max()),
        zero_fraction=mean_over_weights(converted.layers, "zero_fraction"),
        prunable_zero_fraction=mean_over_weights(prunable, "zero_fraction"),
        bits_per_weight=mean_over_weights(converted.layers, "bits_per_weight"),
        sparse_runtime=sparse,
        sparse_runtime_reason=reason,
        images=len(held_out),
        sha256=sha256(converted.path),
        input_range=loaded.input.range,
        layers=tuple(dataclasses.asdict(layer) for layer in converted.layers),
        not_measured=dict(task.metric.instead_of),
        details=details,
        download_bytes=download_bytes(converted.path),
        lost_images=lost,
        gained_images=gained,
    )


def differences(
    task: Task, dense_outputs: Tensor, outputs: Tensor, labels: Any
) -> tuple[int, int] | tuple[None, None]:
    """How many images only the dense model has right, and how many only the file; None where none is either.

    Args:
        task: what both answer.
        dense_outputs: (n, classes, ...) of the dense model.
        outputs: of the file for the same images.
        labels: of these images.
    """
    dense, own = task.right(dense_outputs, labels), task.right(outputs, labels)
    if dense is None or own is None:
        return None, None
    return int((dense & ~own).sum()), int((own & ~dense).sum())


def by_class(task: Task, outputs: Tensor, labels: Sequence[str] | None, classes: Sequence[str]) -> Tensor:
    """Put the classes of outputs in the order of `classes`, by what the file calls each of them.

    Args:
        task: what the model answers.
        outputs: as the file gives them.
        labels: the names in the file, in its order; None where it has none.
        classes: the names as they should be.

    Raises:
        ToolError: the file has other names.
    """
    if labels is None:
        return outputs
    if sorted(labels) != sorted(classes):
        raise ToolError(f"the file names its classes {', '.join(labels)}; expected {', '.join(classes)}")
    return task.reordered(outputs, [labels.index(name) for name in classes])


def _run(
    loaded: Runnable, split: Split, normalization: Normalization, title: str, progress: Progress
) -> Tensor:
    """Outputs (n, classes, ...) of a loaded file for all images, plain pixels or normalised as it wants."""
    outputs, done = [], 0
    with progress.track(title, len(split)) as advance:
        for images, _ in batches(split, BATCH):
            pixels = images.float() if loaded.input.range else normalized(images, normalization)
            outputs.append(np.asarray(loaded.predict(pixels.numpy())))
            done += len(images)
            advance(done)
    return torch.from_numpy(np.concatenate(outputs))


def sparse_runtime(converted: Converted, target: Target) -> tuple[bool | None, str | None]:
    """Whether the target's runtime will use sparse kernels (None: unknown), and why not or why unknown."""
    if not any(layer.encoding.startswith("sparse") for layer in converted.layers):
        return False, "no weight is stored sparse"
    return FORMATS[target.format].sparse_runtime(converted.path, target)


def mean_over_weights(layers: Iterable[LayerFacts], field: str) -> float:
    """Mean of a field of the layers over all of their weights."""
    layers = list(layers)
    weights = [int(np.prod(layer.shape)) for layer in layers]
    total = sum(getattr(layer, field) * count for layer, count in zip(layers, weights, strict=True))
    return float(total / max(sum(weights), 1))
