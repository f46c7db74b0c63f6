"""Segmentation: a class for each pixel, scored by the mean intersection over union of the classes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeprune.data.labels import IGNORED, LabelKind
from edgeprune.tasks.task import Analysed, Analysis, Evaluator, Metric, Move, Section, Task

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgeprune.data.dataset import Data
    from edgeprune.models.architecture import Architecture
    from edgeprune.training.config import Augment

DENSE = "dense"
PICTURES = 4
PICTURE_PX, PICTURE_QUALITY = 128, 80  # of the side of each of the four parts
GOLDEN = 0.618034  # steps of this around the circle of hues are far from each other, however many


@dataclass(frozen=True)
class ClassIou:
    """One class in the maps of a variant and of the dense model.

    Attributes:
        name: of the class.
        pixels: of it there are in all held-out images.
        dense_iou: of the dense model, intersection over union, 0 to 1; None: it is neither there nor named.
        iou: of the variant, likewise.
    """

    name: str
    pixels: int
    dense_iou: float | None
    iou: float | None


@dataclass(frozen=True)
class MapExamination:
    """The maps of one torch variant, beside those of the dense model of the same held-out images.

    Attributes:
        variant: its name.
        weights_sha256: of its weights in the run folder.
        dense_sha256: of the dense model's.
        images: all held-out images.
        classes: in the order of the classes.
        pictures: of the images on which most pixels differ, in the run folder: the image, what is there, what
            the dense model says, what the variant says. None of the dense model.
    """

    variant: str
    weights_sha256: str
    dense_sha256: str
    images: int
    classes: tuple[ClassIou, ...]
    pictures: tuple[str, ...]


class Segmentation:
    """See `edgeprune.tasks.task.Task`; outputs are (n, classes, h, w), labels (n, h, w)."""

    name = "segmentation"
    hub = "image-segmentation"
    metric = Metric(
        "miou",
        "mean IoU",
        "mean IoU",
        {"top1": "this model names a class for each pixel of an image"},
        hub="mean_iou",
    )
    labels = LabelKind.MAP
    whole_image = False
    section = Section(
        "maps",
        MapExamination,
        "segmentation",
        left_out="confusions and robustness to corruptions are reported for models that name one class",
    )

    def takes_model(self, name: str) -> bool:
        """Models that give a map."""
        from edgeprune.models.build import gives_maps

        return gives_maps(name)

    def bound(self, architecture: Architecture) -> Task:
        """Its outputs say all there is to know."""
        return self

    def problems(self, augment: Augment) -> list[str]:
        """A cut-out has no class."""
        told = "augment.erase_px: a square without its pixels has no class; 0 for a segmentation"
        return [told] if augment.erase_px else []

    def loss(self, outputs: Tensor, labels: Any, label_smoothing: float) -> Tensor:
        """Cross entropy of every pixel that counts."""
        from edgeprune.tasks.confusion import cross_entropy

        return cross_entropy(outputs, labels, label_smoothing)

    def distillation(self, outputs: Tensor, taught: Tensor) -> Tensor:
        """Divergence of every pixel's softened answers (Hinton et al., 2015)."""
        from edgeprune.training.recover import soft_divergence

        return soft_divergence(outputs, taught)

    def divergence(self, outputs: Tensor, others: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the classes from the other's."""
        from edgeprune.pruning.distilling import divergence

        return divergence(outputs, others)

    def transform_labels(self, labels: Any, move: Move) -> Any:
        """The classes of pixels go where the pixels go."""
        return move.maps(labels)

    def evaluator(self, classes: int) -> Evaluator:
        """Mean IoU."""
        from edgeprune.tasks.confusion import ConfusionEvaluator, mean_iou

        return ConfusionEvaluator(classes, mean_iou)

    def reordered(self, outputs: Tensor, places: Sequence[int]) -> Tensor:
        """Classes are the second axis."""
        return outputs[:, list(places)]

    def metadata(self) -> dict[str, str]:
        """The names of the classes are enough."""
        return {}

    def agreement(self, outputs: Tensor, others: Tensor) -> float:
        """Share of pixels for which both name the same class."""
        from edgeprune.tasks.confusion import same_class

        return same_class(outputs, others)

    def right(self, outputs: Tensor, labels: Any) -> Tensor | None:
        """An image is not right or wrong as a whole."""
        return None

    def analysis_steps(self) -> int:
        """Counted in one step."""
        return 1

    def analyse(
        self, variant: Analysed, dense: Analysed, data: Data, advance: Callable[[int], None]
    ) -> Analysis:
        """IoU of each class, and pictures of the maps that differ most from the dense model's."""
        from edgeprune.tasks.confusion import confusion, ious

        labels = data.held_out.labels
        predicted, dense_predicted = variant.outputs.argmax(1), dense.outputs.argmax(1)
        counts, dense_counts = (
            confusion(maps, labels, len(data.classes)) for maps in (predicted, dense_predicted)
        )
        pictures = {} if variant.name == DENSE else _pictures(variant.name, predicted, dense_predicted, data)
        advance(1)
        record = MapExamination(
            variant=variant.name,
            weights_sha256=variant.weights_sha256,
            dense_sha256=dense.weights_sha256,
            images=len(labels),
            classes=tuple(
                ClassIou(name, pixels, _known(dense_iou), _known(iou))
                for name, pixels, dense_iou, iou in zip(
                    data.classes,
                    counts.sum(1).tolist(),
                    ious(dense_counts).tolist(),
                    ious(counts).tolist(),
                    strict=True,
                )
            ),
            pictures=tuple(pictures),
        )
        return Analysis(record, pictures)


def _known(iou: float) -> float | None:
    return None if iou != iou else iou  # NaN is not equal to itself.


def _pictures(variant: str, predicted: Tensor, dense: Tensor, data: Data) -> dict[str, bytes]:
    """The images on which most pixels differ, each beside its maps, by their paths in the run folder."""
    import numpy as np
    import torch
    from PIL import Image

    differing = (predicted != dense).flatten(1).sum(1)
    colours = palette(len(data.classes))
    found = {}
    for place in differing.argsort(descending=True, stable=True)[:PICTURES].tolist():
        images, labels = data.held_out.batch(torch.tensor([place]))
        image = images[0].permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
        maps = [coloured(of, colours) for of in (labels[0].long(), dense[place], predicted[place])]
        parts = [
            Image.fromarray(part).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
            for part in (image, *maps)
        ]
        file = io.BytesIO()
        Image.fromarray(np.concatenate([np.asarray(part) for part in parts], 1)).save(
            file, "JPEG", quality=PICTURE_QUALITY
        )
        found[f"thumbnails/{variant}-{place:05d}.jpg"] = file.getvalue()
    return found


def palette(classes: int) -> np.ndarray:
    """A colour for each class, (classes, 3) uint8: the first is black, the others bright."""
    from colorsys import hsv_to_rgb

    import numpy as np

    bright = [hsv_to_rgb(number * GOLDEN % 1, 0.65, 1.0) for number in range(classes - 1)]
    return (255 * np.array([(0.0, 0.0, 0.0), *bright])).astype(np.uint8)


def coloured(classes: Tensor, colours: np.ndarray) -> np.ndarray:
    """A map (h, w) of classes as a picture (h, w, 3) uint8; pixels that do not count are grey."""
    picture: np.ndarray = colours[classes.clamp(min=0).numpy()]
    picture[(classes == IGNORED).numpy()] = 128
    return picture
