"""Mean average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from edgeprune.data.boxes import Boxes
from edgeprune.models.anchors import Anchors
from edgeprune.tasks.detection.suppression import Found, find

LEAST_SCORE = 0.01  # What is less likely moves no average precision by a thousandth, and costs time.


@dataclass(frozen=True)
class Precision:
    """Average precision, 0 to 1; None of what there is none of.

    Attributes:
        map: mean over classes and over IoUs from 0.50 to 0.95.
        map50: mean over classes at IoU 0.50.
        classes: by class, over IoUs from 0.50 to 0.95.
        classes50: by class, at IoU 0.50.
        sizes: mean over classes and IoUs of small boxes (below 32 px squared), medium, large (from 96 px).
    """

    map: float
    map50: float
    classes: tuple[float | None, ...]
    classes50: tuple[float | None, ...]
    sizes: tuple[float | None, ...]


class PrecisionEvaluator:
    """Collects the boxes found in images and those that are there."""

    def __init__(self, classes: int, anchors: Anchors) -> None:
        self._classes, self._anchors = classes, anchors
        self._images: list[tuple[Found, Boxes]] = []

    def update(self, outputs: Tensor, labels: Any) -> None:
        """Take in outputs (n, boxes, 4 + 1 + classes) for n labels."""
        for rows, own in zip(outputs.numpy(), labels, strict=True):
            self._images.append((find(rows, self._anchors, own.size_px, LEAST_SCORE), own))

    def state(self) -> Any:
        """The images so far."""
        return self._images

    def merge(self, states: Iterable[Any]) -> None:
        """Add the images of all processes."""
        self._images = [image for images in states for image in images]

    def score(self) -> float:
        """Mean average precision."""
        return self.precision().map

    def details(self) -> dict[str, float]:
        """The same at IoU 0.50 alone."""
        return {"map50": self.precision().map50}

    def precision(self) -> Precision:
        """All there is to tell."""
        found, there = zip(*self._images, strict=True)
        return precision(found, there, self._classes)


def precision(found: Sequence[Found], there: Sequence[Boxes], classes: int) -> Precision:
    """Average precisions of the boxes found in images.

    Args:
        found: by image.
        there: by image.
        classes: how many there are.
    """
    if not any(map(len, found)):
        none = tuple(
            0.0 if any(((own.classes == c) & ~own.crowd).any() for own in there) else None
            for c in range(classes)
        )
        return Precision(0.0, 0.0, none, none, (None, None, None))
    # (IoUs, recalls, classes, all and three sizes, 1, 10 and 100 boxes an image), -1 where there is none.
    table = _table(found, there, classes)[..., -1]
    return Precision(
        map=_mean(table[:, :, :, 0]) or 0.0,
        map50=_mean(table[0, :, :, 0]) or 0.0,
        classes=tuple(_mean(table[:, :, place, 0]) for place in range(classes)),
        classes50=tuple(_mean(table[0, :, place, 0]) for place in range(classes)),
        sizes=tuple(_mean(table[:, :, :, size]) for size in (1, 2, 3)),
    )


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _table(found: Sequence[Found], there: Sequence[Boxes], classes: int) -> np.ndarray:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "info": {},
            "images": [{"id": number, "file_name": ""} for number in range(1, len(there) + 1)],
            "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
            "annotations": [
                {"id": number, **annotation} for number, annotation in enumerate(_annotations(there), start=1)
            ],
        }
    )
    given = [
        {
            "image_id": number,
            "category_id": 1 + int(label),
            "bbox": _width_height(corners),
            "score": float(score),
        }
        for number, own in enumerate(found, start=1)
        for corners, label, score in zip(own.corners, own.classes, own.scores, strict=True)
    ]
    evaluation = COCOeval_faster(truth, truth.loadRes(given), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    table: np.ndarray = np.asarray(evaluation.eval["precision"])
    return table


def _annotations(there: Sequence[Boxes]) -> Iterable[dict[str, Any]]:
    for number, own in enumerate(there, start=1):
        for corners, label, crowd in zip(own.corners.numpy(), own.classes, own.crowd, strict=True):
            left, top, width, height = _width_height(corners)
            yield {
                "image_id": number,
                "category_id": 1 + int(label),
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": int(crowd),
            }


def _width_height(corners: np.ndarray) -> list[float]:
    left, top, right, bottom = map(float, corners)
    return [left, top, right - left, bottom - top]
