"""A list of images: CSV with a header, or JSON lines, each with a path, a label and a split.

    path,label,split
    images/0001.jpg,daisy,train
    images/0002.jpg,roses,val

Paths are relative to the list; a split is train, or val or test.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.data.dataset import Data, Split
from edgeprune.data.files import shortened
from edgeprune.data.labels import LabelKind
from edgeprune.data.loading import Found, Listed, listed_files, loaded, some
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.splits import HELD_OUT, TRAIN, held_out_name, numbered, train_name
from edgeprune.errors import UserError
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS
LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Row:
    """An image of the list."""

    path: str
    label: str
    split: str
    line: int


def takes(path: Path | None) -> bool:
    """See `sources.Source`."""
    return path is not None and path.suffix.lower() in (*LINES, *TABLES)


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Load the images of a list.

    Raises:
        UserError: every fault of the list, in one message.
    """
    assert path is not None  # What `takes` says.
    (train, held_out), classes = _listed(path, prepare)
    return loaded(train, held_out, classes, path.name, prepare, progress)


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Load up to `count` held-out images alone, spread evenly.

    Raises:
        UserError: every fault of the list, in one message.
    """
    assert path is not None  # What `takes` says.
    return some(_listed(path, prepare)[0][1], prepare, count)


def _listed(path: Path, prepare: Preprocessing) -> tuple[tuple[Listed, Listed], tuple[str, ...]]:
    rows = _rows(path)
    train, held_out = _divided(path, rows)
    classes = numbered(str(path), [row.label for row in train], [row.label for row in held_out])
    places = {name: place for place, name in enumerate(classes)}
    problems: list[str] = []
    both = [_found(path, part, places, problems) for part in (train, held_out)]
    if problems:
        raise UserError(shortened(problems))
    first, second = (listed_files(path.parent, found, prepare) for found in both)
    return (first, second), classes


def _rows(path: Path) -> list[Row]:
    """All rows; what is wrong with the list as such is refused."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in LINES:
                entries = [(number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip()]
            else:
                reader = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()])
                entries = [(reader.line_num, entry) for entry in reader]
    except OSError as error:
        raise UserError(f"data {path}: {error.strerror}; expected a list of images") from None
    except ValueError as error:  # Not UTF-8, or a line that is not JSON.
        raise UserError(f"data {path}: cannot be read as a list: {error}") from None
    if not entries:
        raise UserError(f"data {path}: no images; expected the columns {', '.join(COLUMNS)}")
    problems = [problem for number, entry in entries if (problem := _misfit(path, number, entry))]
    if problems:
        # A column that is not there is missing in every row.
        raise UserError(shortened(list(dict.fromkeys(problems))))
    return [
        Row(line=number, **{name: str(entry[name]).strip() for name in COLUMNS}) for number, entry in entries
    ]


def _misfit(path: Path, number: int, entry: Any) -> str | None:
    if not isinstance(entry, Mapping):
        return f"data {path}, line {number}: not an object with {', '.join(COLUMNS)}"
    missing = [name for name in COLUMNS if name not in entry]
    if missing:
        there = ", ".join(str(name) for name in entry if name is not None) or "nothing"
        return f"data {path}: no column {' and no '.join(missing)}; there is {there}"
    empty = [name for name in COLUMNS if entry[name] is None or not str(entry[name]).strip()]
    return f"data {path}, line {number}: empty {' and '.join(empty)}" if empty else None


def _divided(path: Path, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The training and the held-out rows."""
    names = dict.fromkeys(row.split for row in rows)
    unknown = [name for name in names if name.lower() not in (*TRAIN, *HELD_OUT)]
    first, second = train_name(names), held_out_name(names)
    if unknown or first is None or second is None:
        raise UserError(
            f"data {path}: the column split has {', '.join(list(names)[:5])}; expected train, and val or test"
        )
    return [row for row in rows if row.split == first], [row for row in rows if row.split == second]


def _found(path: Path, rows: Sequence[Row], places: Mapping[str, int], problems: list[str]) -> list[Found]:
    """The files of these rows; those that are missing are added to `problems`."""
    found = []
    for row in rows:
        try:
            facts = (path.parent / row.path).stat()
        except OSError as error:
            problems.append(f"data {path}, line {row.line}: {path.parent / row.path}: {error.strerror}")
            continue
        found.append(Found(row.path, places[row.label], facts))
    return found
