"""From the rows that a detector gives to boxes: decoding, and non-maximum suppression.

An app does the same; the sample apps have it in their own languages, held to the same test vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.models.anchors import CENTRE_SCALE, SIZE_SCALE, Anchors

BOX_VALUES = 4
IOU_LIMIT = 0.5  # Of two boxes of one class that overlap by more, the likelier stays.
MOST_BOXES = 100  # Of an image, as COCO counts them.
MOST_CANDIDATES = 400  # Of a class, before suppression.
LARGEST_GROWTH = np.log(1000.0 / 16)  # A size this much larger than the anchor's is an accident.


@dataclass(frozen=True)
class Found:
    """Boxes found in one image, the likeliest first.

    Attributes:
        corners: (boxes, 4) float32, left, top, right, bottom in pixels of the square image.
        classes: (boxes,) int64.
        scores: (boxes,) float32, 0 to 1.
    """

    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Found:
        """Those with at least this score."""
        kept = self.scores >= score
        return Found(self.corners[kept], self.classes[kept], self.scores[kept])


def find(rows: np.ndarray, anchors: Anchors, size_px: int, least_score: float) -> Found:
    """The boxes in one image.

    Args:
        rows: (boxes, 4 + 1 + classes) float32, as the model gives them.
        anchors: of the model.
        size_px: side of the image.
        least_score: what is less likely is left out, 0 to 1.
    """
    corners, scores = decoded(rows, anchors, size_px)
    kept_places, kept_classes = [], []
    for number in range(scores.shape[1]):
        # The first of several with one score comes first, in every language.
        order = np.argsort(-scores[:, number], kind="stable")[:MOST_CANDIDATES]
        order = order[scores[order, number] >= least_score]
        kept = order[suppressed(corners[order])]
        kept_places.append(kept)
        kept_classes.append(np.full(len(kept), number, np.int64))
    places, classes = np.concatenate(kept_places), np.concatenate(kept_classes)
    best = np.argsort(-scores[places, classes], kind="stable")[:MOST_BOXES]
    places, classes = places[best], classes[best]
    return Found(corners[places], classes, scores[places, classes])


def decoded(rows: np.ndarray, anchors: Anchors, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners and probabilities of all boxes of an image.

    Returns:
        (boxes, 4) float32 left, top, right, bottom, cut off at the image's sides; (boxes, classes) float32.
    """
    base = anchors.boxes(size_px)
    centres = base[:, :2] + rows[:, :2] * CENTRE_SCALE * base[:, 2:]
    halves = base[:, 2:] * np.exp(np.minimum(rows[:, 2:4] * SIZE_SCALE, LARGEST_GROWTH)) / 2
    corners = np.concatenate([centres - halves, centres + halves], 1).clip(0, size_px)
    logits = rows[:, BOX_VALUES:]
    likely = np.exp(logits - logits.max(1, keepdims=True))
    return corners.astype(np.float32), (likely / likely.sum(1, keepdims=True))[:, 1:].astype(np.float32)


def suppressed(corners: np.ndarray, iou_limit: float = IOU_LIMIT) -> np.ndarray:
    """Places of the boxes that stay: no one overlaps a likelier one that stays by more than the limit.

    Args:
        corners: (boxes, 4), the likeliest first.
        iou_limit: intersection over union, 0 to 1.
    """
    overlaps = ious(corners, corners) > iou_limit
    stays = np.ones(len(corners), bool)
    for place in range(len(corners)):
        if stays[place]:
            stays[place + 1 :] &= ~overlaps[place, place + 1 :]
    return stays.nonzero()[0]


def ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every two boxes, (first, second), 0 where both are empty."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(1) for corners in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    result: np.ndarray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return result


def find_all(outputs: np.ndarray, anchors: Anchors, size_px: int, least_score: float) -> Sequence[Found]:
    """The boxes of several images, of outputs (n, boxes, 4 + 1 + classes)."""
    return [find(rows, anchors, size_px, least_score) for rows in outputs]
