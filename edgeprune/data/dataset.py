"""What every source of images gives: the images for training, the held-out ones, and their classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeprune.tasks.task import Task, task_of


@dataclass(frozen=True)
class Split:
    """Images and what they show.

    Attributes:
        images: (n, 3, size, size) uint8, RGB in [0, 255].
        labels: (n,) int64, a class for each image; or (n, size, size) int16, one for each pixel, those that
            are not to count `tasks.IGNORED`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def task(self) -> Task:
        """What such labels ask of a model."""
        return task_of(self.labels)


@dataclass(frozen=True)
class Data:
    """What a recipe trains and measures on.

    Attributes:
        train: for training.
        held_out: never trained on; every accuracy is measured on it.
        classes: names, in label order.
        source: for people.
        photographs: whether mirroring left to right keeps the meaning.
        sha256: over all pixels and labels.
    """

    train: Split
    held_out: Split
    classes: tuple[str, ...]
    source: str
    photographs: bool
    sha256: str


def spread(length: int, count: int) -> list[int]:
    """Up to `count` places from first to last, evenly."""
    return [int(place) for place in np.linspace(0, length - 1, min(count, length))]


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """What `Split` holds, as tensors."""
    return Split(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


def as_data(
    train: Split, held_out: Split, classes: tuple[str, ...], source: str, *, photographs: bool
) -> Data:
    """What `Data` holds, with its digest."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for split in (train, held_out):
        digest.update(split.images.numpy().data)
        digest.update(split.labels.numpy().data)
    return Data(train, held_out, classes, source, photographs, digest.hexdigest())
