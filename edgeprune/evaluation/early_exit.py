"""When an early exit is sure enough: the threshold, chosen on images that the accuracy is not measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    Values = np.ndarray | Tensor


@dataclass(frozen=True)
class Choice:
    """A threshold, and what it does on the images that it was chosen on.

    Attributes:
        threshold: an image exits where its largest softmax probability is at least that; None: none exits.
        exits: share of the images that exit, 0 to 1.
        full: accuracy of the whole model, 0 to 1.
        combined: accuracy with the exit's answers for the images that exit.
        front: accuracy of the exit alone.
        images: how many there were.
    """

    threshold: float | None
    exits: float
    full: float
    combined: float
    front: float
    images: int


def choose_threshold(
    front_scores: Values, full_scores: Values, labels: Values, most_lost_points: float
) -> Choice:
    """The smallest threshold, with which most images exit, that costs at most so many points of accuracy.

    Candidates are the confidences that occur, so that images of the same confidence exit together or not at
    all. Accuracy need not fall evenly with the threshold: a smaller one is taken although a larger one costs
    too much. Where each costs too much, none exits.

    Args:
        front_scores: (n, classes) of the exit, before any softmax: NumPy or torch.
        full_scores: (n, classes) of the whole model.
        labels: (n,) of images to choose on: a validation set, never those that accuracy is measured on.
        most_lost_points: of accuracy in percent, 0 or more.

    Raises:
        UserError: there are no images, the numbers do not match, or points below 0.

    The exit is sure of the first two images, and right; of the third it is less sure, and wrong:

    >>> front = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])
    >>> full = np.array([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [3.0, 0.0]])
    >>> labels = np.array([0, 1, 1, 0])
    >>> chosen = choose_threshold(front, full, labels, most_lost_points=1.0)
    >>> round(chosen.threshold, 2), chosen.exits, chosen.combined
    (0.8, 0.5, 1.0)

    With 25 points to lose every image may exit:

    >>> choose_threshold(front, full, labels, most_lost_points=25).exits
    1.0
    """
    front, full, wanted = (np.asarray(values) for values in (front_scores, full_scores, labels))
    _refuse(front, full, wanted, most_lost_points)
    sure = confidence(front)
    front_right, full_right = front.argmax(1) == wanted, full.argmax(1) == wanted
    order = np.argsort(-sure, kind="stable")
    # Right answers gained with the first 1, 2, ... images out, the surest first.
    gained = np.cumsum(front_right[order].astype(int) - full_right[order])
    most_lost = most_lost_points / 100 * len(wanted) + 1e-9  # Points are not exact in binary.
    ends = np.append(np.diff(sure[order]) != 0, True)  # The last of images of one confidence.
    allowed = np.flatnonzero(ends & (gained >= -most_lost))
    out = int(allowed[-1]) + 1 if len(allowed) else 0
    right = int(full_right.sum()) + (int(gained[out - 1]) if out else 0)
    return Choice(
        threshold=float(sure[order][out - 1]) if out else None,
        exits=out / len(wanted),
        full=float(full_right.mean()),
        combined=right / len(wanted),
        front=float(front_right.mean()),
        images=len(wanted),
    )


def confidence(scores: Values) -> np.ndarray:
    """The largest softmax probability of scores (n, classes), (n,) float64.

    >>> confidence(np.log([[0.75, 0.25], [0.5, 0.5]])).round(6).tolist()
    [0.75, 0.5]
    """
    exact = np.asarray(scores, np.float64)
    found: np.ndarray = 1 / np.exp(exact - exact.max(1, keepdims=True)).sum(1)
    return found


def exits(front_scores: Values, threshold: float | None) -> np.ndarray:
    """Which images exit, (n,) bool; a threshold of None: none."""
    sure = confidence(front_scores)
    return np.zeros(len(sure), bool) if threshold is None else sure >= threshold


def _refuse(front: Any, full: Any, labels: Any, most_lost_points: float) -> None:
    problems = []
    if front.ndim != 2 or front.shape != full.shape or labels.shape != front.shape[:1]:
        problems.append(
            f"scores {front.shape} of the exit, {full.shape} of the model, labels {labels.shape}: expected "
            "(n, classes) twice, and (n,)"
        )
    if not labels.size:
        problems.append("there are no images to choose a threshold on")
    if not most_lost_points >= 0:
        problems.append(f"{most_lost_points} points to lose: 0 or more")
    if problems:
        raise UserError(problems)
