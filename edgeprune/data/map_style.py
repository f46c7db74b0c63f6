"""Datasets from Python: torchvision's, or anything with a length whose items are (image, label).

A recipe script gives them: `run_recipe(RECIPE, __doc__, datasets=(train, held_out))`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeprune.data.dataset import Data
from edgeprune.data.labels import LabelKind
from edgeprune.data.loading import Listed, loaded
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import numbered
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")  # What torchvision's datasets call them.


@dataclass(frozen=True)
class Items:
    """Images of such a dataset; see `edgeprune.data.streamed.Images`."""

    dataset: Any
    told: str
    prepare: Preprocessing

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> np.ndarray:
        """See `Images`."""
        return self.prepare.prepared(_picture(self.dataset[index][0]))

    def name(self, index: int) -> str:
        """See `Images`."""
        return f"{self.told}, item {index}"


def load(datasets: tuple[Any, Any], prepare: Preprocessing, progress: Progress) -> Data:
    """Load what is trained on and what is held out.

    Args:
        datasets: both, each with a length, items (image, label), and if it likes `classes` and `targets`;
            an image is Pillow's, or uint8: an array (h, w, 3) or a tensor (3, h, w).
        prepare: for the model.
        progress: whom to tell.

    Raises:
        UserError: they are not such datasets, or an image cannot be read.
    """
    told = [
        f"{type(dataset).__name__} ({name})"
        for name, dataset in zip(("train", "held out"), datasets, strict=True)
    ]
    labels = [_labels(dataset, name, progress) for dataset, name in zip(datasets, told, strict=True)]
    named = getattr(datasets[0], "classes", None)
    classes = tuple(map(str, named)) if named else numbered(told[0], *(list(map(str, own)) for own in labels))
    train, held_out = (
        _listed(dataset, name, _indices(own, classes, bool(named), name), prepare)
        for dataset, own, name in zip(datasets, labels, told, strict=True)
    )
    return loaded(train, held_out, classes, type(datasets[0]).__name__, prepare, progress)


def refuse_labels(wanted: LabelKind) -> None:
    """Refuse a task with other labels than such datasets have.

    Raises:
        UserError: it has.
    """
    if wanted is not LabelKind.CLASS:
        raise UserError(f"datasets from Python have {LabelKind.CLASS.value}; this task needs {wanted.value}")


def _labels(dataset: Any, told: str, progress: Progress) -> list[Any]:
    """The label of each item: as the dataset has them in one place, else out of every item."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or not len(dataset):
        raise UserError(f"{told}: expected a dataset with a length and items (image, label), not empty")
    for name in LABEL_ATTRIBUTES:
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return [value.item() if hasattr(value, "item") else value for value in found]
    with progress.track(f"reading the labels of {told}", len(dataset)) as advance:
        labels = []
        for index in range(len(dataset)):
            item = dataset[index]
            if not isinstance(item, (tuple, list)) or len(item) != 2:
                raise UserError(f"{told}, item {index}: expected (image, label)")
            labels.append(item[1].item() if hasattr(item[1], "item") else item[1])
            advance(index + 1)
    return labels


def _indices(labels: Sequence[Any], classes: Sequence[str], named: bool, told: str) -> np.ndarray:
    """Labels as places among the classes; whole numbers are that already where the classes have names."""
    places: dict[Any, int] = {name: place for place, name in enumerate(classes)}
    if named and all(isinstance(value, int) for value in labels):
        places = {place: place for place in range(len(classes))}
    else:
        labels = list(map(str, labels))
    unknown = sorted({str(value) for value in labels if value not in places})
    if unknown:
        raise UserError(
            f"{told}: labels that are none of the {len(classes)} classes: {', '.join(unknown[:5])}"
        )
    return np.array([places[value] for value in labels], dtype=np.int64)


def _listed(dataset: Any, told: str, labels: np.ndarray, prepare: Preprocessing) -> Listed:
    # Nothing tells one state of such a dataset from another but what it holds: labels stand for it.
    content = hashlib.sha256(f"{told} {len(dataset)}".encode() + labels.tobytes()).hexdigest()
    return Listed(Items(dataset, told, prepare), labels, content, content)


def _picture(image: Any) -> Any:
    """Pillow's image of what an item has."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)  # (3, h, w) -> (h, w, 3)
    if pixels.dtype != np.uint8:
        raise UserError(f"expected uint8, not {pixels.dtype}: leave ToTensor out of the dataset's transform")
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
