"""Tar shards, as webdataset has them: a folder with train-*.tar and val-*.tar (or test-*.tar).

In a shard an image and its class follow each other under one key: KEY.jpg and KEY.cls (the number of the
class or its name), or KEY.json with "label" in it. classes.txt beside the shards may name the classes, a line
each. Shards are read where an image lies in them, so that each process reads its own images alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.data.checked import cache_folder
from edgeprune.data.dataset import Data, Split
from edgeprune.data.files import shortened
from edgeprune.data.labels import LabelKind
from edgeprune.data.loading import Listed, Names, loaded, some
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT, TRAIN, numbered
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS
IMAGES = ("jpg", "jpeg", "png", "webp", "ppm")
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class Entry:
    """An image in a shard: where its bytes are, and the class that stands beside it."""

    key: str
    offset: int
    bytes: int
    label: str


@dataclass(frozen=True)
class ShardImages:
    """Images in shards; see `edgeprune.data.streamed.Images`.

    Attributes:
        shards: the files.
        places: (n, 3) int64 of each image: shard, offset and bytes.
        keys: of each image.
        prepare: for the model.
    """

    shards: tuple[Path, ...]
    places: np.ndarray
    keys: Names
    prepare: Preprocessing

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> np.ndarray:
        """See `Images`."""
        shard, offset, count = self.places[index].tolist()
        with self.shards[shard].open("rb") as file:
            file.seek(offset)
            return self.prepare.read(io.BytesIO(file.read(count)))

    def name(self, index: int) -> str:
        """See `Images`."""
        return f"{self.shards[self.places[index, 0]]}, {self.keys[index]}"


def takes(path: Path | None) -> bool:
    """See `sources.Source`: a folder with a .tar in it."""
    return path is not None and path.is_dir() and any(path.glob("*.tar"))


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load the images of shards.

    Raises:
        UserError: every fault of the shards, in one message.
    """
    assert path is not None  # What `takes` says.
    (train, held_out), classes = _listed(path, prepare)
    return loaded(train, held_out, classes, path.name, prepare, progress)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly.

    Raises:
        UserError: every fault of the shards, in one message.
    """
    assert path is not None  # What `takes` says.
    return some(_listed(path, prepare)[0][1], prepare, count)


def _listed(path: Path, prepare: Preprocessing) -> tuple[tuple[Listed, Listed], tuple[str, ...]]:
    shards = sorted(path.glob("*.tar"))
    train = [shard for shard in shards if shard.name.lower().startswith(TRAIN)]
    held_out = next(
        (own for name in HELD_OUT if (own := [s for s in shards if s.name.lower().startswith(name)])), []
    )
    if not train or not held_out:
        names = ", ".join(shard.name for shard in shards[:5])
        raise UserError(f"data {path}: expected train-*.tar, and val-*.tar or test-*.tar; found {names}")
    problems: list[str] = []
    both = [[_indexed(shard, problems) for shard in own] for own in (train, held_out)]
    if problems:
        raise UserError(shortened(problems))
    labels = [[entry.label for entries in own for entry in entries] for own in both]
    classes = numbered(str(path), *labels)
    places = {name: place for place, name in enumerate(classes)}
    first, second = (
        _of(own, entries, [places[label] for label in found], prepare)
        for own, entries, found in zip((train, held_out), both, labels, strict=True)
    )
    return (first, second), _named(path, classes)


def _of(
    shards: Sequence[Path], entries: Sequence[Sequence[Entry]], labels: list[int], prepare: Preprocessing
) -> Listed:
    flat = [(shard, entry) for shard, own in enumerate(entries) for entry in own]
    places = np.array([(shard, entry.offset, entry.bytes) for shard, entry in flat], dtype=np.int64)
    keys = Names.of([entry.key for _, entry in flat])
    content = hashlib.sha256(keys.text)
    content.update(np.ascontiguousarray(places[:, 2]).data)
    version = content.copy()
    for shard in shards:
        version.update(_version(shard).encode())
    images = ShardImages(tuple(shards), places, keys, prepare)
    return Listed(images, np.array(labels, dtype=np.int64), content.hexdigest(), version.hexdigest())


def _named(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The names in classes.txt where the labels are their numbers."""
    file = path / CLASSES_FILE
    if not file.is_file() or not all(name.isdecimal() for name in classes):
        return classes
    names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if int(classes[-1]) >= len(names):
        raise UserError(f"{file}: {len(names)} names, but there is a class {classes[-1]}")
    return tuple(names[int(name)] for name in classes)


def _version(shard: Path) -> str:
    facts = shard.stat()
    return f"{shard.resolve()} {facts.st_size} {facts.st_mtime_ns}"


def _indexed(shard: Path, problems: list[str]) -> list[Entry]:
    """The images of a shard; where they lie is kept, for as long as the shard stays what it is."""
    kept = cache_folder() / "shards" / hashlib.sha256(_version(shard).encode()).hexdigest()
    if kept.exists():
        try:
            return [Entry(*entry) for entry in json.loads(kept.read_text(encoding="utf-8"))]
        except (ValueError, TypeError):  # Not what was written: found out again.
            kept.unlink()
    try:
        found = _scanned(shard)
    except (OSError, tarfile.TarError) as error:
        problems.append(f"{shard}: not a tar file that can be read ({error}); replace or remove it")
        return []
    except UserError as error:
        problems.extend(error.problems)
        return []
    with suppress(OSError):  # No room for it: found out again the next time.
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Several processes of one training find it out at once.
        temporary = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps([list(vars(entry).values()) for entry in found]), encoding="utf-8")
        temporary.replace(kept)
    return found


def _scanned(shard: Path) -> list[Entry]:
    """The images of a shard, from its headers."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, slash, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            key = f"{folder}{slash}{stem}"
            if kind.lower() in IMAGES:
                images[key] = (member.offset_data, member.size)
            elif kind in ("cls", "json"):
                file = archive.extractfile(member)
                labels[key] = _label(kind, file.read() if file else b"", f"{shard}, {member.name}")
    without = [f"{shard}, {key}: no .cls or .json beside it" for key in images if key not in labels]
    if without:
        raise UserError(shortened(without))
    if not images:
        raise UserError(f"{shard}: no images in it")
    return [Entry(key, *place, labels[key]) for key, place in images.items()]


def _label(kind: str, content: bytes, told: str) -> str:
    try:
        if kind == "cls":
            return content.decode("utf-8").strip()
        return str(json.loads(content)["label"])
    except (ValueError, KeyError, TypeError):
        wanted = "a number or a name" if kind == "cls" else 'an object with "label"'
        raise UserError(f"{told}: expected {wanted}") from None
