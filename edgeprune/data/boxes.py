"""Boxes with a class each: what is wrong with them, and how they become labels, whatever their format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from edgeprune.data.dataset import Data, InMemory, Split, as_data, spread
from edgeprune.data.files import decode, shortened
from edgeprune.data.memory import refuse_too_many
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress

EXIF_ORIENTATION, EXIF_ON_ITS_SIDE = 0x0112, range(5, 9)
# Tools round: what sticks out of the image by no more than that is cut off without a word.
ROUNDING_PX = 1.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True)
class Boxes:
    """What there is in one square image.

    Attributes:
        corners: (boxes, 4) float32, left, top, right, bottom in pixels.
        classes: (boxes,) int64.
        crowd: (boxes,) bool: it stands for many objects, and is neither learned nor counted as missed.
        size_px: side of the image.
    """

    corners: Tensor
    classes: Tensor
    crowd: Tensor
    size_px: int

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Box:
    """A box as a file has it.

    Attributes:
        corners: left, top, right, bottom in pixels of the image.
        label: its class.
        where: in which file, for messages.
        crowd: see `Boxes`.
    """

    corners: tuple[float, float, float, float]
    label: int
    where: str
    crowd: bool = False


@dataclass(frozen=True)
class Annotated:
    """An image file and the boxes in it.

    Attributes:
        image: path of the file.
        boxes: none where there is nothing in it, which is fine.
        size: width and height that the annotations give; None: they do not.
        where: it is said, for messages.
    """

    image: Path
    boxes: Sequence[Box] = ()
    size: tuple[int, int] | None = None
    where: str = ""


@dataclass(frozen=True)
class Annotations:
    """What a format's reader found.

    Attributes:
        train: images.
        held_out: images.
        classes: names, in the order of the labels.
        problems: what is wrong, a line each.
    """

    train: Sequence[Annotated]
    held_out: Sequence[Annotated]
    classes: tuple[str, ...]
    problems: list[str] = field(default_factory=list)


def load_all(found: Annotations, prepare: Preprocessing, progress: Progress, source: str) -> Data:
    """Decode all images, and bring the boxes to where their pixels are.

    Raises:
        UserError: every fault of the images and boxes, in one message.
    """
    count = len(found.train) + len(found.held_out)
    refuse_too_many(3 * count * prepare.image_size_px**2, f"{count:,} images at {prepare.image_size_px} px")
    problems = list(found.problems)
    sizes = {id(one): _checked(one, problems) for one in (*found.train, *found.held_out)}
    if not problems and not sum(len(one.boxes) for one in found.train):
        problems.append(f"{source}: no training image has a box in it")
    problems += [f"{source}: no {what} images" for what, own in _splits(found) if not own]
    # Images are decoded in any case, so that those that cannot be are told at once with all else.
    decoded = []
    for title, own in _splits(found):
        with progress.track(f"reading {title} images", len(own)) as advance:
            decoded.append(_read(own, sizes, prepare, problems, advance))
    if problems:
        raise UserError(shortened(problems))
    train, held_out = decoded
    return as_data(train, held_out, found.classes, source, photographs=True)


def load_some(found: Annotations, prepare: Preprocessing, count: int) -> Split:
    """Decode up to `count` held-out images alone, spread evenly.

    Raises:
        UserError: every fault of them, in one message.
    """
    problems = list(found.problems)
    chosen = [found.held_out[place] for place in spread(len(found.held_out), count)]
    sizes = {id(one): _checked(one, problems) for one in chosen}
    with Progress(Console(quiet=True)).track("", len(chosen)) as advance:
        split = _read(chosen, sizes, prepare, problems, advance)
    if problems:
        raise UserError(shortened(problems))
    return split


def _splits(found: Annotations) -> tuple[tuple[str, Sequence[Annotated]], ...]:
    return (("training", found.train), ("held-out", found.held_out))


def _read(
    images: Sequence[Annotated],
    sizes: dict[int, tuple[int, int] | None],
    prepare: Preprocessing,
    problems: list[str],
    advance: object,
) -> InMemory:
    pixels = decode([one.image for one in images], prepare, problems, advance)  # type: ignore[arg-type]
    labels = [_placed(one, size, prepare) for one in images if (size := sizes[id(one)]) is not None]
    return InMemory(torch.from_numpy(pixels), labels)


def _placed(annotated: Annotated, size: tuple[int, int], prepare: Preprocessing) -> Boxes:
    """The boxes of an image of this width and height, where its pixels are once it is prepared."""
    left, top, width, height = prepare.window(size)
    side = prepare.image_size_px
    corners = np.array([box.corners for box in annotated.boxes], np.float64).reshape(-1, 4)
    seen = (corners - [left, top, left, top]) * [side / width, side / height, side / width, side / height]
    centres = (seen[:, :2] + seen[:, 2:]) / 2
    inside = ((centres > 0) & (centres < side)).all(1)
    return Boxes(
        torch.from_numpy(np.clip(seen[inside], 0, side).astype(np.float32)),
        torch.tensor([box.label for box in annotated.boxes], dtype=torch.int64)[torch.from_numpy(inside)],
        torch.tensor([box.crowd for box in annotated.boxes], dtype=torch.bool)[torch.from_numpy(inside)],
        side,
    )


def _checked(annotated: Annotated, problems: list[str]) -> tuple[int, int] | None:
    """Width and height of an image; what is wrong with its boxes is added to `problems`."""
    if not annotated.image.is_file():
        problems.append(f"{annotated.where}: there is no image {annotated.image}")
        return None
    size = size_of(annotated.image)
    if size is None:
        return None  # Whoever decodes it says so.
    if annotated.size is not None and annotated.size != size:
        told, own = ("x".join(map(str, pair)) for pair in (annotated.size, size))
        problems.append(f"{annotated.where}: {told} pixels, the image {annotated.image} has {own}")
    problems += [
        f"{box.where}: {fault}" for box in annotated.boxes if (fault := box_problem(box.corners, size))
    ]
    return size


def box_problem(corners: tuple[float, float, float, float], size: tuple[int, int]) -> str:
    """What is wrong with a box in an image of this width and height; "" for nothing.

    >>> box_problem((10, 10, 20, 30), (64, 48)), box_problem((20, 10, 10, 30), (64, 48))
    ('', 'box 20, 10, 10, 30: its right is left of its left')
    """
    told = "box " + ", ".join(f"{value:g}" for value in corners)
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)):
        return f"{told}: not all numbers are finite"
    if right < left or bottom < top:
        return f"{told}: its {'right is left of its left' if right < left else 'bottom is above its top'}"
    if right == left or bottom == top:
        return f"{told}: it is empty"
    width, height = size
    if min(left, top) < -ROUNDING_PX or right > width + ROUNDING_PX or bottom > height + ROUNDING_PX:
        return f"{told}: it is outside the image of {width}x{height} pixels"
    return ""


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of an image once it is turned upright; None of one that cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION) in EXIF_ON_ITS_SIDE
    except Exception:  # Pillow raises many types on a bad file.
        return None
    return (height, width) if turned else (width, height)


def names_in(path: Path, problems: list[str]) -> tuple[str, ...]:
    """Class names in a text file, one a line, in order; none where there is no such file."""
    if not path.exists():
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        problems.append(f"{path}: {error}: expected a text file with one class name a line")
        return ()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        problems.append(f"{path}: expected one class name a line, each once")
    return names
