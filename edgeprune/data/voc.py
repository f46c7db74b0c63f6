"""Boxes in Pascal VOC's XML: one file an image.

FOLDER/
  JPEGImages/NAME.jpg          (or .png)
  Annotations/NAME.xml         boxes as xmin, ymin, xmax, ymax in pixels, from 0
  ImageSets/Main/train.txt     a NAME a line; and val.txt (or test.txt)
  classes.txt                  optional: a name a line, in the order of the outputs; else by the alphabet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from edgeprune.data.boxes import (
    IMAGE_SUFFIXES,
    Annotated,
    Annotations,
    Box,
    load_all,
    load_some,
    names_in,
)
from edgeprune.data.dataset import Data, Split
from edgeprune.data.files import visible
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.BOXES
IMAGES, ANNOTATIONS, SETS = "JPEGImages", "Annotations", "ImageSets/Main"
CLASSES_FILE = "classes.txt"
SIDES = ("xmin", "ymin", "xmax", "ymax")


def takes(path: Path | None) -> bool:
    """See `sources.Source`: a folder with Pascal VOC's annotations."""
    return path is not None and (path / ANNOTATIONS).is_dir()


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load a folder of Pascal VOC's.

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


@dataclass(frozen=True)
class _File:
    """What one XML file says: boxes with the names of their classes, and the size of the image."""

    boxes: Sequence[tuple[tuple[float, float, float, float], str, str]]
    size: tuple[int, int] | None


def read(path: Path) -> Annotations:
    """All annotations of a folder; their mistakes are in the result, but for those that end it.

    Raises:
        UserError: the folder has no lists of training and held-out images.
    """
    train = path / SETS / "train.txt"
    held_out = next((path / SETS / f"{name}.txt" for name in HELD_OUT if _is_set(path, name)), None)
    if not train.is_file() or held_out is None:
        missing = "train.txt" if not train.is_file() else "val.txt (or test.txt)"
        raise UserError(
            f"data folder {path}: no {SETS}/{missing}: expected the names of its images, one a line"
        )
    problems: list[str] = []
    lists = [_names(file) for file in (train, held_out)]
    files = {name: _parsed(path / ANNOTATIONS / f"{name}.xml", problems) for names in lists for name in names}
    listed = {f"{name}.xml" for name in files}
    every = {
        f"{name}.xml" for file in (path / SETS).glob("*.txt") if "_" not in file.stem for name in _names(file)
    }
    problems += [
        f"{file}: there is no image of this name in {path / IMAGES}"
        for file in sorted(visible(path / ANNOTATIONS))
        if file.name not in listed | every and _image(path, file.stem) is None
    ]
    classes = names_in(path / CLASSES_FILE, problems)
    classes = classes or tuple(sorted({label for file in files.values() for _, label, _ in file.boxes}))
    train_images, held_out_images = (
        [_annotated(path, name, files[name], classes, problems) for name in names] for names in lists
    )
    return Annotations(train_images, held_out_images, classes, problems)


def _is_set(path: Path, name: str) -> bool:
    return (path / SETS / f"{name}.txt").is_file()


def _names(file: Path) -> list[str]:
    """The first word of every line: some lists have a number behind it."""
    return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _image(path: Path, name: str) -> Path | None:
    places = (path / IMAGES / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((place for place in places if place.is_file()), None)


def _annotated(path: Path, name: str, file: _File, classes: Sequence[str], problems: list[str]) -> Annotated:
    where = f"{path / ANNOTATIONS / name}.xml"
    problems += [
        f"{place}: there is no class {label!r}: choose from {', '.join(classes)}"
        for _, label, place in file.boxes
        if label not in classes
    ]
    boxes = [
        Box(corners, classes.index(label), place) for corners, label, place in file.boxes if label in classes
    ]
    image = _image(path, name) or path / IMAGES / f"{name}.jpg"
    return Annotated(image, boxes, file.size, where)


def _parsed(file: Path, problems: list[str]) -> _File:
    """One XML file; what is wrong with it is added to `problems`."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        problems.append(f"{file}: cannot be read as XML: {error}")
        return _File((), None)
    boxes = []
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"{file}: object {number}"
        texts = [element.findtext(f"bndbox/{side}") for side in SIDES]
        try:
            left, top, right, bottom = (float(text or "") for text in texts)
        except ValueError:
            problems.append(f"{where}: {', '.join(SIDES)} are {texts}: expected four numbers")
            continue
        label = (element.findtext("name") or "").strip()
        boxes.append(((left, top, right, bottom), label, where))
    size = tuple(root.findtext(f"size/{side}") or "" for side in ("width", "height"))
    known = all(text.strip().isdigit() and int(text) for text in size)
    return _File(boxes, (int(size[0]), int(size[1])) if known else None)
