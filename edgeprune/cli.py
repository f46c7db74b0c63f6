"""The command line. Only what a command needs is imported, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import processes
from edgeprune.commands.options import parser
from edgeprune.errors import EdgepruneError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.recipe import Recipe
    from edgeprune.report.records import Report

# Waiting threads spin briefly, then sleep: beside another busy process a training was several
# times faster than with GNU OpenMP's long default. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

STDOUT = Path("-")
PIPED_WIDTH = 140  # Columns of a table that is not read on a terminal.
DONE, OVER_BUDGET, USER_MISTAKE, TOOL_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
DIFFERS = 1  # A check that failed, like a budget.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parser(COMMANDS).parse_args(arguments)
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


def _run_file(options: argparse.Namespace) -> int:
    from edgeprune.recipe import from_command_line, read

    # Behind the recipe everything is one of its fields, but for this.
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--json", type=Path, default=options.json)
    found, fields = own.parse_known_args(options.options)
    _refuse_unwritable(found.json)
    return _run(
        from_command_line(read(options.recipe), f"Recipe {options.recipe}", fields), output=found.json
    )


def _run(recipe: Recipe, output: Path | None = None) -> int:
    from rich.console import Console

    from edgeprune.pipeline.environment import command_line
    from edgeprune.pipeline.steps import run
    from edgeprune.progress import Progress

    console = Console(quiet=not processes.is_first(), stderr=output == STDOUT)
    try:
        report = run(recipe, Progress(console), command_line())
    except KeyboardInterrupt:
        _complain("the same command goes on from the last finished epoch")
        raise
    return DONE if report is None else _finish(report, recipe.output, output)


def _report(options: argparse.Namespace) -> int:
    from edgeprune.pipeline.steps import rebuild_report

    _refuse_unwritable(options.json)
    return _finish(rebuild_report(options.run), options.run, options.json)


def _finish(report: Report, folder: Path, output: Path | None) -> int:
    from edgeprune.report import records, render, summary

    def show(console: Console) -> None:
        render.print_table(report, console)
        console.print(f"\nFull report: {folder / 'report.html'}", highlight=False, soft_wrap=True)

    _deliver(records.to_text(report), output, show)
    return summary.verdict(report).exit_status


def _check(options: argparse.Namespace) -> int:
    from converters.files import write_text
    from edgeprune.commands import check as checking
    from edgeprune.commands import ci

    _refuse_unwritable(options.json, options.junit)
    asked = checking.Asked(
        tuple(options.paths),
        options.budget,
        options.target,
        tuple(options.bench),
        None if options.only is None else tuple(options.only),
    )
    checked = checking.check(asked)
    _deliver(
        checking.to_json(checked), options.json, lambda console: checking.print_checked(checked, console)
    )
    if options.junit is not None:
        write_text(options.junit, ci.junit(checked))
    if ci.on_github():
        stream = sys.stderr if options.json == STDOUT else sys.stdout
        stream.writelines(f"{line}\n" for line in ci.github_annotations(checked))
    return DONE if checked.ok else OVER_BUDGET


def _compare(options: argparse.Namespace) -> int:
    from edgeprune.commands import compare as comparing

    _refuse_unwritable(options.json)
    found = comparing.compare(options.before, options.after)
    _deliver(
        comparing.to_json(found), options.json, lambda console: comparing.print_comparison(found, console)
    )
    return DONE


def _convert(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgeprune.commands import convert as converting
    from edgeprune.progress import Progress

    _refuse_unwritable(options.json)
    asked = converting.Asked(
        options.source,
        options.output,
        model=options.model,
        targets=tuple(options.target or converting.DEFAULT_TARGETS),
        image_size_px=options.image_size_px,
        labels=options.labels,
        **_normalization(options),
    )
    made = converting.run(asked, Progress(Console(stderr=True)))
    _deliver(converting.to_json(made), options.json, lambda console: converting.print_result(made, console))
    return DONE


def _inspect(options: argparse.Namespace) -> int:
    from edgeprune.commands import inspect as inspecting

    _refuse_unwritable(options.json)
    if options.json is not None:
        text = inspecting.to_json(options.file)
        _deliver(text, options.json, lambda console: inspecting.print_facts(options.file, console))
        return DONE
    inspecting.print_facts(options.file, _console())
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgeprune.commands import bench
    from edgeprune.progress import Progress

    plan = bench.plan(
        options.files,
        options.runtime,
        rounds=options.rounds,
        threads=options.threads,
        output=None if options.json == STDOUT else options.json,
    )
    with Progress(Console(stderr=True)).track(f"timing on {plan.runtime.name}", plan.steps) as advance:
        result = bench.measure(plan, advance)
    _deliver(bench.to_json(result), options.json, lambda console: bench.print_bench(result, console))
    return DONE


def _sensitivity(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgeprune.commands import sensitivity
    from edgeprune.progress import Progress

    _refuse_unwritable(options.json)
    asked = sensitivity.Asked(
        options.run, options.layers, tuple(options.sparsities), options.images, tuple(options.block)
    )
    result = sensitivity.run(asked, Progress(Console(stderr=True)))

    def show(console: Console) -> None:
        sensitivity.print_result(result, console)
        console.print(f"Picture: {options.run / 'sensitivity.png'}", highlight=False, soft_wrap=True)

    _deliver(sensitivity.to_json(result), options.json, show)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console

    from edgeprune.commands import verify as verifying
    from edgeprune.progress import Progress

    _refuse_unwritable(options.json)
    asked = verifying.Asked(
        options.file,
        model=options.model,
        checkpoint=options.checkpoint,
        run=options.run,
        variant=options.variant,
        runtimes=None if options.runtime is None else tuple(options.runtime),
        images=options.images,
        **_normalization(options),
    )
    result, found = verifying.run(asked, Progress(Console(stderr=True)).say)
    _deliver(
        verifying.to_json(result, found),
        options.json,
        lambda console: verifying.print_result(result, found, console),
    )
    return DONE if result.agrees else DIFFERS


def _doctor(options: argparse.Namespace) -> int:
    from edgeprune.commands import doctor

    _refuse_unwritable(options.json)
    findings = doctor.examine()
    _deliver(doctor.to_json(findings), options.json, lambda console: doctor.print_findings(findings, console))
    return DONE if doctor.complete(findings) else DIFFERS


def _completion(options: argparse.Namespace) -> int:
    from edgeprune.commands.options import completion

    sys.stdout.write(completion(COMMANDS, options.shell))
    return DONE


def _normalization(options: argparse.Namespace) -> dict[str, Any]:
    """`mean` and `std` as far as they were given."""
    return {name: tuple(value) for name in ("mean", "std") if (value := getattr(options, name)) is not None}


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def _deliver(text: str, output: Path | None, show: Callable[[Console], None]) -> None:
    """Write a result as JSON where that was asked for, and show it, but where JSON goes to stdout."""
    from converters.files import write_text

    if output == STDOUT:
        sys.stdout.write(text)
        return
    if output is not None:
        write_text(output, text)
    show(_console())


def _refuse_unwritable(*outputs: Path | None) -> None:
    """Say what cannot be written before any work is done."""
    problems = [
        f"cannot write {output}: {'a folder' if output.is_dir() else 'no such folder'}"
        for output in outputs
        if output not in (None, STDOUT) and (output.is_dir() or not output.parent.is_dir())
    ]
    if problems:
        raise UserError(problems)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run_file,
    "convert": _convert,
    "inspect": _inspect,
    "verify": _verify,
    "bench": _bench,
    "sensitivity": _sensitivity,
    "report": _report,
    "check": _check,
    "compare": _compare,
    "doctor": _doctor,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
