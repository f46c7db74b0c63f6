"""What every source of images gives: training images, held-out images, and the names of their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Change = Callable[[int, Tensor], Tensor]
"""Makes of an image (3, h, w) uint8, by its index in the split, another of the same size."""


class Split(Protocol):
    """Images with their labels, in memory or decoded when asked for.

    Attributes:
        labels: of all images, in order: (n,) int64 for `LabelKind.CLASS`; (n, size, size) int16 for
            `LabelKind.MAP`, pixels that do not count are `IGNORED`; a sequence of n for `LabelKind.BOXES`.
        size_px: side of the square images.
    """

    @property
    def labels(self) -> Any:
        """Of all images."""
        ...

    @property
    def size_px(self) -> int:
        """Side of the images."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Any]:
        """Images (k, 3, size, size) uint8, RGB in [0, 255], and their labels, of k indices (k,) int64."""
        ...

    def batches(self, parts: Sequence[Tensor], change: Change | None = None) -> Iterator[tuple[Tensor, Any]]:
        """What `batch` gives for each of `parts`, in order; what is not in memory is decoded ahead.

        `change` is done to each image, of whose labels nothing must follow from where things are in it.
        """
        ...


@dataclass(frozen=True)
class InMemory:
    """A split whose images are all decoded.

    Attributes:
        images: (n, 3, size, size) uint8, RGB in [0, 255].
        labels: see `Split`.
    """

    images: Tensor
    labels: Any

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size_px(self) -> int:
        """Side of the images."""
        return int(self.images.shape[-1])

    def batch(self, indices: Tensor) -> tuple[Tensor, Any]:
        """See `Split`."""
        return self.images[indices], pick(self.labels, indices)

    def batches(self, parts: Sequence[Tensor], change: Change | None = None) -> Iterator[tuple[Tensor, Any]]:
        """See `Split`."""
        for part in parts:
            images, labels = self.batch(part)
            if change is not None:
                images = torch.stack([change(index, images[k]) for k, index in enumerate(part.tolist())])
            yield images, labels


@dataclass(frozen=True)
class Subset:
    """Some images of a split, by their indices (k,) int64."""

    whole: Split
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Any:
        """Of those images."""
        return pick(self.whole.labels, self.indices)

    @property
    def size_px(self) -> int:
        """Side of the images."""
        return self.whole.size_px

    def batch(self, indices: Tensor) -> tuple[Tensor, Any]:
        """See `Split`."""
        return self.whole.batch(self.indices[indices])

    def batches(self, parts: Sequence[Tensor], change: Change | None = None) -> Iterator[tuple[Tensor, Any]]:
        """See `Split`."""
        return self.whole.batches([self.indices[part] for part in parts], change)


@dataclass(frozen=True)
class Data:
    """What a recipe trains and measures on.

    Attributes:
        train: for training.
        held_out: never trained on; every accuracy is measured on it.
        classes: names, in label order.
        source: for people.
        photographs: whether mirroring left to right keeps the meaning.
        sha256: over all pixels and labels; of images decoded as needed over names, bytes and labels.
    """

    train: Split
    held_out: Split
    classes: tuple[str, ...]
    source: str
    photographs: bool
    sha256: str


def pick(labels: Any, indices: Tensor) -> Any:
    """The labels of some images: a tensor's rows, or the entries of a list.

    >>> pick(["cat", "dog", "newt"], torch.tensor([2, 0]))
    ['newt', 'cat']
    """
    return labels[indices] if isinstance(labels, Tensor) else [labels[i] for i in indices.tolist()]


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Any]]:
    """All images in order, `size` at a time, with their labels."""
    return split.batches(torch.split(torch.arange(len(split)), size))


def spread(length: int, count: int) -> list[int]:
    """Up to `count` places from first to last, evenly."""
    return [int(place) for place in np.linspace(0, length - 1, min(count, length))]


def spread_subset(split: Split, count: int) -> Subset:
    """Up to `count` images from first to last, evenly: of every class where a folder is sorted by class."""
    return Subset(split, torch.tensor(spread(len(split), count), dtype=torch.int64))


def fixed_subset(split: Split, count: int) -> Subset:
    """The same `count` images every time, each class with its share; all of them if there are no more.

    Where an image has no single class, those that chance takes.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    labels = split.labels
    if not isinstance(labels, Tensor) or labels.ndim > 1:
        return Subset(split, order[:count].sort().values)
    # The n-th image of every class comes before the n+1-th of any, classes in proportion to their size.
    labels = labels[order]
    sizes = torch.bincount(labels).double()
    rank = torch.zeros(len(labels), dtype=torch.double)
    for label in range(len(sizes)):
        places = labels == label
        rank[places] = torch.arange(int(places.sum()), dtype=torch.double) + 0.5
    chosen = order[(rank / sizes[labels]).argsort(stable=True)[:count]]
    return Subset(split, chosen.sort().values)


def as_split(images: np.ndarray, labels: np.ndarray) -> InMemory:
    """What `InMemory` holds, as tensors."""
    return InMemory(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels))


def _label_parts(labels: Any) -> Iterator[Tensor]:
    """All numbers of labels: a tensor, or of a list what each entry holds."""
    if isinstance(labels, Tensor):
        yield labels
        return
    for entry in labels:
        yield from (value for value in vars(entry).values() if isinstance(value, Tensor))


def as_data(
    train: InMemory, held_out: InMemory, classes: Sequence[str], source: str, *, photographs: bool
) -> Data:
    """What `Data` holds, with its digest."""
    digest = hashlib.sha256("\n".join(classes).encode())
    for split in (train, held_out):
        digest.update(split.images.numpy().data)
        for part in _label_parts(split.labels):
            digest.update(part.numpy().data)
    return Data(train, held_out, tuple(classes), source, photographs, digest.hexdigest())
