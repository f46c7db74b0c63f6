"""The parser of `edgeprune`, from the commands."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from edgeprune import __version__
from edgeprune.commands import COMMANDS, module

DESCRIPTION = """\
Prune a vision model to a budget; get the Core ML and LiteRT files, with every
number measured on the files that ship.

Most people start from a recipe:
  edgeprune run mobilenet_v3_small --data IMAGES --output runs/mine
and let their CI check what it made:
  edgeprune check runs/mine --budget budget.toml"""

EXIT_STATUS = """\
exit status: 0 done and within budget; 1 over budget; 2 a mistake in what was
asked for; 3 a tool underneath failed."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; `execute` of the result is that of its command.

    Only the module of the command that is named is imported.
    """
    named = [word for word in arguments if word in COMMANDS][:1]
    parsed: argparse.Namespace = build(named)[0].parse_args(arguments)
    return parsed


def build(complete: Collection[str]) -> tuple[argparse.ArgumentParser, list[argparse.ArgumentParser]]:
    """The parser, and those of its commands; those named in `complete` have their options."""
    parser = argparse.ArgumentParser(
        "edgeprune",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgeprune {__version__}")
    choices = parser.add_subparsers(metavar="COMMAND", required=True)
    commands = []
    for name, summary in COMMANDS.items():
        command = choices.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in complete:
            _complete(command, module(name))
        commands.append(command)
    return parser, commands


def _complete(command: argparse.ArgumentParser, module: Any) -> None:
    command.epilog = f"examples:\n{module.EXAMPLES}\n{getattr(module, 'EXIT_STATUS', EXIT_STATUS)}"
    command.set_defaults(execute=module.execute)
    module.add_options(command)
