"""Answers that name one class for an image: how often the right one is the first, or among the first five."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FIRST = 5


class AccuracyEvaluator:
    """An evaluator of top-1 accuracy, with top-5 accuracy as a detail if wanted."""

    def __init__(self, *, with_top5: bool) -> None:
        self._with_top5 = with_top5
        self._images = self._first = self._among_five = 0

    def update(self, outputs: Tensor, labels: Any) -> None:
        """Take in outputs (n, classes), at least five classes for top-5, for labels (n,)."""
        self._images += len(labels)
        self._first += int((outputs.argmax(1) == labels).sum())
        if self._with_top5:
            self._among_five += int((outputs.topk(FIRST, dim=1).indices == labels[:, None]).sum())

    def state(self) -> tuple[int, int, int]:
        """How many images there were, and how many were right, first and among five."""
        return self._images, self._first, self._among_five

    def merge(self, states: Iterable[Any]) -> None:
        """Add up what all processes counted."""
        self._images, self._first, self._among_five = map(sum, zip(*states, strict=True))

    def score(self) -> float:
        """Top-1 accuracy, 0 to 1."""
        return self._first / self._images

    def details(self) -> dict[str, float]:
        """Top-5 accuracy, 0 to 1, if wanted."""
        return {"top5": self._among_five / self._images} if self._with_top5 else {}
