"""What sources that are not folders of classes share: names of splits, and classes found in labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgeprune.data.files import shortened
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
