"""`edgeprune run`: a recipe, by name or as a file, taken all the way."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import processes
from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, STDOUT, refuse_unwritable
from edgeprune.commands.report import show_report

if TYPE_CHECKING:
    from edgeprune.recipe import Recipe


EXAMPLES = """\
  edgeprune run mobilenet_v3_small --data IMAGES --output runs/mine
  edgeprune run mobilenet_v3_small --help
  edgeprune run runs/mine/recipe.toml --output runs/again --seed 1

edgeprune recipes lists the names.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument(
        "recipe",
        type=Path,
        metavar="RECIPE",
        help="name of a recipe that comes along; or one as TOML, such as a run folder's recipe.toml",
    )
    add_json(command)
    command.add_argument(
        "options", nargs=argparse.REMAINDER, help="any field, e.g. --seed 1; see RECIPE --help"
    )


def execute(options: argparse.Namespace) -> int:
    """Read the recipe, let the options change it, and run it."""
    from edgeprune.commands.recipes import find
    from edgeprune.recipe import from_command_line

    # Behind the recipe everything is one of its fields, but for this.
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--json", type=Path, default=options.json)
    found, fields = own.parse_known_args(options.options)
    refuse_unwritable(found.json)
    recipe, description = find(options.recipe)
    return run_recipe(from_command_line(recipe, description, fields), output=found.json)


def run_recipe(recipe: Recipe, output: Path | None = None, datasets: tuple[Any, Any] | None = None) -> int:
    """Take a recipe all the way, show its report, and return the exit status.

    `output` is for its JSON; `datasets` are images from Python instead of the recipe's `data`.
    """
    from rich.console import Console

    from edgeprune.pipeline.environment import command_line
    from edgeprune.pipeline.steps import run
    from edgeprune.progress import Progress

    console = Console(quiet=not processes.is_first(), stderr=output == STDOUT)
    try:
        report = run(recipe, Progress(console), command_line(), datasets)
    except KeyboardInterrupt:
        processes.complain("the same command goes on from the last finished epoch")
        raise
    return DONE if report is None else show_report(report, recipe.output, output)
