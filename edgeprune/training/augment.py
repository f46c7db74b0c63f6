"""What training images go through."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

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


def moved(images: Tensor, labels: Tensor, move: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Move the pixels of images (n, 3, h, w), and the labels of pixels (n, h, w) with them."""
    return move(images), labels if labels.ndim == 1 else move(labels[:, None])[:, 0]


def random_shift(images: Tensor, most_px: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """A shift of each image by up to `most_px` in both directions; edges are repeated."""
    if not most_px:
        return lambda pixels: pixels
    count, _, height, width = images.shape
    shifts = torch.randint(-most_px, most_px + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shifts[0]).clamp(0, height - 1)[:, None, :, None]  # (n, 1, h, 1)
    columns = (torch.arange(width) + shifts[1]).clamp(0, width - 1)[:, None, None, :]  # (n, 1, 1, w)
    return lambda pixels: pixels.gather(2, rows.expand_as(pixels)).gather(3, columns.expand_as(pixels))


def mirror(pixels: Tensor, which: Tensor) -> Tensor:
    """Those of (n, channels, h, w) that `which` (n, 1, 1, 1) names mirrored left to right."""
    return torch.where(which, pixels.flip(3), pixels)


def resized(images: Tensor, labels: Tensor, side_px: int) -> tuple[Tensor, Tensor]:
    if side_px == images.shape[-1]:
        return images, labels
    size = (side_px, side_px)
    images = F.interpolate(images, size, mode="bilinear", antialias=True)
    if labels.ndim == 1:
        return images, labels
    # Nearest: between two classes there is none.
    return images, F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def erased(images: Tensor, side_px: int, generator: torch.Generator) -> Tensor:
    """Make a square of this side grey in each image, partly outside of it where it lies at the edge."""
    if not side_px:
        return images
    count, _, height, width = images.shape
    top = torch.randint(-side_px // 2, height - side_px // 2, (count, 1), generator=generator)
    left = torch.randint(-side_px // 2, width - side_px // 2, (count, 1), generator=generator)
    rows = (torch.arange(height) >= top) & (torch.arange(height) < top + side_px)  # (n, h)
    columns = (torch.arange(width) >= left) & (torch.arange(width) < left + side_px)  # (n, w)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], GREY)
