"""Images decoded when they are needed, by worker processes: memory does not grow with their number."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgeprune import processes
from edgeprune.data.dataset import Change, pick
from edgeprune.data.files import shortened, unreadable
from edgeprune.errors import UserError

FAULTY_FRACTION = 0.01  # Of the training images, that may be unreadable once a training is under way.
MOST_WORKERS = 8
CHECKED_AT_ONCE = 64
AHEAD = 2  # Batches that each worker has ready.
THREADS = 4  # For a few images that are asked for alone.


class Images(Protocol):
    """Where images are, and how one of them is read; it is sent to worker processes."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """Decode one: (size, size, 3) uint8, RGB, prepared for the model; whatever is wrong is raised."""
        ...

    def name(self, index: int) -> str:
        """What to call it in messages."""
        ...


@dataclass(frozen=True)
class Streamed:
    """A split whose images are decoded when they are asked for.

    Attributes:
        images: where they are.
        labels: see `Split`.
        size_px: side of the square images.
        skips: whether an image that cannot be read is left out; else it is an error at once.
        version: digest that is another one as soon as one of the images is.
        faults: what was wrong with those left out so far, by index.
    """

    images: Images
    labels: Any
    size_px: int
    skips: bool
    version: str
    faults: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Any]:
        """See `Split`; images that are left out are missing, with their labels.

        Raises:
            UserError: an image cannot be read, or too many cannot.
        """
        with ThreadPoolExecutor(THREADS) as pool:
            read = list(pool.map(lambda index: _read(self.images, index), indices.tolist()))
        return self._readable(indices, *_stacked(read, self.size_px))

    def batches(self, parts: Sequence[Tensor], change: Change | None = None) -> Iterator[tuple[Tensor, Any]]:
        """See `Split`: worker processes decode what comes next.

        Raises:
            UserError: an image cannot be read, or too many cannot.
        """
        # A generator of its own: what else is drawn from torch's must not depend on where images are.
        loader = DataLoader(
            _Parts(self.images, _plain(parts), self.size_px, change),
            batch_size=None,
            num_workers=min(worker_count(), len(parts)),
            prefetch_factor=AHEAD if parts else None,
            multiprocessing_context=_clean_processes() if parts else None,
            generator=torch.Generator(),
        )
        for part, (images, faults) in zip(parts, loader, strict=True):
            yield self._readable(part, images, faults)

    def check(self) -> Iterator[int]:
        """Decode every image once, giving how many are done.

        Raises:
            UserError: names those that cannot be read.
        """
        parts = torch.split(torch.arange(len(self)), CHECKED_AT_ONCE)
        loader = DataLoader(
            _Checks(self.images, _plain(parts)),
            batch_size=None,
            num_workers=worker_count(),
            multiprocessing_context=_clean_processes(),
            generator=torch.Generator(),
        )
        problems: list[str] = []
        for part, faults in zip(parts, loader, strict=True):
            problems += faults
            yield int(part[-1]) + 1
        if problems:
            raise UserError(shortened(problems))

    def _readable(self, part: Tensor, images: Tensor, faults: dict[int, str]) -> tuple[Tensor, Any]:
        if not faults:
            return images, pick(self.labels, part)
        self.faults.update(faults)
        if not self.skips or len(self.faults) > FAULTY_FRACTION * len(self):
            told = shortened([self.faults[index] for index in sorted(self.faults)])
            more = f"more than {FAULTY_FRACTION:.0%} of the training images cannot be read:"
            raise UserError([more, *told] if self.skips else told)
        kept = torch.tensor([index not in faults for index in part.tolist()])
        return images[kept], pick(self.labels, part[kept])


@dataclass(frozen=True)
class _Parts(Dataset[Any]):
    """Batches, each read whole by one worker."""

    images: Images
    parts: Sequence[np.ndarray]
    size_px: int
    change: Change | None

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> tuple[Tensor, dict[int, str]]:
        if place >= len(self.parts):
            raise IndexError(place)
        indices = self.parts[place].tolist()
        images, faults = _stacked([_read(self.images, index) for index in indices], self.size_px)
        if self.change is not None:
            images = torch.stack([self.change(index, images[k]) for k, index in enumerate(indices)])
        return images, faults


@dataclass(frozen=True)
class _Checks(Dataset[Any]):
    """What is wrong with the images of each part."""

    images: Images
    parts: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, place: int) -> list[str]:
        if place >= len(self.parts):
            raise IndexError(place)
        read = (_read(self.images, index)[1] for index in self.parts[place].tolist())
        return [fault for fault in read if isinstance(fault, str)]


def _read(images: Images, index: int) -> tuple[int, np.ndarray | str]:
    """An image, or what is wrong with it."""
    try:
        return index, images.read(index)
    except Exception as error:  # Pillow raises many types on a bad file.
        return index, unreadable(images.name(index), error)


def _stacked(read: Sequence[tuple[int, np.ndarray | str]], size_px: int) -> tuple[Tensor, dict[int, str]]:
    """Images (k, 3, size, size), black where one cannot be read, and why those cannot."""
    images = np.zeros((len(read), 3, size_px, size_px), np.uint8)
    faults = {}
    for place, (index, found) in enumerate(read):
        if isinstance(found, str):
            faults[index] = found
        else:
            images[place] = found.transpose(2, 0, 1)
    return torch.from_numpy(images), faults


def _plain(parts: Sequence[Tensor]) -> list[np.ndarray]:
    """Indices as arrays: tensors are sent through shared memory, a file descriptor each."""
    return [part.numpy() for part in parts]


def _clean_processes() -> Any:
    """What begins worker processes: not copies of this one, whose libraries have threads and locks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # Then torch is imported once for all of them.
    return context


def worker_count() -> int:
    """Processes that decode for this one: the machine's cores shared by all that train on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes.count()))
    return max(1, min(cores // here, MOST_WORKERS))
