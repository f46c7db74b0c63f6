"""`edgeprune early-exit`: a run's classifier as two files, the second run only where the first is unsure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.format import format_of, target_problems
from converters.targets import TARGETS, Storage, Target
from edgeprune.commands.options import RUNTIME_NAMES, add_json
from edgeprune.commands.output import DONE, deliver, progress, refuse_unwritable
from edgeprune.data.labels import LabelKind
from edgeprune.errors import UserError
from edgeprune.evaluation.early_exit_result import (
    EarlyExit,
    Times,
    average_time,
    to_text,
)
from edgeprune.pipeline import run_folder
from edgeprune.tasks import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.progress import Progress
    from edgeprune.recipe import Recipe

FOLDER = "early_exit"  # In a run.
AUTO = "auto"
NOT_ASKED = "not measured: name a runtime with --runtime"
EXAMPLES = """\
  edgeprune early-exit runs/mine
  edgeprune early-exit runs/mine --variant block80 --after features.7 --most-lost-points 0.2
  edgeprune early-exit runs/mine --target litert-arm64 --runtime host

Writes NAME-TARGET-front and NAME-TARGET-rest, and early_exit.json, into --output.
The front gives class scores and a feature map; where its largest softmax
probability is below the threshold, the app runs the rest on that map. Only the
exit is trained. The threshold is chosen on the validation set of the run
(validation_fraction), else on training images that the exit was not trained on;
held-out images are looked at once, through the files.
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
        help="last module of the front; %(default)s if not given: the deepest place with at most half of the "
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
        "--epochs",
        type=int,
        default=10,
        metavar="N",
        help="to train the exit: with more of them more images may leave; %(default)s if not given",
    )
    command.add_argument(
        "--width", type=int, default=128, metavar="N", help="channels of the exit; %(default)s if not given"
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
        after=None if options.after == AUTO else options.after,
        most_lost_points=options.most_lost_points,
        epochs=options.epochs,
        width=options.width,
        targets=tuple(options.target or ()),
        output=options.output,
        runtime=options.runtime,
        rounds=options.rounds,
    )
    result = make(wanted, progress())
    deliver(to_text(result), options.json, lambda console: print_result(result, wanted, console))
    return DONE


@dataclass(frozen=True)
class EarlyExitOptions:
    """What the command line says.

    Attributes:
        run: finished or not, with the variant trained.
        variant: of the run.
        after: last module of the front; None: the deepest with at most half of the multiplications before it.
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
    after: str | None = None
    most_lost_points: float = 0.3
    epochs: int = 10
    width: int = 128
    targets: tuple[str, ...] = ()
    output: Path | None = None
    runtime: str | None = None
    rounds: int = 20

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.output or self.run / FOLDER

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
    """Write the files and `early_exit.json`.

    Raises:
        UserError: a mistake in what was asked for; not a run; no such trained variant, or no classifier; a
            model that cannot be split there; images that are no longer those of the run.
        ToolError: a half cannot be converted, or the runtime crashes.
    """
    if problems := options.problems():
        raise UserError(problems)
    recipe = run_folder.read_recipe(options.run)
    targets = _targets(options, recipe)
    if TASKS[recipe.task].labels is not LabelKind.CLASS:
        raise UserError(f"{options.run}: an early exit is for models that name one class for an image")

    from edgeprune.data import sources
    from edgeprune.pipeline import early_exit

    source = sources.source(recipe.data, TASKS[recipe.task].labels)
    data = source.load(recipe.data, recipe.preprocessing, progress)
    wanted = early_exit.Wanted(
        variant=options.variant,
        after=options.after,
        most_lost_points=options.most_lost_points,
        epochs=options.epochs,
        width=options.width,
        targets=tuple(targets),
        folder=options.folder,
    )

    def timed(full: Path, front: Path, rest: Path, continues: float) -> tuple[Times | None, str | None]:
        no_times = format_of(full).no_times
        if no_times is not None or options.runtime is None:
            return None, no_times or NOT_ASKED
        with progress.track(f"timing on {options.runtime}", 1):
            return time_pair(full, front, rest, options.runtime, continues, rounds=options.rounds)

    return early_exit.make(wanted, run_folder.Run(options.run), recipe, data, timed, progress)


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
        measured = files.measured
        lines.append(
            f"{files.target}: {measured.lost_points:.2f} points lost by the exit, standard error "
            f"{measured.error_points:.2f}"
        )
        if files.times is None:
            lines.append(f"{files.target}: no times: {files.times_reason}")
        else:
            times = files.times
            lines.append(
                f"{files.target} on {times.runtime}: front {times.front_ms:.2f} ms, "
                f"rest {times.rest_ms:.2f} ms, whole model {times.full_ms:.2f} ms, "
                f"{times.average_ms:.2f} ms on average"
                + "; emulated: only ratios mean something"
                * times.emulated
            )
    return [*lines, f"Files: {options.folder}"]
