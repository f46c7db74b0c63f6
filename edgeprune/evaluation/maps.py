"""A segmentation variant's maps beside the dense model's: each class, and pictures of both.

The counterpart of `examining` for maps: there is no one class an image to be confused with another.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from torch import Tensor

from converters.facts import sha256
from converters.files import replacing
from edgeprune.data.dataset import Data
from edgeprune.evaluation.errors import DENSE, read_kept
from edgeprune.pipeline.run_folder import Run, write_json
from edgeprune.report.records import ClassIou, MapExamination
from edgeprune.tasks.task import IGNORED, confusion, ious

NOT_EXAMINED = "confusions and worse images are told for models that name one class an image"
PICTURES = 4
PICTURE_PX, PICTURE_QUALITY = 128, 80  # of the side of each of the four parts
GOLDEN = 0.618034  # steps of this around the circle of hues are far from each other, however many


def examine(variant: str, outputs: Tensor, dense_outputs: Tensor, data: Data, folder: Run) -> MapExamination:
    """Count each class in a variant's maps, and keep that with pictures in the run folder.

    Args:
        variant: its name.
        outputs: (n, classes, h, w) of it on the held-out images.
        dense_outputs: likewise of the dense model.
        data: the run's.
        folder: where its weights are, and where this is kept.
    """
    labels = data.held_out.labels
    predicted, dense = outputs.argmax(1), dense_outputs.argmax(1)
    counts, dense_counts = (confusion(maps, labels, len(data.classes)) for maps in (predicted, dense))
    examination = MapExamination(
        variant=variant,
        weights_sha256=sha256(folder.weights(variant)),
        dense_sha256=sha256(folder.weights(DENSE)),
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
        pictures=() if variant == DENSE else _keep_pictures(variant, predicted, dense, data, folder),
    )
    write_json(folder.examination(variant), dataclasses.asdict(examination))
    return examination


def kept(folder: Run, variant: str) -> MapExamination | None:
    """What was found out about a variant, see `examining.read_kept`."""
    return read_kept(folder, variant, MapExamination)


def _known(iou: float) -> float | None:
    return None if np.isnan(iou) else iou


def _keep_pictures(
    variant: str, predicted: Tensor, dense: Tensor, data: Data, folder: Run
) -> tuple[str, ...]:
    """Write the images on which most pixels differ, each beside its maps; their paths in the run folder."""
    from PIL import Image

    differing = (predicted != dense).flatten(1).sum(1)
    colours = palette(len(data.classes))
    names = []
    for place in differing.argsort(descending=True, stable=True)[:PICTURES].tolist():
        image = data.held_out.images[place].permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
        labels = data.held_out.labels[place].long()
        maps = [coloured(of, colours) for of in (labels, dense[place], predicted[place])]
        parts = [
            Image.fromarray(part).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.NEAREST)
            for part in (image, *maps)
        ]
        file = io.BytesIO()
        Image.fromarray(np.concatenate([np.asarray(part) for part in parts], 1)).save(
            file, "JPEG", quality=PICTURE_QUALITY
        )
        names.append(f"thumbnails/{variant}-{place:05d}.jpg")
        with replacing(folder.folder / names[-1]) as temporary:
            temporary.write_bytes(file.getbuffer())
    return tuple(names)


def palette(classes: int) -> np.ndarray:
    """A colour for each class, (classes, 3) uint8: the first is black, the others bright."""
    from colorsys import hsv_to_rgb

    bright = [hsv_to_rgb(number * GOLDEN % 1, 0.65, 1.0) for number in range(classes - 1)]
    return (255 * np.array([(0.0, 0.0, 0.0), *bright])).astype(np.uint8)


def coloured(classes: Tensor, colours: np.ndarray) -> np.ndarray:
    """A map (h, w) of classes as a picture (h, w, 3) uint8; pixels that do not count are grey."""
    picture: np.ndarray = colours[classes.clamp(min=0).numpy()]
    picture[(classes == IGNORED).numpy()] = 128
    return picture
