"""What one image alone goes through, by torchvision: parts, light, random operations, erasing, mixing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.training.config import Augment

RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Change:
    """Changes an image by what is drawn for it: from the seed, the epoch and its index, nothing else.

    So it comes out the same in whichever worker or process it is read, and after a training went on.

    Attributes:
        augment: its presets filled in.
        seed: of the run.
        epoch: counted from 0.
    """

    augment: Augment
    seed: int
    epoch: int

    def __call__(self, index: int, image: Tensor) -> Tensor:
        """Of an image (3, h, w) uint8, one of the same size."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, self.epoch, index)))
            for transform in _transforms(self.augment, image.shape[-1]):
                image = transform(image)
        return image


def change_of(augment: Augment, seed: int, epoch: int) -> Change | None:
    """What images go through one by one in an epoch; None where that is nothing."""
    return Change(augment, seed, epoch) if _transforms(augment, 64) else None


def mixed(augment: Augment, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What mixes images (n, 3, h, w) float32 of a batch, and their labels (n,), into shares (n, classes).

    None where nothing is to be mixed.
    """
    from torchvision.transforms import v2

    kinds: list[Any] = []
    if augment.mixup:
        kinds.append(v2.MixUp(alpha=augment.mixup, num_classes=classes))
    if augment.cutmix:
        kinds.append(v2.CutMix(alpha=augment.cutmix, num_classes=classes))
    return v2.RandomChoice(kinds) if kinds else None


@functools.cache  # They are asked for with every image.
def _transforms(augment: Augment, size_px: int) -> list[Any]:
    """torchvision's transforms for one image, in order."""
    from torchvision.transforms import v2

    found: list[Any] = []
    if augment.least_area is not None and augment.least_area < 1:
        found.append(
            v2.RandomResizedCrop(size_px, scale=(augment.least_area, 1.0), ratio=RATIOS, antialias=True)
        )
    if augment.policy == "randaugment":
        found.append(v2.RandAugment())
    if augment.policy == "trivialaugment":
        found.append(v2.TrivialAugmentWide())
    if augment.policy == "augmix":
        found.append(v2.AugMix())
    if augment.colour:
        found.append(v2.ColorJitter(augment.colour, augment.colour, augment.colour))
    if augment.erase_fraction:
        found.append(_Erasing(augment.erase_fraction))
    return found


@dataclass(frozen=True)
class _Erasing:
    """A rectangle filled with the image's mean colour; torchvision's own is black."""

    share: float

    def __call__(self, image: Tensor) -> Tensor:
        from torchvision.transforms import v2

        mean = image.float().mean((1, 2)).round().tolist()
        erased: Tensor = v2.RandomErasing(self.share, value=[int(v) for v in mean])(image)
        return erased
