"""Boxes in COCO's JSON: an annotation file for the training images, and one for the held-out images.

FOLDER/
  annotations/instances_train*.json      images in train*/, images/train*/, images/ or FOLDER itself
  annotations/instances_val*.json        likewise (or test)
or, as labelling services export it,
  train/_annotations.coco.json           images beside it
  valid/_annotations.coco.json           likewise (or val, test)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeprune.data.boxes import Annotated, Annotations, Box, load_all, load_some
from edgeprune.data.dataset import Data, Split
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT, TRAIN
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.BOXES
BESIDE = "_annotations.coco.json"


def takes(path: Path | None) -> bool:
    """See `sources.Source`: a folder with COCO's annotation files."""
    return path is not None and any(True for _ in _files(path, (*TRAIN, *HELD_OUT)))


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load a folder with COCO's annotation files.

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
    """Both annotation files of a folder; their mistakes are in the result, but for those that end it.

    Raises:
        UserError: one of the files is not there, or is no COCO annotation file.
    """
    train = next(_files(path, TRAIN), None)
    held_out = next(_files(path, HELD_OUT), None)
    if train is None or held_out is None:
        missing = "instances_train.json" if train is None else "instances_val.json"
        raise UserError(
            f"data folder {path}: no annotations/{missing} (or {'train' if train is None else 'valid'}/"
            f"{BESIDE}): expected COCO annotations for training and for held-out images"
        )
    contents = [_content(file) for file in (train, held_out)]
    categories = [_categories(content) for content in contents]
    problems: list[str] = []
    if categories[0] != categories[1]:
        problems.append(f"{train} and {held_out}: their categories differ")
    places = {number: place for place, number in enumerate(categories[0])}
    train_images, held_out_images = (
        list(_images(content, file, path, places, problems))
        for content, file in zip(contents, (train, held_out), strict=True)
    )
    return Annotations(train_images, held_out_images, tuple(categories[0].values()), problems)


def _files(path: Path, splits: tuple[str, ...]) -> Iterator[Path]:
    for split in splits:
        yield from sorted(path.glob(f"annotations/instances_{split}*.json"))
        if (path / split / BESIDE).is_file():
            yield path / split / BESIDE


def _content(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON: {error}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
        raise UserError(f"{file}: expected COCO annotations: an object with the lists {', '.join(lists)}")
    return content


def _categories(content: Mapping[str, Any]) -> dict[int, str]:
    """Names by number, in the order of the numbers; those that nothing has are left out only if "none".

    Labelling services put a parent of all classes first, which no box has.
    """
    used = {annotation.get("category_id") for annotation in content["annotations"]}
    parents = {category.get("supercategory") for category in content["categories"]}
    return {
        category["id"]: str(category["name"])
        for category in sorted(content["categories"], key=lambda category: category["id"])
        if category["id"] in used or category["name"] not in parents
    }


def _images(
    content: Mapping[str, Any], file: Path, path: Path, places: Mapping[int, int], problems: list[str]
) -> Iterator[Annotated]:
    """The images of an annotation file in the order of their numbers."""
    images = {image.get("id"): image for image in content["images"]}
    boxes: dict[Any, list[Box]] = {number: [] for number in images}
    for annotation in content["annotations"]:
        where = f"{file}: annotation {annotation.get('id')}"
        image, category = annotation.get("image_id"), annotation.get("category_id")
        corners = _corners(annotation.get("bbox"))
        if image not in images:
            problems.append(f"{where}: there is no image {image}")
        if category not in places:
            problems.append(f"{where}: there is no category {category}")
        if corners is None:
            problems.append(f"{where}: bbox {annotation.get('bbox')}: expected four numbers")
        if image in images and category in places and corners is not None:
            crowd = bool(annotation.get("iscrowd", 0))
            boxes[image].append(Box(corners, places[category], where, crowd))
    folders = _folders(file, path)
    for number in sorted(images):
        image = images[number]
        name, size = str(image.get("file_name")), (image.get("width"), image.get("height"))
        found = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
        width, height = size
        told = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        yield Annotated(found, boxes[number], told, f"{file}: image {number}")


def _corners(bbox: Any) -> tuple[float, float, float, float] | None:
    """Corners of [left, top, width, height]."""
    numbers = isinstance(bbox, list) and len(bbox) == 4
    if not numbers or not all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in bbox
    ):
        return None
    left, top, width, height = bbox
    return left, top, left + width, top + height


def _folders(file: Path, path: Path) -> list[Path]:
    """Where the images of an annotation file may be."""
    if file.name == BESIDE:
        return [file.parent]
    split = file.stem.removeprefix("instances_")
    return [path / split, path / "images" / split, path / "images", path]
