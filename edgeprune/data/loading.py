"""Images that a source has listed become data: in memory where they fit, else decoded as they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeprune.data.dataset import Data, InMemory, Split, as_data, as_split, spread
from edgeprune.data.files import in_threads, shortened, unreadable
from edgeprune.data.memory import memory_bytes
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.streamed import Images, Streamed
from edgeprune.errors import UserError
from edgeprune.progress import Progress

IN_MEMORY_FRACTION = 0.25  # Of this process's memory, that all decoded images together may fill.


@dataclass(frozen=True)
class Listed:
    """Images and labels of a split, none of them decoded yet.

    Attributes:
        images: where they are, and how one is read.
        labels: (n,) int64.
        content: digest of what tells images from others without reading them: names and bytes.
        version: digest that is another one as soon as a file is written to, here, as its time tells.
    """

    images: Images
    labels: np.ndarray
    content: str
    version: str


@dataclass(frozen=True)
class Names:
    """Many names in little memory, which processes that were forked go on sharing.

    Attributes:
        text: all of them, one after the other, UTF-8.
        ends: (n + 1,) where each begins, and the last one ends.
    """

    text: bytes
    ends: np.ndarray

    @staticmethod
    def of(names: Sequence[str]) -> Names:
        """Pack these names."""
        packed = [name.encode("utf-8", "surrogateescape") for name in names]
        return Names(b"".join(packed), np.cumsum([0, *map(len, packed)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.text[self.ends[index] : self.ends[index + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder; see `Images`."""

    root: Path
    names: Names
    prepare: Preprocessing

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> np.ndarray:
        """See `Images`."""
        return self.prepare.read(self.root / self.names[index])

    def name(self, index: int) -> str:
        """See `Images`."""
        return str(self.root / self.names[index])


@dataclass(frozen=True)
class Found:
    """A file with its label.

    Attributes:
        name: relative to the folder of its source.
        label: of its class.
        facts: as the file system has them; a broken link has none.
    """

    name: str
    label: int
    facts: os.stat_result


def listed_files(root: Path, found: Sequence[Found], prepare: Preprocessing) -> Listed:
    """Files below `root` with their labels."""
    names = Names.of([file.name for file in found])
    labels = np.array([file.label for file in found], dtype=np.int64)
    sizes = np.array([(file.facts.st_size, file.facts.st_mtime_ns) for file in found], dtype=np.int64)
    content = hashlib.sha256(names.text)
    content.update(np.ascontiguousarray(sizes[:, 0]).data)
    version = content.copy()
    version.update(str(root.resolve()).encode("utf-8", "surrogateescape"))
    version.update(np.ascontiguousarray(sizes[:, 1]).data)
    return Listed(ImageFiles(root, names, prepare), labels, content.hexdigest(), version.hexdigest())


def loaded(
    train: Listed,
    held_out: Listed,
    classes: Sequence[str],
    source: str,
    prepare: Preprocessing,
    progress: Progress,
) -> Data:
    """Data of two splits, in memory or decoded as needed, which is said.

    Raises:
        UserError: of images that go into memory, names those that cannot be read.
    """
    count = len(train.labels) + len(held_out.labels)
    needed_bytes, most_bytes = count * 3 * prepare.image_size_px**2, IN_MEMORY_FRACTION * memory_bytes()
    told = f"data: {count:,} images at {prepare.image_size_px} px are {gigabytes(needed_bytes)} decoded"
    if needed_bytes > most_bytes:
        progress.say(f"{told}, more than {gigabytes(most_bytes)}: they are decoded as they are needed")
        return Data(
            _streamed(train, prepare, skips=True),
            _streamed(held_out, prepare, skips=False),
            tuple(classes),
            source,
            photographs=True,
            sha256=_digest((train, held_out), classes, prepare),
        )
    progress.say(f"{told}: they are kept in memory")
    problems: list[str] = []
    splits = []
    for name, listed in (("training", train), ("held-out", held_out)):
        with progress.track(f"reading {name} images", len(listed.labels)) as advance:
            splits.append(decoded(listed, prepare, problems, advance))
    if problems:
        raise UserError(shortened(problems))
    return as_data(splits[0], splits[1], classes, source, photographs=True)


def some(listed: Listed, prepare: Preprocessing, count: int) -> Split:
    """Up to `count` images of a split, spread evenly, in memory.

    Raises:
        UserError: names those that cannot be read.
    """
    places = spread(len(listed.labels), count)
    problems: list[str] = []
    found = decoded(listed, prepare, problems, lambda _: None, places)
    if problems:
        raise UserError(shortened(problems))
    return found


def decoded(
    listed: Listed,
    prepare: Preprocessing,
    problems: list[str],
    advance: Callable[[int], None],
    places: Sequence[int] | None = None,
) -> InMemory:
    """Images decoded into memory, all or those at `places`; what cannot be is added to `problems`."""
    chosen = range(len(listed.labels)) if places is None else places
    size_px = prepare.image_size_px
    images = np.zeros((len(chosen), 3, size_px, size_px), dtype=np.uint8)

    def read(place: int) -> str | None:
        try:
            images[place] = listed.images.read(chosen[place]).transpose(2, 0, 1)
        except Exception as error:  # Pillow raises many types on a bad file.
            return unreadable(listed.images.name(chosen[place]), error)
        return None

    in_threads(read, len(chosen), problems, advance)
    return as_split(images, listed.labels[list(chosen)])


def _streamed(listed: Listed, prepare: Preprocessing, *, skips: bool) -> Streamed:
    labels = torch.from_numpy(listed.labels)
    return Streamed(listed.images, labels, prepare.image_size_px, skips, listed.version)


def _digest(splits: Sequence[Listed], classes: Sequence[str], prepare: Preprocessing) -> str:
    digest = hashlib.sha256("\n".join([*classes, prepare.in_words()]).encode())
    for listed in splits:
        digest.update(np.ascontiguousarray(listed.labels).data)
        digest.update(listed.content.encode())
    return digest.hexdigest()


def gigabytes(count: float) -> str:
    """For people: "0.28 GB", "39 GB"."""
    return f"{count / 1e9:.2g} GB"


def readable_splits(data: Data) -> list[tuple[str, Streamed]]:
    """The splits of `data` whose images are decoded as needed, with their names."""
    both = (("training", data.train), ("held-out", data.held_out))
    return [(name, split) for name, split in both if isinstance(split, Streamed)]
