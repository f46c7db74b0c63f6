"""What a detector misses and finds for nothing, and the pictures that show it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgeprune.data.boxes import Boxes
from edgeprune.data.dataset import Data
from edgeprune.models.anchors import Anchors
from edgeprune.tasks.detection.comparison import partners
from edgeprune.tasks.detection.precision import LEAST_SCORE, precision
from edgeprune.tasks.detection.records import ClassPrecision, DetectionExamination
from edgeprune.tasks.detection.suppression import Found, find_all
from edgeprune.tasks.task import Analysed, Analysis

DENSE = "dense"
SHOWN_SCORE = 0.3  # As an app shows, see `Detection.metadata`.
PICTURES = 4
PICTURE_PX, PICTURE_QUALITY = 240, 82  # of the side of each of the three parts
GOLDEN = 0.618034  # steps of this around the circle of hues are far from each other, however many
LINE_PX, TEXT_PX = 2, 11


@dataclass(frozen=True)
class Mistakes:
    """What is wrong with what is shown of one image.

    Attributes:
        missed: places among the boxes that are there.
        false_alarms: places among those found.
    """

    missed: tuple[int, ...]
    false_alarms: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.missed) + len(self.false_alarms)


def examine(variant: Analysed, dense: Analysed, data: Data, anchors: Anchors) -> Analysis:
    """Average precision by class, beside the dense model, and the images with most mistakes.

    Args:
        variant: the one to look at.
        dense: the baseline.
        data: the run's.
        anchors: of both.
    """
    there: Sequence[Boxes] = data.held_out.labels
    found, dense_found = (
        find_all(of.outputs.numpy(), anchors, data.held_out.size_px, LEAST_SCORE) for of in (variant, dense)
    )
    count = len(data.classes)
    own, before = precision(found, there, count), precision(dense_found, there, count)
    shown = [of.above(SHOWN_SCORE) for of in found]
    wrong = [mistakes(of, labels) for of, labels in zip(shown, there, strict=True)]
    dense_shown = [of.above(SHOWN_SCORE) for of in dense_found]
    pictures = _pictures(variant.name, data, shown, dense_shown, wrong)
    record = DetectionExamination(
        variant=variant.name,
        weights_sha256=variant.weights_sha256,
        dense_sha256=dense.weights_sha256,
        images=len(there),
        map=own.map,
        map50=own.map50,
        map_small=own.sizes[0],
        map_medium=own.sizes[1],
        map_large=own.sizes[2],
        least_score=SHOWN_SCORE,
        classes=tuple(
            ClassPrecision(
                name=name,
                boxes=sum(int(((of.classes == place) & ~of.crowd).sum()) for of in there),
                dense_map=before.classes[place],
                map=own.classes[place],
                dense_map50=before.classes50[place],
                map50=own.classes50[place],
                missed=sum(
                    int((of.classes[list(m.missed)] == place).sum())
                    for m, of in zip(wrong, there, strict=True)
                ),
                false_alarms=sum(
                    int((of.classes[list(m.false_alarms)] == place).sum())
                    for m, of in zip(wrong, shown, strict=True)
                ),
            )
            for place, name in enumerate(data.classes)
        ),
        pictures=tuple(pictures),
    )
    return Analysis(record, pictures)


def mistakes(found: Found, there: Boxes) -> Mistakes:
    """What is missed and what is found for nothing; what lies on a crowd is neither.

    The likeliest boxes choose first which of those that are there they stand for.
    """
    corners, classes, crowd = there.corners.numpy(), there.classes.numpy(), there.crowd.numpy()
    single = (~crowd).nonzero()[0]
    taken = partners(found.corners, found.classes, corners[single], classes[single])
    rest = [place for place, partner in enumerate(taken) if partner < 0]
    on_crowd = partners_of_any(found.corners[rest], corners[crowd])
    missed = set(range(len(single))) - set(taken)
    return Mistakes(
        tuple(int(single[place]) for place in sorted(missed)),
        tuple(place for place, covered in zip(rest, on_crowd, strict=True) if not covered),
    )


def partners_of_any(corners: np.ndarray, crowds: np.ndarray) -> list[bool]:
    """Which boxes lie in one of the crowds by half or more."""
    if not len(crowds):
        return [False] * len(corners)
    low = np.maximum(corners[:, None, :2], crowds[None, :, :2])
    high = np.minimum(corners[:, None, 2:], crowds[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    own = (corners[:, 2:] - corners[:, :2]).prod(1)
    covered: list[bool] = (common.max(1) >= own / 2).tolist()
    return covered


def _pictures(
    variant: str,
    data: Data,
    shown: Sequence[Found],
    dense: Sequence[Found],
    wrong: Sequence[Mistakes],
) -> dict[str, bytes]:
    """The images with most mistakes: what is there, what dense shows, what the variant shows, by path."""
    there: Sequence[Boxes] = data.held_out.labels
    worst = sorted(range(len(wrong)), key=lambda place: -len(wrong[place]))[:PICTURES]
    colours = palette(len(data.classes))
    found = {}
    for place in worst:
        images, _ = data.held_out.batch(torch.tensor([place]))
        image = images[0].permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
        labels = there[place]
        truth = (labels.corners.numpy(), labels.classes.numpy(), None)
        parts = [
            drawn(image, *boxes, colours, data.classes)
            for boxes in (
                truth,
                *((of.corners, of.classes, of.scores) for of in (dense[place], shown[place])),
            )
        ]
        found[f"thumbnails/{variant}-{place:05d}.jpg"] = _jpeg(np.concatenate(parts, 1))
    return found


def drawn(
    image: np.ndarray,
    corners: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None,
    colours: Sequence[tuple[int, int, int]],
    names: Sequence[str],
) -> np.ndarray:
    """A picture of an image (h, w, 3) with boxes in the colours of their classes, `PICTURE_PX` wide."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(image).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
    draw, scale = ImageDraw.Draw(picture), PICTURE_PX / len(image)
    font = ImageFont.load_default(TEXT_PX)
    for place in range(len(corners)):
        colour = colours[int(classes[place])]
        left, top, right, bottom = (float(value) * scale for value in corners[place])
        draw.rectangle((left, top, right, bottom), outline=colour, width=LINE_PX)
        score = "" if scores is None else f" {scores[place]:.2f}"
        text = f"{names[int(classes[place])]}{score}"
        draw.text(
            (left + LINE_PX + 1, top + LINE_PX),
            text,
            fill=colour,
            font=font,
            stroke_width=1,
            stroke_fill=(0, 0, 0),
        )
    return np.asarray(picture)


def palette(classes: int) -> list[tuple[int, int, int]]:
    """A bright colour for each class."""
    from colorsys import hsv_to_rgb

    return [
        tuple(round(255 * part) for part in hsv_to_rgb(number * GOLDEN % 1, 0.75, 1.0))  # type: ignore[misc]
        for number in range(classes)
    ]


def _jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=PICTURE_QUALITY)
    return file.getvalue()
