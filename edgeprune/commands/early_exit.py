"""`edgeprune early-exit`: a run's classifier as two files, the second run only where the first is unsure."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.facts import size_bytes
from converters.files import write_text
from converters.format import FORMATS, format_of, target_problems
from converters.targets import TARGETS, Storage, Target
from edgeprune.commands.options import RUNTIME_NAMES, add_json
from edgeprune.commands.output import DONE, deliver, json_text, progress, refuse_unwritable
from edgeprune.data.labels import LabelKind
from edgeprune.errors import UserError
from edgeprune.evaluation.early_exit_result import (
    SCHEMA,
    EarlyExit,
    ExitFiles,
    Times,
    average_time,
    to_plain,
)
from edgeprune.pipeline import run_folder
from edgeprune.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from edgeprune.data.dataset import Data
    from edgeprune.evaluation.early_exit import Choice
    from edgeprune.models.early_exit import Front, Halves
    from edgeprune.progress import Progress
    from edgeprune.recipe import Recipe
    from edgeprune.training.early_exit import Seen

NAME = "early_exit"
AUTO = "auto"
BATCH = 64
# Of the training images, to choose the threshold on: at most a fifth.
VALIDATION, LARGEST_SHARE = 2000, 5
NOT_ASKED = "not measured: name a runtime with --runtime"
EXAMPLES = """\
  edgeprune early-exit runs/mine
  edgeprune early-exit runs/mine --variant block80 --after features.7 --most-lost-points 0.2
  edgeprune early-exit runs/mine --target litert-arm64 --runtime host

