"""What `edgeprune early-exit` finds out, written and read here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune import parsing
from edgeprune.evaluation.early_exit import Choice

SCHEMA = 1


@dataclass(frozen=True)
class Times:
    """How long the files take, and an image on average.

    Attributes:
        runtime: name of where they were timed.
        description: of that, for people.
        emulated: whether only ratios mean something.
        rounds: how often each was timed.
        front_ms: median, milliseconds.
        rest_ms: median.
        full_ms: median, of the model in one file.
        average_ms: of the front, and of the rest for the share of the images that continue.
        average_fraction: the same over the time of the model in one file: the median of the rounds' ratios.
    """

    runtime: str
    description: str
    emulated: bool
    rounds: int
    front_ms: float
    rest_ms: float
    full_ms: float
    average_ms: float
    average_fraction: float


@dataclass(frozen=True)
class Measured:
    """Accuracies through the files, 0 to 1.

    Attributes:
        images: how many held-out ones.
        full: of the model in one file.
        combined: of front and rest as an app chains them.
        front: of the exit alone, for all images.
        continues: share of the images for which the rest is run.
        error_points: standard error of the points lost, from the images on which the two differ.
    """

    images: int
    full: float
    combined: float
    front: float
    continues: float
    error_points: float

    @property
    def lost_points(self) -> float:
        """By the exit; below 0 where it gains."""
        return 100 * (self.full - self.combined)


@dataclass(frozen=True)
class ExitFiles:
    """The two files of a target.

    Attributes:
        target: where they will run.
        front: name of the first file.
        rest: name of the second.
        front_bytes: on disk.
        rest_bytes: on disk.
        full_bytes: of the model in one file.
        measured: accuracies.
        times: None where there are none.
        times_reason: why not.
    """

    target: str
    front: str
    rest: str
    front_bytes: int
    rest_bytes: int
    full_bytes: int
    measured: Measured
    times: Times | None
    times_reason: str | None


@dataclass(frozen=True)
class EarlyExit:
    """A model with an early exit.

    Attributes:
        schema: of this record as JSON.
        model: name of the architecture.
        variant: of the run.
        place: the last module of the front.
        macs_share: of the model's multiplications that are in the front, 0 to 1, the exit's own left out.
        head_width: channels of the exit.
        epochs: that the exit was trained for.
        most_lost_points: that the threshold may cost.
        choice: the threshold, and what it does on the images it was chosen on.
        chosen_on: which those were, for people.
        files: by target.
    """

    schema: int
    model: str
    variant: str
    place: str
    macs_share: float
    head_width: int
    epochs: int
    most_lost_points: float
    choice: Choice
    chosen_on: str
    files: tuple[ExitFiles, ...]


def average_time(
    front_ms: Sequence[float], rest_ms: Sequence[float], full_ms: Sequence[float], continues: float
) -> tuple[float, float]:
    """Mean time of an image, in milliseconds and as a fraction of the full model's.

    Args:
        front_ms: of each round.
        rest_ms: likewise.
        full_ms: likewise.
        continues: share of the images for which the rest is run.

    >>> average_time([2.0, 2.0, 4.0], [4.0, 4.0, 8.0], [5.0, 5.0, 10.0], continues=0.25)
    (3.0, 0.6)
    """
    import numpy as np

    front, rest, full = (np.asarray(values, np.float64) for values in (front_ms, rest_ms, full_ms))
    average = float(np.median(front) + continues * np.median(rest))
    return average, float(np.median((front + continues * rest) / full))


def read(path: Path) -> EarlyExit:
    """Read an `early_exit.json`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    return parsing.build(EarlyExit, parsing.read_json(path, "edgeprune early-exit RUN writes one"), str(path))


def to_text(result: EarlyExit) -> str:
    """All of it, as JSON."""
    return json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False) + "\n"
