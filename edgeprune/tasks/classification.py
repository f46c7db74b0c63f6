"""Classification: one class for an image, scored by the share of images whose class is named first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune.data.labels import LabelKind
from edgeprune.evaluation.records import Examination
from edgeprune.tasks.task import Analysed, Analysis, Evaluator, Metric, Move, Section, Task

if TYPE_CHECKING:
    from torch import Tensor

    from edgeprune.data.dataset import Data
    from edgeprune.models.architecture import Architecture
    from edgeprune.training.config import Augment

TOP5_FROM_CLASSES = 20


class Classification:
    """See `edgeprune.tasks.task.Task`; outputs are (n, classes), labels (n,) int64."""

    name = "classification"
    hub = "image-classification"
    metric = Metric(
        "top1",
        "top-1",
        "accuracy",
        {"miou": "this model names one class for a whole image"},
        {"top5": "top-5"},
        hub="accuracy",
    )
    labels = LabelKind.CLASS
    whole_image = False
    section = Section("examinations", Examination, "classification")

    def takes_model(self, name: str) -> bool:
        """Every model that gives neither maps nor boxes is taken for a classifier."""
        from edgeprune.models.build import gives_boxes, gives_maps

        return not gives_maps(name) and not gives_boxes(name)

    def bound(self, architecture: Architecture) -> Task:
        """Its outputs say all there is to know."""
        return self

    def problems(self, augment: Augment) -> list[str]:
        """It can use all settings."""
        return []

    def loss(self, outputs: Tensor, labels: Any, label_smoothing: float) -> Tensor:
        """Cross entropy."""
        from edgeprune.tasks.confusion import cross_entropy

        return cross_entropy(outputs, labels, label_smoothing)

    def distillation(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """Divergence of the softened answers (Hinton et al., 2015)."""
        from edgeprune.training.recover import soft_divergence

        return soft_divergence(outputs, taught)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the classes from the other's."""
        from edgeprune.pruning.distilling import divergence

        return divergence(outputs, others)

    def transform_labels(self, labels: Any, move: Move) -> Any:
        """The class of an image stays."""
        return labels

    def evaluator(self, classes: int) -> Evaluator:
        """Top-1, and top-5 where there are classes enough for it to tell anything."""
        from edgeprune.tasks.accuracy import AccuracyEvaluator

        return AccuracyEvaluator(with_top5=classes >= TOP5_FROM_CLASSES)

    def reordered(self, outputs: Tensor, places: Sequence[int]) -> Tensor:
        """Classes are the second axis."""
        return outputs[:, list(places)]

    def metadata(self) -> dict[str, str]:
        """The names of the classes are enough."""
        return {}

    def agreement(self, outputs: Tensor, others: Tensor) -> float:
        """Share of images for which both name the same class."""
        from edgeprune.tasks.confusion import same_class

        return same_class(outputs, others)

    def right(self, outputs: Tensor, labels: Any) -> Tensor | None:
        """Where the class named is the class shown."""
        right: Tensor = outputs.argmax(1) == labels
        return right

    def analysis_steps(self) -> int:
        """Every corruption at every strength, and the images as they are."""
        from edgeprune.evaluation import corruptions

        return corruptions.steps()

    def analyse(
        self, variant: Analysed, dense: Analysed, data: Data, advance: Callable[[int], None]
    ) -> Analysis:
        """Confusions, sample images, and robustness to corruptions."""
        from edgeprune.evaluation import errors

        return errors.examine(variant, dense, data, advance)
