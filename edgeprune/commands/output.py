"""Where a command's result goes: JSON where that was asked for, a table for people, an exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.progress import Progress

STDOUT = Path("-")
PIPED_WIDTH = 140  # Columns of a table that is not read on a terminal.
DONE, OVER_BUDGET, USER_MISTAKE, TOOL_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
DIFFERS = 1  # A check that failed, like a budget.


def deliver(text: str, output: Path | None, show: Callable[[Console], None]) -> None:
    """Write a result as JSON where that was asked for, and show it, but where JSON goes to stdout."""
    from converters.files import write_text

    if output == STDOUT:
        sys.stdout.write(text)
        return
    if output is not None:
        write_text(output, text)
    show(console())


def refuse_unwritable(*outputs: Path | None) -> None:
    """Say what cannot be written before any work is done.

    Raises:
        UserError: every output that is a folder, or in none.
    """
    if problems := [problem for output in outputs for problem in unwritable(output)]:
        raise UserError(problems)


def unwritable(output: Path | None) -> list[str]:
    """Why a file cannot be written, if it is a file and cannot."""
    if output is None or output == STDOUT or (output.parent.is_dir() and not output.is_dir()):
        return []
    return [f"cannot write {output}: {'a folder' if output.is_dir() else 'no such folder'}"]


def json_text(plain: Any) -> str:
    """Plain data as every command writes it."""
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def console() -> Console:
    """For tables, on stdout."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


def progress() -> Progress:
    """What goes on meanwhile, on stderr."""
    from rich.console import Console

    from edgeprune.progress import Progress

    return Progress(Console(stderr=True))
