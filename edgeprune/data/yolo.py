"""Boxes in YOLO's text: one file an image, a line a box.

FOLDER/
  images/train/NAME.jpg     images/val/NAME.jpg (or valid, test)     or train/images/, valid/images/, ...
  labels/train/NAME.txt     likewise: CLASS X Y WIDTH HEIGHT, the centre and size as shares of the image;
                            an image without such a file, or with an empty one, has no boxes
  data.yaml                 with the `names` of the classes, listed or by number; or classes.txt, one a line
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeprune.data.boxes import (
    IMAGE_SUFFIXES,
    Annotated,
    Annotations,
    Box,
    load_all,
    load_some,
    names_in,
    size_of,
)
from edgeprune.data.dataset import Data, Split
from edgeprune.data.files import visible
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT, TRAIN
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.BOXES
IMAGES, FILES = "images", "labels"
CLASSES_FILE = "classes.txt"
NAMES_FILES = ("data.yaml", "dataset.yaml", "data.yml")
VALUES = 5  # in a line


def takes(path: Path | None) -> bool:
    """See `sources.Source`: a folder with YOLO's labels."""
    return path is not None and any((folder / FILES).is_dir() for folder in (path, path / "train"))


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load a folder of YOLO's.

    Raises:
        UserError: every fault of it, in one message.
    """
    assert path is not None  # What `takes` says.
    return load_all(read(path), prepare, progress, path.name)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly.

    Raises:
        UserError: every fault of them, in one message.
    """
    assert path is not None  # What `takes` says.
    return load_some(read(path), prepare, count)


def read(path: Path) -> Annotations:
    """All labels of a folder; their mistakes are in the result, but for those that end it.

    Raises:
        UserError: the folder has no training or held-out images, or its classes have no names.
    """
    folders = [_folders(path, TRAIN), _folders(path, HELD_OUT)]
    missing = [name for name, found in zip(("train", "val"), folders, strict=True) if found is None]
    if missing:
        raise UserError(
            f"data folder {path}: no {' and no '.join(f'{IMAGES}/{name}' for name in missing)}: expected "
            f"folders of images, with {FILES}/ beside {IMAGES}/"
        )
    problems: list[str] = []
    classes = _classes(path, problems)
    train_images, held_out_images = (
        _images(*found, classes, problems) for found in folders if found is not None
    )
    return Annotations(train_images, held_out_images, classes, problems)


def _folders(path: Path, names: Sequence[str]) -> tuple[Path, Path] | None:
    """The folders of the images and of the labels of a split."""
    for name in names:
        for images, files in (
            (path / IMAGES / name, path / FILES / name),
            (path / name / IMAGES, path / name / FILES),
        ):
            if images.is_dir():
                return images, files
    return None


def _classes(path: Path, problems: list[str]) -> tuple[str, ...]:
    import yaml

    for file in (path / name for name in NAMES_FILES):
        if not file.is_file():
            continue
        try:
            names = yaml.safe_load(file.read_text(encoding="utf-8")).get("names")
        except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise UserError(f"{file}: cannot be read as YAML with `names`: {error}") from None
        found = _listed(names)
        if found is None:
            raise UserError(f"{file}: names {names!r}: expected a list, or a name for each number from 0")
        return found
    names = names_in(path / CLASSES_FILE, problems)
    if not names:
        raise UserError(f"data folder {path}: no data.yaml with the names of the classes, no {CLASSES_FILE}")
    return names


def _listed(names: Any) -> tuple[str, ...] | None:
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[number] for number in range(len(names))]
    known = isinstance(names, list) and bool(names) and len(set(map(str, names))) == len(names)
    return tuple(map(str, names)) if known else None


def _images(images: Path, files: Path, classes: Sequence[str], problems: list[str]) -> list[Annotated]:
    """The images of a folder, by name, and what is wrong with their labels."""
    found = {file.stem: file for file in sorted(visible(images)) if file.suffix.lower() in IMAGE_SUFFIXES}
    labels = sorted(file for file in visible(files) if file.suffix == ".txt") if files.is_dir() else []
    problems += [
        f"{file}: there is no image of this name in {images}" for file in labels if file.stem not in found
    ]
    return [_annotated(image, files / f"{name}.txt", classes, problems) for name, image in found.items()]


def _annotated(image: Path, file: Path, classes: Sequence[str], problems: list[str]) -> Annotated:
    size = size_of(image)
    if size is None or not file.is_file():
        return Annotated(image, where=str(file))
    boxes = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}: line {number}"
        try:
            label, x, y, width, height = (float(word) for word in line.split()[:VALUES])
        except ValueError:
            problems.append(f"{where}: {line.strip()[:60]!r}: expected a class and four numbers")
            continue
        if label not in range(len(classes)):
            problems.append(f"{where}: class {label:g}: there are {len(classes)}, counted from 0")
            continue
        left, top = (x - width / 2) * size[0], (y - height / 2) * size[1]
        corners = (left, top, left + width * size[0], top + height * size[1])
        boxes.append(Box(corners, int(label), where))
    return Annotated(image, boxes, where=str(file))
