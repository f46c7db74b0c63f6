"""The two files of a model with an early exit: written, and run on images the way an app runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from converters.deployed import SCORES
from converters.errors import ToolError, UserError
from converters.facts import Converted, InputSpec, Normalization
from converters.format import FORMATS, Runnable, format_of
from converters.targets import Target
from edgeprune.data.dataset import Split, batches
from edgeprune.evaluation.early_exit import exits
from edgeprune.evaluation.early_exit_result import Measured
from edgeprune.evaluation.paired import points_lost
from edgeprune.models.early_exit import FEATURES, Front, Halves
from edgeprune.training.predict import normalized

BATCH = 64
NEVER = "none: no image exits"


def write_pair(
    halves: Halves,
    front: Front,
    target: Target,
    paths: tuple[Path, Path],
    *,
    example: Tensor,
    normalization: Normalization,
    threshold: float | None,
    labels: Sequence[str],
) -> tuple[Converted, Converted]:
    """Write front and rest, with what an app must know to chain them among their metadata.

    The front takes plain pixels in [0, 255] and gives "scores" and "features"; the rest takes the features as
    they are, and has the names of the classes.

    Args:
        halves: the model.
        front: its first half with the trained exit, in eval mode.
        target: of both files.
        paths: of front and rest.
        example: (1, 3, h, w) as the model takes it.
        normalization: folded into the front.
        threshold: see `early_exit.Choice`.
        labels: class names in output order.

    Raises:
        UserError: an argument is not what it should be.
        ToolError: a half cannot be converted.
    """
    format = FORMATS[target.format]
    features = front(example)[FEATURES].detach()
    shared = {"early_exit_threshold": NEVER if threshold is None else repr(threshold)}
    told = (
        {
            "early_exit_half": "front",
            "early_exit_partner": paths[1].name,
            "early_exit_outputs": (
                f"{SCORES}: class scores before softmax, in the order of the partner's classes; "
                f"{FEATURES}: what the partner takes, where the largest softmax probability is below the "
                "threshold"
            ),
        },
        {
            "early_exit_half": "rest",
            "early_exit_partner": paths[0].name,
            "early_exit_input": f"{FEATURES} of the partner",
        },
    )
    first = format.write(
        format.prepare(front, example, normalization), target, paths[0], metadata=shared | told[0]
    )
    second = format.write(
        format.prepare(halves.rest, features, None),
        target,
        paths[1],
        labels=labels,
        metadata=shared | told[1],
    )
    return first, second


@dataclass(frozen=True)
class Answers:
    """What chained files give for n images.

    Attributes:
        scores: (n, classes) float32 that an app uses: of the front for images that exit, else of the rest.
        front_scores: (n, classes) of the front, for all.
        exited: (n,) bool.
    """

    scores: np.ndarray
    front_scores: np.ndarray
    exited: np.ndarray

    @property
    def predictions(self) -> np.ndarray:
        """The likeliest class of each image, (n,)."""
        found: np.ndarray = self.scores.argmax(1)
        return found


class Chain:
    """Front and rest, opened; made by `open_pair`.

    Attributes:
        input: what `run` takes.
        threshold: see `early_exit.Choice`.
    """

    def __init__(self, front: Runnable, rest: Runnable, threshold: float | None) -> None:
        self.input: InputSpec = front.input
        self.threshold = threshold
        self._front, self._rest = front, rest

    def run(self, images: np.ndarray) -> Answers:
        """Run the front on each image, and the rest on those that it is unsure of.

        Args:
            images: (n, 3, h, w) float32, in the range `input` says.
        """
        given = self._front.predict_all(images)
        front_scores, features = given[SCORES], given[FEATURES]
        exited, scores = exits(front_scores, self.threshold), front_scores.copy()
        if not exited.all():
            left = features[~exited]
            # A map of one pixel comes without its axes.
            scores[~exited] = self._rest.predict(left.reshape(len(left), *self._rest.input.shape))
        return Answers(scores, front_scores, exited)


def open_pair(front: Path, rest: Path, threshold: float | None) -> Chain:
    """Open both files of a target.

    Raises:
        UserError: one is not there or damaged, or the second does not take what the first gives.
    """
    first, second = (format_of(path).load(path) for path in (front, rest))
    problems = [f"{front}: gives {', '.join(first.outputs)}, not {SCORES} and {FEATURES}"]
    if set(first.outputs) == {SCORES, FEATURES}:
        shape = first.predict_all(np.zeros((1, *first.input.shape), np.float32))[FEATURES].shape[1:]
        wanted = second.input.shape
        fits = shape == wanted or (len(shape) == 1 and wanted == (*shape, 1, 1))
        problems = [] if fits else [f"{rest}: takes {wanted}, and {front.name} gives features of {shape}"]
    if problems:
        raise UserError(problems)
    return Chain(first, second, threshold)


def measure(
    chain: Chain,
    full: Path,
    split: Split,
    classes: Sequence[str],
    normalization: Normalization,
    advance: Callable[[int], None],
) -> Measured:
    """Accuracies through the files on all images of a split.

    Args:
        chain: front and rest.
        full: the whole model in one file, with the names of the classes.
        split: images that nothing was trained or chosen on.
        classes: names, in the order of the labels.
        normalization: what the torch model takes, where a file does not normalise itself.
        advance: told how many images are done.
    """
    whole = format_of(full).load(full)
    if whole.input.labels is not None and tuple(whole.input.labels) != tuple(classes):
        raise ToolError(f"{full}: names its classes in another order than the images do")
    right = {"full": 0, "combined": 0, "front": 0}
    continued = done = lost = gained = 0
    for images, labels in batches(split, BATCH):
        given = (images.float() if chain.input.range else normalized(images, normalization)).numpy()
        wanted, answers = np.asarray(labels), chain.run(given)
        by_full, by_both = whole.predict(given).argmax(1) == wanted, answers.predictions == wanted
        lost += int((by_full & ~by_both).sum())
        gained += int((by_both & ~by_full).sum())
        right["full"] += int(by_full.sum())
        right["combined"] += int(by_both.sum())
        right["front"] += int((answers.front_scores.argmax(1) == wanted).sum())
        continued += int((~answers.exited).sum())
        done += len(images)
        advance(done)
    shares = {name: count / done for name, count in right.items()}
    _, error_points = points_lost(lost, gained, done)
    return Measured(done, **shares, continues=continued / done, error_points=error_points)
