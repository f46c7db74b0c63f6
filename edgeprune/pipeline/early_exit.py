"""A variant of a run as two files: split, its exit trained, the threshold chosen, written and measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from converters.deployed import SCORES
from converters.facts import Normalization, size_bytes
from converters.files import write_text
from converters.format import FORMATS
from converters.targets import Target
from edgeprune.data.dataset import Data, Split
from edgeprune.data.dataset import batches as in_batches
from edgeprune.errors import UserError
from edgeprune.evaluation.early_exit import Choice, choose_threshold
from edgeprune.evaluation.early_exit_files import measure, open_pair, write_pair
from edgeprune.evaluation.early_exit_result import SCHEMA, EarlyExit, ExitFiles, Times, to_text
from edgeprune.models.early_exit import FEATURES, ExitHead, Front, Halves, deepest, split
from edgeprune.pipeline import run_folder
from edgeprune.pipeline.variants import DENSE, trained
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.training.batches import generator_of, whole_batches
from edgeprune.training.early_exit import Seen, seen, train_head
from edgeprune.training.loop import divided
from edgeprune.training.predict import normalized
from edgeprune.training.transforms import change_of

RECORD = "early_exit.json"
BATCH = 64
# Training images to choose the threshold on: so many, and at most a fifth.
VALIDATION, LARGEST_FRACTION = 2000, 0.2

Timed = Callable[[Path, Path, Path, float], tuple[Times | None, str | None]]
"""Given the whole model's file, front, rest, and the share that continues: times, or why there are none."""


@dataclass(frozen=True)
class Wanted:
    """What is to be made.

    Attributes:
        variant: of the run.
        after: last module of the front; None: the deepest with at most half of the multiplications before it.
        most_lost_points: of accuracy, that the threshold may cost.
        epochs: that the exit is trained for.
        width: channels of the exit.
        targets: of the files.
        folder: for them; made if it is not there.
    """

    variant: str
    after: str | None
    most_lost_points: float
    epochs: int
    width: int
    targets: tuple[Target, ...]
    folder: Path


def make(
    wanted: Wanted, run: run_folder.Run, recipe: Recipe, data: Data, timed: Timed, progress: Progress
) -> EarlyExit:
    """Write the files and their record.

    Args:
        wanted: what to make.
        run: a folder with the variant trained.
        recipe: of the run.
        data: images of the run.
        timed: times the files.
        progress: shows how far it is.

    Raises:
        UserError: no such trained variant; a model that cannot be split there; images that are no longer
            those of the run.
        ToolError: a half cannot be converted.
    """
    model = _model(wanted.variant, run, recipe, data)
    example = torch.zeros(1, 3, data.train.size_px, data.train.size_px)
    halves = split(model, wanted.after or deepest(model, example), example)
    progress.say(f"split behind {halves.place}, {halves.macs_share:.0%} of the multiplications before it")
    torch.manual_seed(recipe.seed)
    head = ExitHead(halves.channels, len(data.classes), wanted.width)
    learned, kept, which = _divided(recipe, data)
    _train(head, halves, learned, recipe, wanted.epochs, progress)
    front, normalization = Front(halves.front, head).eval(), recipe.preprocessing.normalization
    choice = _choose(front, halves, kept, normalization, wanted.most_lost_points)
    work = _Work(wanted, run, data, normalization, model, halves, front, choice, timed, progress)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    result = EarlyExit(
        schema=SCHEMA,
        model=recipe.model,
        variant=wanted.variant,
        place=halves.place,
        macs_share=halves.macs_share,
        head_width=wanted.width,
        epochs=wanted.epochs,
        most_lost_points=wanted.most_lost_points,
        choice=choice,
        chosen_on=which,
        files=tuple(work.files(target) for target in wanted.targets),
    )
    write_text(wanted.folder / RECORD, to_text(result))
    return result


def _model(variant: str, run: run_folder.Run, recipe: Recipe, data: Data) -> nn.Module:
    """The torch model of the variant."""
    names = [DENSE, *recipe.variants]
    if variant not in names:
        raise UserError(f"--variant {variant}: the run has {', '.join(names)}")
    return trained(run, recipe, data, variant, called=variant)


