"""The command line: one parser, one command, and its exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgeprune import processes
from edgeprune.commands.output import INTERRUPTED, TOOL_FAILED, USER_MISTAKE
from edgeprune.commands.parser import parse
from edgeprune.errors import EdgepruneError, UserError

if TYPE_CHECKING:
    from edgeprune.recipe import Recipe

# Waiting threads spin briefly, then sleep: beside another busy process a training was several
# times faster than with GNU OpenMP's long default. Read once, when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = parse(list(sys.argv[1:] if arguments is None else arguments))
    return guarded(lambda: options.execute(options))


def run_recipe(
    recipe: Recipe,
    description: str | None,
    arguments: Sequence[str] | None = None,
    *,
    datasets: tuple[Any, Any] | None = None,
) -> int:
    """Run a recipe script: let the command line change `recipe`, then take it all the way.

    Args:
        recipe: the script's own.
        description: shown by `--help`; the script's docstring.
        arguments: of the command line; None for those of this process.
        datasets: training images and held-out images from Python instead of the recipe's `data`:
            torchvision's datasets, or any with a length whose items are (image, label).

    Returns:
        The exit status: 0 within budget, 1 over it, 2 for a mistake, 3 if a tool failed.
    """
    from edgeprune.commands import run
    from edgeprune.recipe import from_command_line

    return guarded(
        lambda: run.run_recipe(from_command_line(recipe, description or "", arguments), datasets=datasets)
    )


def guarded(command: Callable[[], int]) -> int:
    """Run `command`; turn errors into one message on stderr and an exit status."""
    try:
        return command()
    except UserError as error:
        processes.complain("error: " + "\n       ".join("\n".join(error.problems).split("\n")))
        return USER_MISTAKE
    except EdgepruneError as error:
        processes.complain(f"error: {error}")
        return TOOL_FAILED
    except KeyboardInterrupt:
        processes.complain("stopped")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
