"""`edgeprune recipes`: the recipes that come along, by name; a copy of one to begin your own from."""

from __future__ import annotations

import argparse
import ast
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, deliver, json_text, refuse_unwritable
from edgeprune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.recipe import Recipe

SCHEMA = 1
EXAMPLES = """\
  edgeprune recipes
  edgeprune recipes copy mobilenet_v3_small mine    # mine/mobilenet_v3_small.py, to change as you like
  edgeprune recipes --json - | jq -r '.recipes[].name'

Run one with edgeprune run NAME, a copy with python NAME.py: both take the same options.
"""


@dataclass(frozen=True)
class Script:
    """A recipe that comes along.

    Attributes:
        name: of the script, without its suffix.
        summary: its first line.
        path: of the script.
    """

    name: str
    summary: str
    path: Path


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    add_json(command)
    actions = command.add_subparsers(metavar="copy", help="copy a recipe's script; without it: list all")
    copying = actions.add_parser("copy", description="Copy the script of a recipe; nothing is overwritten.")
    copying.add_argument("name", choices=sorted(_paths()), metavar="NAME", help="one of edgeprune recipes")
    copying.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path(),
        metavar="FOLDER",
        help="made if missing; default: here",
    )


def execute(options: argparse.Namespace) -> int:
    """List the recipes, or copy one."""
    refuse_unwritable(options.json)
    if "name" in options:
        print_copy(copy(options.name, options.folder))
        return DONE
    found = scripts()
    deliver(json_text(to_plain(found)), options.json, lambda console: print_scripts(found, console))
    return DONE


def scripts() -> list[Script]:
    """All recipes that come along, by name."""
    return [Script(name, _summary(path), path) for name, path in sorted(_paths().items())]


def find(given: Path) -> tuple[Recipe, str]:
    """A recipe by its name or from a TOML file, and what `--help` says of it.

    Raises:
        UserError: neither a name nor such a file.
    """
    from edgeprune.recipe import read

    paths = _paths()
    if str(given) in paths:
        script = runpy.run_path(str(paths[str(given)]))
        return script["RECIPE"], script["__doc__"]
    if given.suffix == ".py":
        raise UserError(f"{given}: a script, not a recipe as TOML: python {given}")
    if not given.suffix and len(given.parts) == 1 and not given.exists():
        raise UserError(
            f"unknown recipe {str(given)!r}: choose from {', '.join(sorted(paths))}; "
            "or name a file: edgeprune run runs/mine/recipe.toml"
        )
    return read(given), f"Recipe {given}"


def copy(name: str, folder: Path) -> Path:
    """Copy the script of a recipe into a folder, and return its path.

    Raises:
        UserError: there is such a file already, or the folder cannot be written.
    """
    from converters.files import write_text

    path = folder / f"{name}.py"
    if path.exists():
        raise UserError(f"{path} is there already: name another folder: edgeprune recipes copy {name} FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    return write_text(path, _paths()[name].read_text(encoding="utf-8"))


def to_plain(found: list[Script]) -> dict[str, object]:
    """All recipes, as plain data for JSON."""
    recipes = [{"name": one.name, "summary": one.summary, "path": str(one.path)} for one in found]
    return {"schema": SCHEMA, "recipes": recipes}


def print_scripts(found: list[Script], console: Console) -> None:
    """Print a line for each recipe, and what to do with them."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for script in found:
        table.add_row(Text(script.name, style="bold"), Text(script.summary))
    console.print(table)
    console.print(
        Text("\nRun one:  edgeprune run NAME --data IMAGES --output runs/mine    (--help: every option)")
    )
    console.print(Text("Copy one: edgeprune recipes copy NAME"))


def print_copy(path: Path) -> None:
    """Say what was written, and how to go on."""
    from edgeprune.commands.output import console

    console().print(
        f"Wrote {path}. Its options: python {path} --help", highlight=False, markup=False, soft_wrap=True
    )


def _paths() -> dict[str, Path]:
    """The scripts by name: an installed package has them inside, a checkout beside it."""
    package = Path(__file__).parents[1]
    folder = next((f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in folder.glob("*.py")}


def _summary(script: Path) -> str:
    """The first line of a script's documentation; the script is not run."""
    return (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").split("\n")[0]
