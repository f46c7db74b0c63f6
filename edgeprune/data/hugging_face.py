"""Images of a Hugging Face dataset: hf:NAME, or a folder of parquet files named by their split.

Needs the extra `datasets`. There must be a training split, and a validation or test split; a column of
images, and one called label (or labels): classes, numbers or names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.data.dataset import Data, Split
from edgeprune.data.labels import LabelKind
from edgeprune.data.loading import Listed, loaded, some
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT, TRAIN, held_out_name, numbered, train_name
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS
HUB = "hf:"
LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


@dataclass(frozen=True)
class TableImages:
    """Images in a table of the `datasets` package; see `edgeprune.data.streamed.Images`."""

    table: Any
    column: str
    told: str
    prepare: Preprocessing

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> np.ndarray:
        """See `Images`."""
        return self.prepare.prepared(self.table[index][self.column])

    def name(self, index: int) -> str:
        """See `Images`."""
        return f"{self.told}, row {index}"


def takes(path: Path | None) -> bool:
    """See `sources.Source`: a name on the hub, or parquet files."""
    if path is None:
        return False
    return str(path).startswith(HUB) or path.suffix == ".parquet" or _has_parquet(path)


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load the images of a dataset.

    Raises:
        UserError: there is none, it cannot be fetched, or has no images or no labels.
    """
    assert path is not None  # What `takes` says.
    (train, held_out), classes = _listed(path, prepare)
    return loaded(train, held_out, classes, str(path), prepare, progress)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly.

    Raises:
        UserError: as `load` does.
    """
    assert path is not None  # What `takes` says.
    return some(_listed(path, prepare)[0][1], prepare, count)


def _has_parquet(path: Path) -> bool:
    return path.is_dir() and any(path.rglob("*.parquet")) and not (path / "train").is_dir()


def _listed(path: Path, prepare: Preprocessing) -> tuple[tuple[Listed, Listed], tuple[str, ...]]:
    tables = _tables(path)
    names = list(tables)
    first, second = train_name(names), held_out_name(names)
    if first is None or second is None:
        raise UserError(
            f"data {path}: the splits are {', '.join(names)}; expected train, and validation or test"
        )
    features = tables[first].features
    image, label = _columns(path, features)
    labels = {name: tables[name].select_columns([label])[label] for name in (first, second)}
    known = getattr(features[label], "names", None)
    if known:  # Numbers of classes that have names.
        classes = tuple(known)
        places = {place: place for place in range(len(classes))}
    else:
        texts = [[str(value) for value in labels[name]] for name in (first, second)]
        classes = numbered(f"data {path}", *texts)
        places = {_as_is(name, labels[first]): place for place, name in enumerate(classes)}
    unknown = {str(value) for name in labels for value in labels[name] if value not in places}
    if unknown:
        raise UserError(f"data {path}: labels that are no class: {', '.join(sorted(unknown)[:5])}")
    train, held_out = (
        _of(path, name, tables[name].select_columns([image]), image,
            np.array([places[value] for value in labels[name]], dtype=np.int64), prepare)
        for name in (first, second)
    )  # fmt: skip
    return (train, held_out), classes


def _as_is(name: str, labels: Any) -> Any:
    """The label that is called so: a number where labels are numbers."""
    return int(name) if not isinstance(labels[0], str) else name


def _of(
    path: Path, split: str, table: Any, column: str, labels: np.ndarray, prepare: Preprocessing
) -> Listed:
    told = f"{path}, {split}"
    # What the package itself tells one state of a table from another by.
    content = hashlib.sha256(f"{len(table)} {table._fingerprint}".encode()).hexdigest()
    return Listed(TableImages(table, column, told, prepare), labels, content, content)


def _columns(path: Path, features: Any) -> tuple[str, str]:
    """The columns of the images and of the labels."""
    from datasets import Image

    images = [name for name, kind in features.items() if isinstance(kind, Image)]
    labels = [name for name in LABEL_COLUMNS if name in features]
    problems = []
    there = ", ".join(features)
    if not images:
        problems.append(f"data {path}: no column of images; there is {there}")
    if not labels:
        problems.append(f"data {path}: no column {' or '.join(LABEL_COLUMNS)}; there is {there}")
    if problems:
        raise UserError(problems)
    return images[0], labels[0]


def _tables(path: Path) -> dict[str, Any]:
    """The tables of a dataset by the names of its splits."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"data {path}: needs the datasets package: pip install 'edgeprune[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    try:
        if str(path).startswith(HUB):
            return dict(datasets.load_dataset(str(path)[len(HUB) :]))
        return dict(datasets.load_dataset("parquet", data_files=_parquet_files(path)))
    except UserError:
        raise
    except Exception as error:  # The package and the hub have many ways to say no.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        without = "; without a network, give its parquet files" if str(path).startswith(HUB) else ""
        raise UserError(f"data {path}: cannot be loaded ({reason}){without}") from None


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """The parquet files of each split, by what their names or folders begin with."""
    folder = path if path.is_dir() else path.parent
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        parts = file.relative_to(folder).parts
        split = next((n for n in (*TRAIN, *HELD_OUT) for part in parts if part.lower().startswith(n)), None)
        if split is not None:
            found.setdefault(split, []).append(str(file))
    if train_name(found) is None or held_out_name(found) is None:
        raise UserError(
            f"data {path}: expected train*.parquet, and validation*.parquet or test*.parquet; there is "
            f"{', '.join(found) or 'neither'}"
        )
    return found
