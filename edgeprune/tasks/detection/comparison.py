"""What two models find in the same images, beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.tasks.detection.suppression import Found, ious

SAME_IOU = 0.5


def pairs(corners: np.ndarray, classes: np.ndarray, others: np.ndarray, other_classes: np.ndarray) -> int:
    """How many boxes of one class overlap by half or more, each with one other at most, in their order."""
    return sum(place >= 0 for place in partners(corners, classes, others, other_classes))


def partners(
    corners: np.ndarray, classes: np.ndarray, others: np.ndarray, other_classes: np.ndarray
) -> list[int]:
    """For each box the place of the other of its class that it overlaps most, by half or more; else -1.

    No other is taken twice; the first boxes choose first.

    Args:
        corners: (boxes, 4).
        classes: (boxes,).
        others: (other boxes, 4).
        other_classes: (other boxes,).
    """
    overlaps = ious(corners, others) * (classes[:, None] == other_classes[None])
    found = []
    for row in overlaps:
        best = int(row.argmax()) if row.size else -1
        taken = best >= 0 and row[best] >= SAME_IOU
        found.append(best if taken else -1)
        if taken:
            overlaps[:, best] = 0
    return found


def agreement(found: Sequence[Found], others: Sequence[Found]) -> float:
    """Share of all boxes of two models that both find, 0 to 1; 1 where neither finds any."""
    common = total = 0
    for own, other in zip(found, others, strict=True):
        common += 2 * pairs(own.corners, own.classes, other.corners, other.classes)
        total += len(own) + len(other)
    return common / total if total else 1.0
