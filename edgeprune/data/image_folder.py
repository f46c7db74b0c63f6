"""An image folder: train/ and val/ (or test/), each with one folder of images a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeprune.data.dataset import Data, Split
from edgeprune.data.files import shortened, visible
from edgeprune.data.labels import LabelKind
from edgeprune.data.loading import Found, Listed, listed_files, loaded, some
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import find_splits
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS
INNER = "images"  # Within a class folder, as Tiny-ImageNet has it.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def takes(path: Path | None) -> bool:
    """See `sources.Source`: any path that no other source takes."""
    return path is not None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load an image folder.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    folders = find_splits(path)
    classes = _find_classes(*folders)
    train, held_out = (_listed(folder, classes, prepare) for folder in folders)
    return loaded(train, held_out, classes, path.name, prepare, progress)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly over the classes.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    train_folder, held_out_folder = find_splits(path)
    listed = _listed(held_out_folder, _find_classes(train_folder, held_out_folder), prepare)
    return some(listed, prepare, count)


def _find_classes(train: Path, held_out: Path) -> tuple[str, ...]:
    names = {folder: sorted(d.name for d in visible(folder) if d.is_dir()) for folder in (train, held_out)}
    problems = []
    if len(names[train]) < 2:
        found = f"one class, {names[train][0]!r}" if names[train] else "no class folders"
        problems.append(f"{train}: {found}; a classifier needs two or more, one folder a class")
    for one, other in ((train, held_out), (held_out, train)):
        extra = sorted(set(names[one]) - set(names[other]))
        if extra:
            problems.append(f"classes in {one.name}/ but not in {other.name}/: {', '.join(extra[:5])}")
    problems += _unusable_names(names[train])
    for folder in (train, held_out):
        loose = [entry.name for entry in visible(folder) if not entry.is_dir()]
        if loose:
            problems.append(f"{folder}: files beside the class folders: {', '.join(sorted(loose)[:5])}")
    if problems:
        raise UserError(problems)
    return tuple(names[train])


def _beside(folder: Path) -> list[str]:
    """Images of a class that lie beside the folder images/ which holds the others."""
    left = sorted(entry.name for entry in visible(folder) if entry.suffix.lower() in IMAGE_SUFFIXES)
    return [f"{folder}: images both in it and in {INNER}/: {', '.join(left[:3])}"] if left else []


def _unusable_names(names: Sequence[str]) -> list[str]:
    """What is wrong with class names that become lines of files which apps read."""
    problems = [
        f"class folder {name!r}: its name is not UTF-8, or has a line break or another control character in "
        "it; rename it"
        for name in names
        if not name.isprintable()  # What is not UTF-8 has surrogates, which are not printable either.
    ]
    lower = Counter(name.lower() for name in names)
    alike = [name for name in names if lower[name.lower()] > 1]
    if alike:
        problems.append(
            f"class folders {', '.join(alike[:6])}: they differ in upper and lower case only, which other "
            "file systems and apps take for one; rename them"
        )
    return problems


def _listed(folder: Path, classes: tuple[str, ...], prepare: Preprocessing) -> Listed:
    """The images of a folder, class by class, in the order of their names."""
    found: list[Found] = []
    problems: list[str] = []
    for label, name in enumerate(classes):
        inside = f"{name}/{INNER}" if (folder / name / INNER).is_dir() else name
        try:
            with os.scandir(folder / inside) as entries:
                shown = sorted(
                    (entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name
                )
            found += [Found(f"{inside}/{entry.name}", label, entry.stat()) for entry in shown]
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}")
            continue
        problems += [] if shown else [f"{folder / inside}: no images"]
        problems += _beside(folder / name) if inside != name else []
    if problems:
        raise UserError(shortened(problems))
    return listed_files(folder, found, prepare)
