"""What a model answers, and how good that is: one class for an image, or one for each of its pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label of a pixel that does not count: what torch's cross entropy leaves out."""


@dataclass(frozen=True)
class Task:
    """A kind of answer and its score.

    Attributes:
        name: as recipes have it.
        metric: the field of the report's records that holds the score.
        heading: the metric for people.
        other: the metric that such answers do not have, and why.
        of: from a confusion matrix, see `confusion`, to a score from 0 to 1.
    """

    name: str
    metric: str
    heading: str
    other: tuple[str, str]
    of: Callable[[Tensor], float]

    def score(self, outputs: Tensor, labels: Tensor) -> float:
        """Score outputs (n, classes, ...) against labels (n, ...), 0 to 1."""
        return self.of(confusion(outputs.argmax(1), labels, outputs.shape[1]))

    def fields(self, score: float) -> dict[str, Any]:
        """The fields of a training's record: its score by name, and null for what it is not measured by."""
        metric, why = self.other
        return {metric: None, self.metric: score, "not_measured": {metric: why}}

    def row_fields(self, score: float, dense_score: float) -> dict[str, Any]:
        """The fields of a file's row: those of a training, and the percentage points lost against dense."""
        lost = {self.other[0]: None, self.metric: 100 * (dense_score - score)}
        return self.fields(score) | {f"{metric}_drop_points": points for metric, points in lost.items()}


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Count what was predicted for what there is, (classes, classes) int64: labels by predictions.

    Args:
        predicted: (n,) or (n, h, w) classes.
        labels: the same shape; `IGNORED` does not count.
        classes: how many there are.
    """
    counted = labels != IGNORED
    pairs = labels[counted].long() * classes + predicted[counted]
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def top1(counts: Tensor) -> float:
    """Share of answers that are right."""
    return float(counts.diagonal().sum() / counts.sum().double())


def ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class, (classes,); NaN of one that is neither there nor predicted."""
    hits = counts.diagonal().double()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(counts: Tensor) -> float:
    """Mean of the classes' intersections over unions, those left out that are neither there nor predicted."""
    return float(ious(counts).nanmean())


CLASSIFICATION = Task(
    "classification", "top1", "top-1", ("miou", "this model names one class for a whole image"), top1
)
SEGMENTATION = Task(
    "segmentation",
    "miou",
    "mean IoU",
    ("top1", "this model names a class for each pixel of an image"),
    mean_iou,
)


def task_of(labels: Tensor) -> Task:
    """The task that labels are for: (n,) a class for each image, (n, h, w) one for each pixel."""
    return CLASSIFICATION if labels.ndim == 1 else SEGMENTATION
