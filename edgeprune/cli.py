"""The command line. Only what a command needs is imported, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converters.runtimes.environments import RUNTIMES
from edgeprune import __version__
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
    sys.stderr.write(text + "\n")


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
    return parser


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
        report = run(recipe, Progress(Console()), command_line())
    except KeyboardInterrupt:
        _complain("the same command goes on from the last finished epoch")
        raise
    return _finish(report, recipe.output)


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


if __name__ == "__main__":
    sys.exit(main())
