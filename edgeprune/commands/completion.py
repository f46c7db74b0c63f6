"""`edgeprune completion`: commands, options and file names, completed by a shell."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgeprune.commands.output import DONE

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """\
  edgeprune completion bash > ~/.local/share/bash-completion/completions/edgeprune
  edgeprune completion zsh > ~/.zfunc/_edgeprune      # a folder of your $fpath
  edgeprune completion fish > ~/.config/fish/completions/edgeprune.fish
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def execute(options: argparse.Namespace) -> int:
    """Print the script."""
    sys.stdout.write(completion(options.shell))
    return DONE


def completion(shell: str) -> str:
    """The script that has a shell complete commands, options and file names."""
    import shtab

    from edgeprune.commands import COMMANDS
    from edgeprune.commands.parser import build

    parser, commands = build(COMMANDS)
    for command in commands:
        for action in command._actions:  # argparse has no public list of them.
            if action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell))
