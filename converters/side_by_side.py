"""Two files of one model beside each other: how far apart their answers are, and step by step where.

The files may be of two formats, written by two converters and run by two runtimes: where they agree with each
other and with torch, a mistake would have to be made twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from converters.agreement import LIKE, Found, find_steps
from converters.errors import UserError
from converters.facts import Normalization
from converters.format import format_of
from converters.reference import as_values, check_images, compare, normalized, torch_outputs

# Files part at a step by more than this, and by more than twice what the better one is off at the end.
APART = 5e-3


@dataclass(frozen=True)
class Step:
    """A step of the model that both files have, or that one has and the other should have.

    Attributes:
        place: "features.3.conv (conv2d)".
        errors: of each file to the model: largest difference over the largest value.
        apart: of the second file to the first, over the model's largest value.
    """

    place: str
    errors: tuple[float, float]
    apart: float


@dataclass(frozen=True)
class SideBySide:
    """Two files compared.

    Attributes:
        paths: of the files.
        images: how many both were run on.
        errors: of each file's answers to the model's: largest difference over the largest value; None where
            they are not finite.
        apart: of the files' answers.
        same_class: share of images on which both name the same class.
        steps: for the first image, in the order of the model.
        parting: the first step where the files are apart by more than the better one is off anyway.
    """

    paths: tuple[Path, Path]
    images: int
    errors: tuple[float | None, float | None]
    apart: float | None
    same_class: float
    steps: tuple[Step, ...]
    parting: Step | None


def side_by_side(
    paths: tuple[Path, Path], images: np.ndarray, model: nn.Module, normalization: Normalization
) -> SideBySide:
    """Run two files and the model they were made from on the same images.

    Args:
        paths: of the files, each of any format.
        images: (n, channels, height, width) plain pixels in [0, 255].
        model: in eval mode.
        normalization: what it wants done to pixels; a file that does not do it is given pixels for which it
            was done.

    Raises:
        UserError: a file cannot be used, or they are not both of this model.
    """
    inputs = normalized(images, normalization)
    answers, tensors = [], []
    for path in paths:
        format = format_of(path)
        loaded = format.load(path)
        check_images(path, images, loaded.input)
        fed = images if loaded.input.range is not None else inputs
        answers.append(as_values(loaded.predict(fed)))
        tensors.append(format.tensors(path, fed[:1]))
    wanted = torch_outputs(paths[0], model, inputs, answers[0])
    if answers[1].shape != wanted.shape:
        raise UserError(f"{paths[1]} gives {answers[1].shape[1]} values, {paths[0]} {answers[0].shape[1]}")
    errors = (compare(answers[0], wanted)[0], compare(answers[1], wanted)[0])
    apart, same = compare(answers[1], answers[0])
    noise = max(APART, 2 * min((error for error in errors if error is not None), default=0.0))
    steps = _steps(model, inputs[:1], tensors, noise)
    parting = next((step for step in steps if step.apart > noise), None)
    return SideBySide(paths, len(images), errors, apart, same, steps, parting)


def _steps(
    model: nn.Module, image: np.ndarray, tensors: Sequence[Sequence[np.ndarray]], noise: float
) -> tuple[Step, ...]:
    first, second = (find_steps(model, image, of_file, noise) for of_file in tensors)
    pairs = zip(first, second, strict=True)
    return tuple(_step(a, b) for a, b in pairs if _comparable(a, b) or _comparable(b, a))


def _comparable(has: Found, other: Found) -> bool:
    """Whether one file has a step, and the other has it too, has it wrong, or has nothing right behind it."""
    here = other.is_there or other.error <= LIKE or not other.is_passed
    return has.is_there and other.value is not None and here


def _step(a: Found, b: Found) -> Step:
    assert a.value is not None
    assert b.value is not None
    largest = a.largest or 1.0
    return Step(a.place, (a.error, b.error), float(np.abs(b.value - a.value).max()) / largest)
