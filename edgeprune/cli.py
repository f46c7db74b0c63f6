"""The command line. Only what a command needs is imported, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters.runtimes.environments import RUNTIMES
from edgeprune import __version__, processes
from edgeprune.errors import EdgepruneError, UserError

if TYPE_CHECKING:
    from edgeprune.recipe import Recipe
    from edgeprune.report.records import Report

# Waiting threads spin briefly, then sleep: beside another busy process a training was several
# times faster than with GNU OpenMP's long default. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

STDOUT = Path("-")
PIPED_WIDTH = 140  # Columns of a table that is not read on a terminal.
DONE, OVER_BUDGET, USER_MISTAKE, TOOL_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
DIFFERS = 1  # A check that failed, like a budget.

DESCRIPTION = """\
Prune a vision model to a budget; get the Core ML and LiteRT files, with every
number measured on the files that ship.

Most people start from a recipe script:
  python recipes/mobilenet_v3_small.py --data IMAGES --output runs/mine
and let their CI check what it made:
  edgeprune check runs/mine"""

EXIT_STATUS = """\
exit status: 0 done and within budget; 1 over budget; 2 a mistake in what was
asked for; 3 a tool underneath failed."""


BENCH_EXAMPLES = """\
examples:
  edgeprune bench dense.tflite sparse.tflite
  edgeprune bench dense.tflite sparse.tflite --runtime x86-sparse --rounds 10
  edgeprune bench runs/mine/files/*litert-arm64*.tflite --runtime arm64 --json -

x86-sparse, arm64 and browser are prepared once, by make runtimes. host and
browser take real time. The others are emulated: only how files compare in one
run means something.

"""


VERIFY_EXAMPLES = """\
examples:
  edgeprune verify runs/mine/files/block80-litert-arm64.tflite
  edgeprune verify model.tflite --model mobilenet_v3_small --checkpoint mine.safetensors
  edgeprune verify model.tflite --runtime host --runtime arm64 --images 20 --json -

A file in a run folder is compared with that run's torch model on its held-out
images; any other with --model and --checkpoint, or runtime with runtime. make
runtimes prepares more of them; pip install 'edgeprune[tensorflow]' adds
TensorFlow's own interpreter.

exit status: 0 every runtime that was run agrees; 1 one does not; 2 a mistake
in what was asked for, or a file that cannot be used; 3 a tool underneath failed.
"""


SENSITIVITY_EXAMPLES = """\
examples:
  edgeprune sensitivity runs/mine
  edgeprune sensitivity runs/mine --layers 'classifier.*' --sparsities 0.8 0.9

Writes sensitivity.json, sensitivity.md and sensitivity.png into the run folder.
Only training images are looked at, never the held-out ones.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _parser().parse_args(arguments)
    return guarded(lambda: options.command(options))


def run_recipe(recipe: Recipe, description: str | None, arguments: Sequence[str] | None = None) -> int:
    """Run a recipe script: let the command line change `recipe`, then take it all the way.

    Args:
        recipe: the script's own.
        description: shown by `--help`; the script's docstring.
        arguments: of the command line; None for those of this process.

    Returns:
        The exit status: 0 within budget, 1 over it, 2 for a mistake, 3 if a tool failed.
    """
    from edgeprune.recipe import from_command_line

    return guarded(lambda: _run(from_command_line(recipe, description or "", arguments)))


def guarded(command: Callable[[], int]) -> int:
    """Run `command`; turn errors into one message on stderr and an exit status."""
    try:
        return command()
    except UserError as error:
        _complain("error: " + "\n       ".join("\n".join(error.problems).split("\n")))
        return USER_MISTAKE
    except EdgepruneError as error:
        _complain(f"error: {error}")
        return TOOL_FAILED
    except KeyboardInterrupt:
        _complain("stopped")
        return INTERRUPTED


def _complain(text: str) -> None:
    # Each of several processes says it: the first to fail has the others stopped.
    sys.stderr.write(f"{text}\n" if processes.count() == 1 else f"process {processes.rank()}: {text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "edgeprune",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgeprune {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = _command(commands, "run", "take a recipe file all the way, or go on with a stopped run", _run_file)
    run.add_argument("recipe", type=Path, help="a recipe as TOML, such as a run folder's recipe.toml")
    run.add_argument("options", nargs=argparse.REMAINDER, help="any field, e.g. --seed 1; see RECIPE --help")

    report = _command(
        commands, "report", "rebuild a run's report from what was measured, without training", _report
    )
    report.add_argument("run", type=Path, help="run folder")

    check = _command(
        commands, "check", "hold a run's files against a budget; exit status 1 if it is broken", _check
    )
    check.add_argument("run", type=Path, help="run folder")
    check.add_argument("--budget", type=Path, help="budget.toml; the recipe's own budget if not given")

    inspect = _command(commands, "inspect", "show how each weight of a file is stored", _inspect)
    inspect.add_argument("file", type=Path, help=".tflite file or .mlpackage folder")

    bench = _command(commands, "bench", "time .tflite files in turns on one runtime", _bench, BENCH_EXAMPLES)
    bench.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="the others are compared with the first"
    )
    names = ", ".join(RUNTIMES)
    bench.add_argument("--runtime", default="host", help=f"where they run: {names}; %(default)s if not given")
    bench.add_argument(
        "--rounds", type=int, default=20, help="times each file is timed; %(default)s if not given"
    )
    bench.add_argument("--threads", type=int, default=1, help="of the runtime; %(default)s if not given")
    bench.add_argument(
        "--json",
        type=Path,
        metavar="OUT",
        help="write all of it, every time taken, here; - for stdout, no table",
    )
    _add_verify(commands)
    _add_sensitivity(commands)
    return parser


def _add_sensitivity(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "measure what zeros in each layer alone do to the accuracy of a run's dense model"
    command = _command(commands, "sensitivity", summary, _sensitivity, SENSITIVITY_EXAMPLES)
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with a trained dense model")
    command.add_argument("--layers", default="*", metavar="GLOB", help="of layer names; all if not given")
    command.add_argument(
        "--sparsities",
        type=float,
        nargs="+",
        metavar="S",
        default=(0.5, 0.7, 0.8, 0.9, 0.95),
        help="0.5 0.7 0.8 0.9 0.95 if not given",
    )
    command.add_argument(
        "--images",
        type=int,
        metavar="N",
        default=500,
        help="of the training images, always the same; %(default)s if not given",
    )
    command.add_argument(
        "--block",
        type=int,
        nargs=2,
        metavar=("OUT", "IN"),
        default=(1, 4),
        help="channels zeroed together, 1 1 for single weights; 1 4 if not given",
    )
    command.add_argument(
        "--json", type=Path, metavar="OUT", help="write the result here too; - for stdout, no table"
    )


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "run a file on every runtime at hand and compare it with its torch model"
    verify = _command(commands, "verify", summary, _verify)
    verify.epilog = VERIFY_EXAMPLES
    verify.add_argument("file", type=Path, metavar="FILE", help=".tflite file or .mlpackage folder")
    verify.add_argument(
        "--model", metavar="NAME", help="torch model by name, as a recipe's; with --checkpoint"
    )
    verify.add_argument("--checkpoint", type=Path, metavar="WEIGHTS", help="its state dict")
    for name, meaning in (("mean", "subtracted from RGB in [0, 1]"), ("std", "it is then divided by")):
        verify.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar="X",
            help=f"of --model: {meaning}; ImageNet's if not given",
        )
    verify.add_argument("--run", type=Path, help="run folder it was made in, if it lies elsewhere")
    verify.add_argument("--variant", help="of the run, if the file's name does not say it")
    names = ", ".join([*RUNTIMES, "tensorflow"])
    verify.add_argument(
        "--runtime",
        action="append",
        metavar="NAME",
        help=f"{names}; may be repeated; all that are there if not given",
    )
    verify.add_argument(
        "--images", type=int, metavar="N", help="on each runtime; 100, or 4 where emulated, if not given"
    )
    verify.add_argument(
        "--json", type=Path, metavar="OUT", help="write the result here; - for stdout, no table"
    )


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    command: Callable[[argparse.Namespace], int],
    examples: str = "",
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary.capitalize() + ".",
        epilog=examples + EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _run_file(options: argparse.Namespace) -> int:
    from edgeprune.recipe import from_command_line, read

    return _run(from_command_line(read(options.recipe), f"Recipe {options.recipe}", options.options))


def _run(recipe: Recipe) -> int:
    from rich.console import Console

    from edgeprune.environment import command_line
    from edgeprune.pipeline import run
    from edgeprune.progress import Progress

    try:
        report = run(recipe, Progress(Console(quiet=not processes.is_first())), command_line())
    except KeyboardInterrupt:
        _complain("the same command goes on from the last finished epoch")
        raise
    return DONE if report is None else _finish(report, recipe.output)


def _report(options: argparse.Namespace) -> int:
    from edgeprune.pipeline import rebuild_report

    return _finish(rebuild_report(options.run), options.run)


def _finish(report: Report, folder: Path) -> int:
    from rich.console import Console

    from edgeprune.report import budget, render

    console = Console()
    render.print_table(report, console)
    console.print(f"\nFull report: {folder / 'report.html'}", highlight=False, soft_wrap=True)
    return budget.evaluate(budget.from_plain(report.recipe.get("budget")), report.rows).exit_status


def _check(options: argparse.Namespace) -> int:
    from edgeprune.report import budget, records

    report = records.read(options.run)
    limits = budget.read(options.budget) if options.budget else budget.from_plain(report.recipe.get("budget"))
    if not limits:
        raise UserError(f"{options.run}: its recipe sets no budget: give one with --budget budget.toml")
    verdict = budget.evaluate(limits, report.rows)
    sys.stdout.write(verdict.message() + "\n")
    return verdict.exit_status


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgeprune.inspecting import print_facts

    console = Console()
    print_facts(options.file, console if console.is_terminal else Console(width=PIPED_WIDTH))
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from converters.files import write_text
    from edgeprune import bench
    from edgeprune.progress import Progress

    to_stdout = options.json == STDOUT
    plan = bench.plan(
        options.files,
        options.runtime,
        rounds=options.rounds,
        threads=options.threads,
        output=None if to_stdout else options.json,
    )
    with Progress(Console(stderr=True)).track(f"timing on {plan.runtime.name}", plan.steps) as advance:
        result = bench.measure(plan, advance)
    if to_stdout:
        sys.stdout.write(bench.to_json(result))
        return DONE
    console = Console()
    bench.print_bench(result, console if console.is_terminal else Console(width=PIPED_WIDTH))
    if options.json is not None:
        write_text(options.json, bench.to_json(result))
    return DONE


def _sensitivity(options: argparse.Namespace) -> int:
    from rich.console import Console

    from converters.files import write_text
    from edgeprune import sensitivity
    from edgeprune.progress import Progress

    if options.json not in (None, STDOUT) and not options.json.parent.is_dir():
        raise UserError(f"cannot write {options.json}: no such folder")
    asked = sensitivity.Asked(
        options.run, options.layers, tuple(options.sparsities), options.images, tuple(options.block)
    )
    result = sensitivity.run(asked, Progress(Console(stderr=True)))
    if options.json == STDOUT:
        sys.stdout.write(sensitivity.to_json(result))
        return DONE
    console = Console()
    sensitivity.print_result(result, console if console.is_terminal else Console(width=PIPED_WIDTH))
    sys.stdout.write(f"Picture: {options.run / 'sensitivity.png'}\n")
    if options.json is not None:
        write_text(options.json, sensitivity.to_json(result))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from converters.files import write_text
    from edgeprune import verifying
    from edgeprune.progress import Progress

    if options.json not in (None, STDOUT) and not options.json.parent.is_dir():
        raise UserError(f"cannot write {options.json}: no such folder")
    given = {name: tuple(value) for name in ("mean", "std") if (value := getattr(options, name)) is not None}
    asked = verifying.Asked(
        options.file,
        model=options.model,
        checkpoint=options.checkpoint,
        run=options.run,
        variant=options.variant,
        runtimes=None if options.runtime is None else tuple(options.runtime),
        images=options.images,
        **given,
    )
    result, found = verifying.run(asked, Progress(Console(stderr=True)).say)
    if options.json == STDOUT:
        sys.stdout.write(verifying.to_json(result, found))
        return DONE if result.agrees else DIFFERS
    console = Console()
    verifying.print_result(result, found, console if console.is_terminal else Console(width=PIPED_WIDTH))
    if options.json is not None:
        write_text(options.json, verifying.to_json(result, found))
    return DONE if result.agrees else DIFFERS


if __name__ == "__main__":
    sys.exit(main())
