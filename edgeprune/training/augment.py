"""What training images go through."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.tasks.task import Move
from edgeprune.training.config import TrainConfig

GREY = 128
GROWN = 2 / 3  # Share of the epochs after which images have their full size.
SIZE_STEP_PX = 8


def size_px(epoch: int, fit: TrainConfig, full_px: int) -> int:
    """Side of the training images in an epoch, counted from 0.

    Images begin at `fit.first_px` and grow evenly, in steps of 8 pixels, until two thirds of the epochs
    are over (progressive learning, Tan & Le, 2021: EfficientNetV2).

    >>> [size_px(epoch, TrainConfig(epochs=6, first_px=32), 64) for epoch in range(6)]
    [32, 40, 48, 56, 64, 64]
    """
    grown = epoch / (GROWN * fit.epochs)
    if not 0 < fit.first_px < full_px or grown >= 1:
        return full_px
    steps = math.floor(grown * (full_px - fit.first_px) / SIZE_STEP_PX + 1e-9)
    return fit.first_px + SIZE_STEP_PX * steps


@dataclass(frozen=True)
class Own:
    """Which images of a batch this process has: what is drawn is drawn for all, so that all go on alike.

    Attributes:
        whole: images in the batch, in all processes.
        places: of this process's own among them.
    """

    whole: int
    places: Tensor


def random_shift(images: Tensor, most_px: int, generator: torch.Generator, own: Own | None = None) -> Move:
    """A shift of each image by up to `most_px` in both directions; edges are repeated."""
    count, _, height, width = images.shape
    own = own or Own(count, torch.arange(count))
    shifts = torch.randint(-most_px, most_px + 1, (2, own.whole, 1), generator=generator)[:, own.places]
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)[:, None, :, None]  # (n, 1, h, 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)[:, None, None, :]  # (n, 1, 1, w)

    def pixels(images: Tensor) -> Tensor:
        return images.gather(2, rows.expand_as(images)).gather(3, columns.expand_as(images))

    def points(points: Tensor) -> Tensor:
        return points - shifts.flip(0).permute(1, 2, 0)  # (2, n, 1), y first -> (n, 1, 2), x first

    return Move(pixels, _as_maps(pixels), points)


def mirror(which: Tensor, width_px: int) -> Move:
    """Those images that `which` (n,) bool names mirrored left to right."""

    def pixels(images: Tensor) -> Tensor:
        return torch.where(which[:, None, None, None], images.flip(3), images)

    def points(points: Tensor) -> Tensor:
        mirrored = torch.stack([width_px - points[..., 0], points[..., 1]], -1)
        return torch.where(which[:, None, None], mirrored, points)

    return Move(pixels, _as_maps(pixels), points)


def resize(from_px: int, to_px: int) -> Move:
    """Square images made smaller or larger."""
    size = (to_px, to_px)
    return Move(
        lambda images: F.interpolate(images, size, mode="bilinear", antialias=True),
        # Nearest: between two classes there is none.
        lambda maps: F.interpolate(maps[:, None].float(), size, mode="nearest-exact")[:, 0].long(),
        lambda points: points * (to_px / from_px),
        to_px,
    )


def _as_maps(pixels: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves pixels (n, channels, h, w) without mixing them, for maps (n, h, w)."""
    return lambda maps: pixels(maps[:, None])[:, 0]


def erased(images: Tensor, side_px: int, generator: torch.Generator, own: Own | None = None) -> Tensor:
    """Make a square of this side grey in each image, partly outside of it where it lies at the edge."""
    if not side_px:
        return images
    count, _, height, width = images.shape
    own = own or Own(count, torch.arange(count))
    top, left = (
        torch.randint(-side_px // 2, side - side_px // 2, (own.whole, 1), generator=generator)[own.places]
        for side in (height, width)
    )
    rows = (torch.arange(height) >= top) & (torch.arange(height) < top + side_px)  # (n, h)
    columns = (torch.arange(width) >= left) & (torch.arange(width) < left + side_px)  # (n, w)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], GREY)