Writes NAME-TARGET-front and NAME-TARGET-rest, and early_exit.json, into --output.
The front gives class scores and a feature map; where its largest softmax
probability is below the threshold, the app runs the rest on that map. Only the
exit is trained. The threshold is chosen on training images that the exit was not
trained on; held-out images are looked at once, through the files.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with a trained classifier")
    command.add_argument(
        "--variant", default="dense", metavar="NAME", help="of the run; %(default)s if not given"
    )
    command.add_argument(
        "--after",
        default=AUTO,
        metavar="MODULE",
        help="last module of the front; if not given, the deepest place with at most half of the "
        "multiplications before it",
    )
    command.add_argument(
        "--most-lost-points",
        type=float,
        default=0.3,
        metavar="P",
        help="of accuracy, on the images that the threshold is chosen on; %(default)s if not given",
    )
    command.add_argument(
        "--epochs", type=int, default=5, metavar="N", help="to train the exit; %(default)s if not given"
    )
    command.add_argument(
        "--width", type=int, default=64, metavar="N", help="channels of the exit; %(default)s if not given"
    )
    command.add_argument(
        "--target", action="append", metavar="NAME", help="may be repeated; those of the run if not given"
    )
    command.add_argument(
        "--output", type=Path, metavar="FOLDER", help="RUN/early_exit if not given; made if it is not there"
    )
    command.add_argument(
        "--runtime", metavar="NAME", help=f"time the files there, too: {RUNTIME_NAMES}; no times if not given"
    )
    command.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="of timing; %(default)s if not given"
    )
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Make and show."""
    refuse_unwritable(options.json)
    wanted = EarlyExitOptions(
        run=options.run,
        variant=options.variant,
        after=options.after,
        most_lost_points=options.most_lost_points,
        epochs=options.epochs,
        width=options.width,
        targets=tuple(options.target or ()),
        output=options.output,
        runtime=options.runtime,
        rounds=options.rounds,
    )
    result = make(wanted, progress())
    deliver(json_text(to_plain(result)), options.json, lambda console: print_result(result, wanted, console))
    return DONE


@dataclass(frozen=True)
class EarlyExitOptions:
    """What the command line says.

    Attributes:
        run: finished or not, with the variant trained.
        variant: of the run.
        after: last module of the front; "auto": the deepest with at most half of the multiplications.
        most_lost_points: of accuracy, that the threshold may cost.
        epochs: that the exit is trained for.
        width: channels of the exit.
        targets: names in `TARGETS`; none: those of the run.
        output: folder for the files; None: `early_exit` in the run.
        runtime: to time the files on; None: they are not timed.
        rounds: of timing.
    """

    run: Path
    variant: str = "dense"
    after: str = AUTO
    most_lost_points: float = 0.3
    epochs: int = 5
    width: int = 64
    targets: tuple[str, ...] = ()
    output: Path | None = None
    runtime: str | None = None
    rounds: int = 20

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.output or self.run / NAME

    def problems(self) -> list[str]:
        """Validation errors, one message each."""
        from converters.runtimes.environments import runtime

        unknown = [name for name in self.targets if name not in TARGETS]
        checks = [
            (not unknown, f"unknown target {', '.join(unknown)}: choose from {', '.join(TARGETS)}"),
            (len(set(self.targets)) == len(self.targets), "--target: each once"),
            (self.most_lost_points >= 0, f"--most-lost-points {self.most_lost_points}: 0 or more"),
            (self.epochs >= 1, f"--epochs {self.epochs}: 1 or more"),
            (self.width >= 1, f"--width {self.width}: 1 or more"),
            (self.rounds >= 1, f"--rounds {self.rounds}: must be 1 or more"),
            (
                not self.folder.exists() or self.folder.is_dir(),
                f"--output {self.folder} is a file: name a folder",
            ),
        ]
        problems = [message for fine, message in checks if not fine]
        if self.runtime is not None:
            try:
                runtime(self.runtime).command()
            except UserError as error:
                problems += error.problems
        return problems


def make(options: EarlyExitOptions, progress: Progress) -> EarlyExit:
    """Split, train the exit, choose the threshold, write and measure the files, and write `early_exit.json`.

    Raises:
        UserError: a mistake in what was asked for; not a run; no such trained variant, or no classifier; a
            model that cannot be split there; images that are no longer those of the run.
        ToolError: a half cannot be converted.
    """
    import torch

    from edgeprune.data import sources
    from edgeprune.models import early_exit as models

    if problems := options.problems():
        raise UserError(problems)
    recipe = run_folder.read_recipe(options.run)
    targets = _targets(options, recipe)
    if TASKS[recipe.task].labels is not LabelKind.CLASS:
        raise UserError(f"{options.run}: an early exit is for models that name one class for an image")
    data = sources.source(recipe.data, TASKS[recipe.task].labels).load(
        recipe.data, recipe.preprocessing, progress
    )
    model = _model(options, recipe, data)
    side_px = recipe.preprocessing.image_size_px
    example = torch.zeros(1, 3, side_px, side_px)
    place = models.deepest(model, example) if options.after == AUTO else options.after
    halves = models.split(model, place, example)
    progress.say(f"split behind {place}, {halves.macs_share:.0%} of the multiplications before it")
    torch.manual_seed(recipe.seed)
    head = models.ExitHead(halves.channels, len(data.classes), options.width)
    learned, kept = _divided(data, recipe.seed)
    _train(head, halves, data, learned, recipe, options.epochs, progress)
    front = models.Front(halves.front, head).eval()
    choice = _choose(front, halves, data, kept, recipe, options.most_lost_points)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = _Files(options, recipe, data, model, halves, front, choice, progress)
    result = EarlyExit(
        schema=SCHEMA,
        model=recipe.model,
        variant=options.variant,
        place=place,
        macs_share=halves.macs_share,
        head_width=options.width,
        epochs=options.epochs,
        most_lost_points=options.most_lost_points,
        choice=choice,
        chosen_on=f"training images of {data.source} that the exit was not trained on; the model was",
        files=tuple(work.made(target) for target in targets),
    )
    write_text(options.folder / f"{NAME}.json", json_text(to_plain(result)))
    return result


def _targets(options: EarlyExitOptions, recipe: Recipe) -> list[Target]:
    """Those asked for, or those of the run that two files can be written for."""
    chosen = [TARGETS[name] for name in options.targets or recipe.targets]
    static = [target.name for target in chosen if target.storage is Storage.STATIC_INT8]
    if options.targets and static:
        raise UserError(f"{', '.join(static)}: early exits are not written with static int8 weights")
    chosen = [target for target in chosen if target.name not in static]
    if not chosen:
        raise UserError("the run has no target that an early exit is written for: name one with --target")
    if problems := target_problems(chosen):
        raise UserError(problems)
    return chosen


def _model(options: EarlyExitOptions, recipe: Recipe, data: Data) -> nn.Module:
    """The torch model of the variant, if its images are still the same."""
    from edgeprune.pipeline.store import inputs_of, weights_of
    from edgeprune.pipeline.variants import DENSE, rebuilt

    folder = run_folder.Run(options.run)
    names = [DENSE, *recipe.variants]
    if options.variant not in names:
        raise UserError(f"--variant {options.variant}: the run has {', '.join(names)}")
    if not folder.weights(options.variant).is_file():
        raise UserError(
            f"{options.run}: {options.variant} is not trained yet: finish it with "
            f"edgeprune run {options.run / run_folder.RECIPE_FILE}"
        )
    if inputs_of(folder).get("data") != data.sha256:
        raise UserError(
            f"{options.run}: the images changed since this run began: what trained it might be held out now"
        )
    return rebuilt(recipe, len(data.classes), weights_of(folder, options.variant))


def _divided(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Training images to train the exit on, and to choose the threshold on, by index."""
    import torch

    count = len(data.train)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    kept = max(1, min(VALIDATION, count // LARGEST_SHARE))
    return order[kept:], order[:kept]


def _train(
    head: nn.Module,
    halves: Halves,
    data: Data,
    learned: Tensor,
    recipe: Recipe,
    epochs: int,
    progress: Progress,
) -> None:
    """Train the exit on images that the recipe augments one by one."""
    import torch

    from edgeprune.training.batches import generator_of, whole_batches
    from edgeprune.training.early_exit import seen, train_head
    from edgeprune.training.predict import normalized
    from edgeprune.training.transforms import change_of

    def batches(epoch: int) -> Iterable[Seen]:
        order = learned[torch.randperm(len(learned), generator=generator_of(recipe.seed, epoch))]
        change = change_of(recipe.augment.filled(), recipe.seed, epoch)
        images = data.train.batches(whole_batches(order, BATCH), change)
        return seen(halves, ((normalized(p, recipe.preprocessing.normalization), y) for p, y in images))

    with progress.track("training the exit", epochs) as advance:
        train_head(
            head,
            batches,
            epochs=epochs,
            steps=len(whole_batches(learned, BATCH)),
            show=lambda done, loss: advance(done, f"loss {loss:.3f}"),
        )


def _choose(
    front: Front, halves: Halves, data: Data, kept: Tensor, recipe: Recipe, most_lost_points: float
) -> Choice:
    """The threshold, by the torch model on the images kept for that."""
    import torch

    from converters.deployed import SCORES
    from edgeprune.evaluation.early_exit import choose_threshold
    from edgeprune.models.early_exit import FEATURES
    from edgeprune.training.predict import normalized

    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, labels in data.train.batches(torch.split(kept, BATCH)):
        with torch.no_grad():
            given = front(normalized(images, recipe.preprocessing.normalization))
            parts.append((given[SCORES], halves.rest(given[FEATURES]), labels))
    scores, full, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return choose_threshold(scores, full, labels, most_lost_points)


@dataclass(frozen=True)
class _Files:
    """What the files of all targets share."""

    options: EarlyExitOptions
    recipe: Recipe
    data: Data
    model: nn.Module
    halves: Halves
    front: Front
    choice: Choice
    progress: Progress

    def made(self, target: Target) -> ExitFiles:
        """Write and measure the two files of a target."""
        from edgeprune.evaluation.early_exit_files import measure, open_pair, write_pair

        suffix = FORMATS[target.format].suffix
        stem = f"{self.options.variant}-{target.name}"
        paths = tuple(self.options.folder / f"{stem}-{half}{suffix}" for half in ("front", "rest"))
        front, rest = paths
        with self.progress.track(f"writing {front.name} and {rest.name}", 1):
            write_pair(
                self.halves,
                self.front,
                target,
                (front, rest),
                example=self._example,
                normalization=self.recipe.preprocessing.normalization,
                threshold=self.choice.threshold,
                labels=self.data.classes,
            )
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            full = self._full(target, Path(folder))
            with self.progress.track(f"running {front.name}", len(self.data.held_out)) as advance:
                measured = measure(
                    open_pair(front, rest, self.choice.threshold),
                    full,
                    self.data.held_out,
                    self.data.classes,
                    self.recipe.preprocessing.normalization,
                    advance,
                )
            times, reason = self._timed(full, front, rest, measured.continues)
            return ExitFiles(
                target=target.name,
                front=front.name,
                rest=rest.name,
                front_bytes=size_bytes(front),
                rest_bytes=size_bytes(rest),
                full_bytes=size_bytes(full),
                measured=measured,
                times=times,
                times_reason=reason,
            )

    @property
    def _example(self) -> Any:
        import torch

        from edgeprune.training.predict import normalized

        images, _ = self.data.train.batch(torch.tensor([0]))
        return normalized(images, self.recipe.preprocessing.normalization)

    def _full(self, target: Target, folder: Path) -> Path:
        """The model in one file: the run's, or one written for the comparison."""
        format = FORMATS[target.format]
        own = run_folder.Run(self.options.run).file(self.options.variant, target.name, format.suffix)
        if own.exists():
            return own
        path = folder / f"full{format.suffix}"
        normalization = self.recipe.preprocessing.normalization
        with self.progress.track("writing the whole model to compare with", 1):
            prepared = format.prepare(self.model, self._example, normalization)
            format.write(prepared, target, path, labels=self.data.classes)
        return path

    def _timed(
        self, full: Path, front: Path, rest: Path, continues: float
    ) -> tuple[Times | None, str | None]:
        """Times of the files, or why there are none."""
        name, no_times = self.options.runtime, format_of(full).no_times
        if no_times is not None or name is None:
            return None, no_times or NOT_ASKED
        steps = f"timing on {name}"
        with self.progress.track(steps, 1):
            return time_pair(full, front, rest, name, continues, rounds=self.options.rounds)


def time_pair(
    full: Path,
    front: Path,
    rest: Path,
    runtime: str,
    continues: float,
    *,
    rounds: int,
    show: Callable[[int], None] | None = None,
) -> tuple[Times | None, str | None]:
    """Time the files interleaved with the whole model's.

    Args:
        full: the whole model in one file.
        front: the first half.
        rest: the second.
        runtime: name, see `edgeprune bench`.
        continues: share of the images for which the rest is run.
        rounds: how often each is timed.
        show: told the number of steps done.

    Returns:
        The times, or None and why there are none.

    Raises:
        UserError: the runtime is unknown or not prepared.
        ToolError: it crashes.
    """
    from edgeprune.commands.bench import plan_bench, time_files

    plan = plan_bench((full, front, rest), runtime, rounds=rounds, one_size=False)
    result = time_files(plan, show)
    refused = [f"{Path(file.path).name} is refused: {file.refused}" for file in result.files if file.refused]
    if refused:
        return None, "; ".join(refused)
    whole, first, second = result.files
    average, fraction = average_time(first.milliseconds, second.milliseconds, whole.milliseconds, continues)
    medians = [file.median_ms or 0.0 for file in (first, second, whole)]
    return (
        Times(
            runtime=result.runtime,
            description=result.description,
            emulated=bool(result.emulated),
            rounds=result.rounds,
            front_ms=medians[0],
            rest_ms=medians[1],
            full_ms=medians[2],
            average_ms=average,
            average_fraction=fraction,
        ),
        None,
    )


def print_result(result: EarlyExit, options: EarlyExitOptions, console: Console) -> None:
    """Print the table and what must be known to read it."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", overflow="fold")
    for heading in ("bytes", "whole model", "early exit", "exit alone", "continue", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for files in result.files:
        measured, times = files.measured, files.times
        table.add_row(
            files.target,
            f"{files.front_bytes + files.rest_bytes:,}",
            *(f"{100 * score:.2f} %" for score in (measured.full, measured.combined, measured.front)),
            f"{100 * measured.continues:.1f} %",
            "–" if times is None else f"{times.average_fraction:.2f} ×",
        )
    console.print(table)
    for line in told(result, options):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def told(result: EarlyExit, options: EarlyExitOptions) -> list[str]:
    """What must be known to read the table, a line each."""
    choice, first = result.choice, result.files[0]
    sure = "no threshold costs so little: no image exits"
    if choice.threshold is not None:
        sure = f"an image exits from a largest probability of {choice.threshold:.4f}"
    lines = [
        f"Split behind {result.place}, {result.macs_share:.0%} of the multiplications before it; {sure}.",
        f"Chosen to lose at most {result.most_lost_points:g} points on {choice.images} {result.chosen_on}: "
        f"there {choice.exits:.1%} exit.",
        f"Accuracies are those of the files on {first.measured.images} held-out images.",
    ]
    for files in result.files:
        if files.times is None:
            lines.append(f"{files.target}: no times: {files.times_reason}")
        else:
            times = files.times
            lines.append(
                f"{files.target} on {times.runtime}: front {times.front_ms:.2f} ms, "
                f"rest {times.rest_ms:.2f} ms, whole model {times.full_ms:.2f} ms, "
                f"{times.average_ms:.2f} ms on average{'; emulated: only ratios mean something' if times.emulated else ''}"
            )
    return [*lines, f"Files: {options.folder}"]
