"""Answers that name a class, for an image or for each pixel: what was predicted for what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from edgeprune.data.labels import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


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


class ConfusionEvaluator:
    """An evaluator whose score follows from the confusion matrix alone."""

    def __init__(self, classes: int, of: Callable[[Tensor], float]) -> None:
        import torch

        self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        self._of = of

    def update(self, outputs: Tensor, labels: Any) -> None:
        """Take in outputs (n, classes, ...) for labels (n, ...)."""
        self.counts += confusion(outputs.argmax(1), labels, len(self.counts))

    def state(self) -> Tensor:
        """The confusion matrix so far."""
        return self.counts

    def merge(self, states: Iterable[Any]) -> None:
        """Add the confusion matrices of all processes."""
        self.counts = sum(states, start=self.counts.new_zeros(self.counts.shape))

    def score(self) -> float:
        """The metric, 0 to 1."""
        return self._of(self.counts)

    def details(self) -> dict[str, float]:
        """None."""
        return {}


def ious(counts: Tensor) -> Tensor:
    """Intersection over union of each class, (classes,); NaN of one that is neither there nor named."""
    hits = counts.diagonal().double()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def mean_iou(counts: Tensor) -> float:
    """Mean of the classes' intersections over unions, those left out that are neither there nor named."""
    return float(ious(counts).nanmean())


def same_class(outputs: Tensor, others: Tensor) -> float:
    """Share of answers (n, classes, ...) that name the same class, 0 to 1."""
    return float((outputs.argmax(1) == others.argmax(1)).double().mean())


def cross_entropy(outputs: Tensor, labels: Any, label_smoothing: float) -> Tensor:
    """Mean cross entropy of outputs (n, classes, ...) and labels (n, ...), or shares (n, classes) of them."""
    from torch.nn import functional as F

    wanted = labels if labels.is_floating_point() else labels.long()
    return F.cross_entropy(outputs, wanted, label_smoothing=label_smoothing)