def _divided(recipe: Recipe, data: Data) -> tuple[Split, Split, str]:
    """Training images to train the exit on, to choose the threshold on, and which the latter are, in words.

    They are the validation set of the run, which no training has seen, if there is one for all of them.
    """
    fits = [recipe.dense, *(variant.fit for variant in recipe.variants.values())]
    fraction = 0.0 if recipe.checkpoint else min(fit.validation_fraction for fit in fits)
    told = f"images of {data.source}, the validation set of the run"
    if not fraction:
        fraction = min(VALIDATION / len(data.train), LARGEST_FRACTION)
        told = f"training images of {data.source} that the exit was not trained on; the model was"
    learned, kept = divided(data.train, fraction, recipe.seed)
    return learned, data.train if kept is None else kept, told


def _train(
    head: nn.Module,
    halves: Halves,
    learned: Split,
    recipe: Recipe,
    epochs: int,
    progress: Progress,
) -> None:
    """Train the exit on images that go through what the recipe says for each image alone."""
    normalization = recipe.preprocessing.normalization

    def batches(epoch: int) -> Iterable[Seen]:
        order = torch.randperm(len(learned), generator=generator_of(recipe.seed, epoch))
        change = change_of(recipe.augment.filled(), recipe.seed, epoch)
        given = learned.batches(whole_batches(order, BATCH), change)
        return seen(halves, ((normalized(images, normalization), labels) for images, labels in given))

    with progress.track("training the exit", epochs) as advance:
        train_head(
            head,
            batches,
            epochs=epochs,
            steps=len(whole_batches(torch.arange(len(learned)), BATCH)),
            show=lambda done, loss: advance(done, f"loss {loss:.3f}"),
        )


@torch.no_grad()
def _choose(
    front: Front,
    halves: Halves,
    kept: Split,
    normalization: Normalization,
    most_lost_points: float,
) -> Choice:
    """The threshold, by the torch model on the images kept for that."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, labels in in_batches(kept, BATCH):
        given = front(normalized(images, normalization))
        parts.append((given[SCORES], halves.rest(given[FEATURES]), labels))
    scores, full, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return choose_threshold(scores, full, labels, most_lost_points)


@dataclass(frozen=True)
class _Work:
    """What the files of all targets share."""

    wanted: Wanted
    run: run_folder.Run
    data: Data
    normalization: Normalization
    model: nn.Module
    halves: Halves
    front: Front
    choice: Choice
    timed: Timed
    progress: Progress

    def files(self, target: Target) -> ExitFiles:
        """Write and measure the two files of a target."""
        stem = self.wanted.folder / f"{self.wanted.variant}-{target.name}"
        suffix, threshold = FORMATS[target.format].suffix, self.choice.threshold
        front, rest = (stem.with_name(f"{stem.name}-{half}{suffix}") for half in ("front", "rest"))
        with self.progress.track(f"writing {front.name} and {rest.name}", 1):
            write_pair(
                self.halves,
                self.front,
                target,
                (front, rest),
                example=self._example,
                normalization=self.normalization,
                threshold=threshold,
                labels=self.data.classes,
            )
        held_out = self.data.held_out
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            full = self._full(target, Path(folder))
            chain = open_pair(front, rest, threshold)
            with self.progress.track(f"running {front.name}", len(held_out)) as advance:
                measured = measure(chain, full, held_out, self.data.classes, self.normalization, advance)
            times, reason = self.timed(full, front, rest, measured.continues)
            full_bytes = size_bytes(full)
        return ExitFiles(
            target=target.name,
            front=front.name,
            rest=rest.name,
            front_bytes=size_bytes(front),
            rest_bytes=size_bytes(rest),
            full_bytes=full_bytes,
            measured=measured,
            times=times,
            times_reason=reason,
        )

    def _full(self, target: Target, folder: Path) -> Path:
        """The model in one file: the run's, or one written for the comparison."""
        format = FORMATS[target.format]
        own = self.run.file(self.wanted.variant, target.name, format.suffix)
        if own.exists():
            return own
        path = folder / f"full{format.suffix}"
        with self.progress.track("writing the whole model to compare with", 1):
            prepared = format.prepare(self.model, self._example, self.normalization)
            format.write(prepared, target, path, labels=self.data.classes)
        return path

    @property
    def _example(self) -> Tensor:
        images, _ = self.data.train.batch(torch.tensor([0]))
        return normalized(images, self.normalization)
