"""An image folder: train/ and val/ (or test/), each with one folder of images a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprune.data.dataset import Data, Split, as_data, as_split, spread
from edgeprune.data.files import decode, find_splits, refuse_too_many, shortened, visible
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS


def takes(path: Path | None) -> bool:
    """See `sources.Source`: any path that no other source takes."""
    return path is not None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load an image folder.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    train_folder, held_out_folder = find_splits(path)
    classes = _find_classes(train_folder, held_out_folder)
    files = {folder: _find_files(folder, classes) for folder in (train_folder, held_out_folder)}
    count = sum(len(found) for found in files.values())
    size_px = prepare.image_size_px
    refuse_too_many(count * 3 * size_px**2, f"{count:,} images at {size_px} px")
    splits = []
    problems: list[str] = []
    for folder, found in files.items():
        with progress.track(f"reading {folder.name}/", len(found)) as advance:
            images = decode([file for file, _ in found], prepare, problems, advance)
        splits.append(as_split(images, np.array([label for _, label in found], dtype=np.int64)))
    if problems:
        raise UserError(shortened(problems))
    return as_data(splits[0], splits[1], classes, path.name, photographs=True)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly over the classes.

    Raises:
        UserError: every fault of the folder, in one message.
    """
    assert path is not None  # What `takes` says.
    train_folder, held_out_folder = find_splits(path)
    found = _find_files(held_out_folder, _find_classes(train_folder, held_out_folder))
    found = [found[place] for place in spread(len(found), count)]
    problems: list[str] = []
    images = decode([file for file, _ in found], prepare, problems, lambda _: None)
    if problems:
        raise UserError(shortened(problems))
    return as_split(images, np.array([label for _, label in found], dtype=np.int64))


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
    for folder in (train, held_out):
        loose = [entry.name for entry in visible(folder) if not entry.is_dir()]
        if loose:
            problems.append(f"{folder}: files beside the class folders: {', '.join(sorted(loose)[:5])}")
    if problems:
        raise UserError(problems)
    return tuple(names[train])


def _find_files(folder: Path, classes: tuple[str, ...]) -> list[tuple[Path, int]]:
    found = [(file, label) for label, name in enumerate(classes) for file in sorted(visible(folder / name))]
    counts = np.bincount([label for _, label in found], minlength=len(classes))
    empty = [str(folder / name) for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise UserError(shortened([f"{name}: no images" for name in empty]))
    return found
