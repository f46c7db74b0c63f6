"""Detection: boxes with a class each, scored by COCO's mean average precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.data.labels import LabelKind
from edgeprune.models.anchors import CENTRE_SCALE, SIZE_SCALE, Anchors
from edgeprune.tasks.detection.records import DetectionExamination
from edgeprune.tasks.task import Analysed, Analysis, Evaluator, Metric, Move, Section, Task

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.data.dataset import Data
    from edgeprune.models.architecture import Architecture
    from edgeprune.training.config import Augment

WHY_NO_CLASSES = "this model gives boxes with a class each"
FIRST_SCORE = 5  # Place of the first class in a row: behind the box and the background.
APP_SCORE = 0.3  # What an app shows unless its makers choose otherwise.


@dataclass(frozen=True)
class Detection:
    """See `edgeprune.tasks.task.Task`; outputs are (n, boxes, 4 + 1 + classes), labels n `Boxes`.

    Attributes:
        anchors: of the models whose outputs are looked at; None before `bound`.
        size_px: side of their images; 0 before `bound`.
    """

    anchors: Anchors | None = None
    size_px: int = 0

    name = "detection"
    hub = "object-detection"
    metric = Metric(
        "map",
        "mAP",
        "mean average precision",
        {"top1": WHY_NO_CLASSES, "miou": WHY_NO_CLASSES},
        {"map50": "mAP at IoU 0.50"},
    )
    labels = LabelKind.BOXES
    whole_image = True
    section = Section(
        "detections",
        DetectionExamination,
        "detection",
        left_out="confusions and robustness to image corruptions are reported for classification only",
    )

    def takes_model(self, name: str) -> bool:
        """Models that give boxes."""
        from edgeprune.models.build import gives_boxes

        return gives_boxes(name)

    def bound(self, architecture: Architecture) -> Task:
        """With the anchors of the model, which its outputs do not hold."""
        from edgeprune.models.build import anchors_of

        return Detection(
            anchors_of(architecture.name, architecture.image_size_px), architecture.image_size_px
        )

    def problems(self, augment: Augment) -> list[str]:
        """A box whose object is erased would still be asked for."""
        told = "augment.erase_px: an object that is erased would still be looked for; 0 for a detection"
        return [told] if augment.erase_px else []

    def loss(self, outputs: Tensor, labels: Any, label_smoothing: float) -> Tensor:
        """SSD's: smooth L1 of the boxes, cross entropy of the classes with the hardest negatives."""
        from edgeprune.tasks.detection.learning import detection_loss

        return detection_loss(outputs, labels, self._anchors, label_smoothing)

    def distillation(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """Softened classes where either sees something, boxes where the teacher does."""
        from edgeprune.tasks.detection.learning import detector_divergence

        return detector_divergence(outputs, taught)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """The same."""
        return self.distillation(outputs, others)

    def transform_labels(self, labels: Any, move: Move) -> Any:
        """Corners go where the pixels go; what mostly leaves the image is dropped."""
        from edgeprune.tasks.detection.moving import moved

        return moved(labels, move)

    def evaluator(self, classes: int) -> Evaluator:
        """Mean average precision."""
        from edgeprune.tasks.detection.precision import PrecisionEvaluator

        return PrecisionEvaluator(classes, self._anchors)

    def reordered(self, outputs: Tensor, places: Sequence[int]) -> Tensor:
        """The boxes and the background stay."""
        kept = range(FIRST_SCORE)
        return outputs[..., [*kept, *(FIRST_SCORE + place for place in places)]]

    def agreement(self, outputs: Tensor, others: Tensor) -> float:
        """Share of boxes that both find, with one class and much the same place."""
        from edgeprune.tasks.detection.comparison import agreement
        from edgeprune.tasks.detection.suppression import find_all

        return agreement(
            *(find_all(of.numpy(), self._anchors, self.size_px, APP_SCORE) for of in (outputs, others))
        )

    def metadata(self) -> dict[str, str]:
        """What an app must know to make boxes of rows; see docs/formats/detectors.md."""
        from edgeprune.tasks.detection.suppression import IOU_LIMIT, MOST_BOXES

        anchors = self._anchors
        told = {
            "size_px": self.size_px,
            "levels": [
                {"cells": side, "shapes": [[round(w, 6), round(h, 6)] for w, h in anchors.shapes(level)]}
                for level, side in enumerate(anchors.sides(self.size_px))
            ],
            "row": ["x", "y", "width", "height", "background", "labels"],
            "centre_scale": CENTRE_SCALE,
            "size_scale": SIZE_SCALE,
            "least_score": APP_SCORE,
            "iou_limit": IOU_LIMIT,
            "most_boxes": MOST_BOXES,
        }
        return {"boxes": json.dumps(told, separators=(",", ":"))}

    def right(self, outputs: Tensor, labels: Any) -> Tensor | None:
        """An image is not right or wrong as a whole."""
        return None

    def analysis_steps(self) -> int:
        """Counted in one step."""
        return 1

    def analyse(
        self, variant: Analysed, dense: Analysed, data: Data, advance: Callable[[int], None]
    ) -> Analysis:
        """Average precision of each class, and pictures of what is missed and found for nothing."""
        from edgeprune.tasks.detection.analysis import examine

        analysis = examine(variant, dense, data, self._anchors)
        advance(1)
        return analysis

    @property
    def _anchors(self) -> Anchors:
        assert self.anchors is not None  # `bound` is what every run calls first.
        return self.anchors
