"""Generated scenes with a class for each pixel: the embedded digits on coloured, textured, noisy backgrounds.
`edgeprune.data.box_scenes` has boxes around the digits of scenes like these.

Made again each time, always alike, and honest: training scenes hold training digits only, held-out scenes
only digits that no training scene has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.data.dataset import Data, InMemory, Split, as_data, as_split, spread_subset
from edgeprune.data.digits import Digits, digits
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress

LABELS = LabelKind.MAP

CLASSES = ("background", *map(str, range(10)))
TRAIN_SCENES, HELD_OUT_SCENES = 1200, 300
FEWEST_DIGITS, MOST_DIGITS = 2, 4
SIDES = (0.4, 0.5)  # of a digit, over the scene's
PLACES, COLOURS = 16, 8  # drawn for a digit, of which the emptiest and the one that stands out most are taken
COARSE, SHADES = 4, 35.0  # colours along a side of the background, and how far they are from their mean
TEXTURE, NOISE = 15.0, 8.0  # largest swing of the stripes, deviation of the noise; of 255
INK = 0.4  # of a digit's blackest: what counts as the digit
SOFT = 0.25  # its edge, to either side of that


def takes(path: Path | None) -> bool:
    """See `sources.Source`: what a recipe without data of its own gets."""
    return path is None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Make all scenes, squares of this side."""
    train, held_out = digits()
    return as_data(
        make(train, TRAIN_SCENES, prepare.image_size_px, seed=0),
        make(held_out, HELD_OUT_SCENES, prepare.image_size_px, seed=1),
        CLASSES,
        "generated scenes of scikit-learn's handwritten digits",
        photographs=False,
    )


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Up to `count` held-out scenes, spread evenly."""
    return spread_subset(make(digits()[1], HELD_OUT_SCENES, prepare.image_size_px, seed=1), count)


def make(digits: Digits, count: int, size_px: int, seed: int) -> InMemory:
    """Make `count` scenes of these digits, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    scenes = [scene(digits, size_px, random, SIDES, MOST_DIGITS, FEWEST_DIGITS) for _ in range(count)]
    images = np.stack([one.image.transpose(2, 0, 1) for one in scenes])
    return as_split(images, np.stack([one.classes for one in scenes]))


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: (size, size, 3) uint8.
        classes: (size, size) int16, 0 for the background, 1 + digit.
        boxes: (digits, 4) float32, left, top, right, bottom of each digit's ink in pixels.
        digits: (digits,) int64.
    """

    image: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    digits: np.ndarray


def scene(
    digits: Digits,
    size_px: int,
    random: np.random.Generator,
    sides: tuple[float, float],
    most: int,
    fewest: int,
) -> Scene:
    """Draw one scene.

    Args:
        digits: to draw from.
        size_px: side of the image.
        random: decides everything.
        sides: of a digit, over the scene's, least and largest.
        most: digits in it.
        fewest: digits in it.
    """
    image = _background(size_px, random)
    classes = np.zeros((size_px, size_px), np.int16)
    boxes, labels = [], []
    for _ in range(random.integers(fewest, most + 1)):
        chosen = random.integers(len(digits.labels))
        ink = _enlarged(digits.images[chosen], int(size_px * random.uniform(*sides)))
        part = _place(classes, len(ink), random)
        colour = _standing_out(image[part].mean((0, 1)), random)
        cover = np.clip((ink - INK) / (2 * SOFT) + 0.5, 0, 1)[..., None]
        image[part] += cover * (colour - image[part])
        classes[part][ink >= INK] = 1 + digits.labels[chosen]
        boxes.append(_around(ink >= INK, part))
        labels.append(digits.labels[chosen])
    image += random.normal(0, NOISE, image.shape)
    return Scene(
        np.clip(image.round(), 0, 255).astype(np.uint8),
        classes,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
    )


def _around(ink: np.ndarray, part: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is inked, in pixels of the scene that `part` is of."""
    down, right = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    top, left = part[0].start, part[1].start
    return left + right[0], top + down[0], left + right[-1] + 1, top + down[-1] + 1


def _background(size_px: int, random: np.random.Generator) -> np.ndarray:
    """A few colours that run into each other, and stripes over them: (size, size, 3) in about [0, 255]."""
    from PIL import Image

    coarse = random.uniform(0, 255, 3) + random.uniform(-SHADES, SHADES, (COARSE, COARSE, 3))
    pixels = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    smooth = pixels.resize((size_px, size_px), Image.Resampling.BICUBIC)
    angle, stripes, phase = random.uniform(0, np.pi), random.uniform(2, 16), random.uniform(0, 2 * np.pi)
    down, right = np.mgrid[:size_px, :size_px] * (2 * np.pi * stripes / size_px)
    waves = np.sin(down * np.sin(angle) + right * np.cos(angle) + phase)
    scene: np.ndarray = np.asarray(smooth, np.float64) + random.uniform(0, TEXTURE) * waves[..., None]
    return scene


def _enlarged(digit: np.ndarray, side_px: int) -> np.ndarray:
    """A digit (8, 8) as ink (side, side) in [0, 1]."""
    from PIL import Image

    large = Image.fromarray(digit).resize((side_px, side_px), Image.Resampling.BICUBIC)
    ink: np.ndarray = np.asarray(large) / 255
    return ink


def _place(classes: np.ndarray, side_px: int, random: np.random.Generator) -> tuple[slice, slice]:
    """Where a digit covers least of those that are there, of a few places drawn."""
    corners = random.integers(0, len(classes) - side_px + 1, (PLACES, 2))
    parts = [(slice(top, top + side_px), slice(left, left + side_px)) for top, left in corners]
    return min(parts, key=lambda part: np.count_nonzero(classes[part]))


def _standing_out(behind: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Of a few colours drawn, the one farthest from what is behind it, (3,)."""
    colours = random.uniform(0, 255, (COLOURS, 3))
    farthest: np.ndarray = colours[np.linalg.norm(colours - behind, axis=1).argmax()]
    return farthest
