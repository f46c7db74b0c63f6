"""What sources share: the names of splits, folders of these names, and classes found in labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from edgeprune.data.files import shortened, visible
from edgeprune.errors import UserError

TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test")


def held_out_name(names: Iterable[str]) -> str | None:
    """The name of the held-out split among those there: a validation set before a test set."""
    there = {name.lower(): name for name in names}
    return next((there[name] for name in HELD_OUT if name in there), None)


def train_name(names: Iterable[str]) -> str | None:
    """The name of the training split among those there."""
    there = {name.lower(): name for name in names}
    return next((there[name] for name in TRAIN if name in there), None)


def find_splits(path: Path, each: str = "one folder of images a class") -> tuple[Path, Path]:
    """The folders of the training and of the held-out images.

    Raises:
        UserError: one of them is missing; `each` says what belongs into them.
    """
    expected = f"expected train/ and val/ (or test/), each with {each}"
    if not path.is_dir():
        raise UserError(
            f"data folder {path}: {'not a folder' if path.exists() else 'no such folder'}; {expected}"
        )
    train, held_out = (_folder_named(path, names) for names in (TRAIN, HELD_OUT))
    missing = [] if train else ["train/"]
    missing += [] if held_out else ["val/ or test/"]
    if train is None or held_out is None:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing, it is empty"
        raise UserError(f"data folder {path}: no {' and no '.join(missing)}; found {there}; {expected}")
    return train, held_out


def _folder_named(path: Path, names: Sequence[str]) -> Path | None:
    """The first of the folders with one of these names, in upper or lower case.

    Raises:
        UserError: two differ in their case alone.
    """
    folders = [entry for entry in visible(path) if entry.is_dir()]
    for name in names:
        found = sorted(entry.name for entry in folders if entry.name.lower() == name)
        if len(found) > 1:
            raise UserError(f"data folder {path}: {' and '.join(found)}: which of them? Rename one")
        if found:
            return path / found[0]
    return None


def numbered(told: str, train: Sequence[str], held_out: Sequence[str]) -> tuple[str, ...]:
    """The classes of these labels, in the order of their numbers or their alphabet.

    Args:
        told: where they are from, for messages.
        train: of each training image.
        held_out: of each held-out image.

    Raises:
        UserError: fewer than two, or one that only one of the splits has.
    """
    there = {"training": set(train), "held-out": set(held_out)}
    problems = [
        f"{told}: classes of {one} images but of no {other} ones: {', '.join(sorted(extra)[:5])}"
        for one, other in (("training", "held-out"), ("held-out", "training"))
        if (extra := there[one] - there[other])
    ]
    if len(there["training"]) < 2:
        problems.append(f"{told}: {len(there['training'])} class: a classifier needs two or more")
    if problems:
        raise UserError(shortened(problems))
    if all(name.isdecimal() for name in there["training"]):
        return tuple(sorted(there["training"], key=int))
    return tuple(sorted(there["training"]))
