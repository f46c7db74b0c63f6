"""Where images come from: a file of this folder for each source, and the table of them.

A source is a module with `LABELS`, `takes`, `load` and `held_out`, and a row in `SOURCES`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from edgeprune.data import (
    box_scenes,
    coco,
    digits,
    hugging_face,
    image_folder,
    list_file,
    scenes,
    segmentation_folder,
    tar_shards,
    voc,
    yolo,
)
from edgeprune.data.dataset import Data, Split
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress


class Source(Protocol):
    """Where images come from.

    Attributes:
        LABELS: what its labels are.
    """

    LABELS: LabelKind

    def takes(self, path: Path | None) -> bool:
        """Whether `path`, a recipe's `data`, is one of this source; None is the embedded images."""
        ...

    def load(self, path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
        """Load all images, prepared as the model wants them.

        Raises:
            UserError: every fault of the source, in one message.
        """
        ...

    def held_out(self, path: Path | None, prepare: Preprocessing, count: int) -> Split:
        """Load up to `count` held-out images alone, spread evenly.

        Raises:
            UserError: every fault of the source, in one message.
        """
        ...


SOURCES: dict[str, Source] = {
    "box scenes": box_scenes,
    "coco": coco,
    "digits": digits,
    "list": list_file,
    "tar shards": tar_shards,
    "hugging face": hugging_face,
    "image folder": image_folder,
    "scenes": scenes,
    "segmentation folder": segmentation_folder,
    "voc": voc,
    "yolo": yolo,
}
"""Looked through in this order: the first that takes a path with labels of the right kind loads it."""


def source(path: Path | None, labels: LabelKind) -> Source:
    """The source of a recipe's `data` for tasks with labels of this kind.

    Raises:
        UserError: none takes it.
    """
    for found in SOURCES.values():
        if found.LABELS is labels and found.takes(path):
            return found
    known = [name for name, source in SOURCES.items() if source.LABELS is labels and not source.takes(None)]
    raise UserError(
        f"data {path}: no source of images with {labels.value} takes it: it has the layout of none of "
        f"{', '.join(sorted(known))}; recipes/README.md shows them"
    )
