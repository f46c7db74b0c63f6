"""`edgeprune report`: a run's report, made again from what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.commands.options import add_json
from edgeprune.commands.output import deliver, refuse_unwritable

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.report.records import Report


EXAMPLES = """\
  edgeprune report runs/mine
  edgeprune report runs/mine --json - | jq '.rows[].bytes'
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("run", type=Path, metavar="RUN", help="run folder")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Rebuild the report and show it."""
    from edgeprune.pipeline.steps import rebuild_report

    refuse_unwritable(options.json)
    return show_report(rebuild_report(options.run), options.run, options.json)


def show_report(report: Report, folder: Path, output: Path | None) -> int:
    """Print a report's table, write its JSON to `output` too, and return the exit status of its verdict."""
    from edgeprune.report import records, render, summary

    def show(console: Console) -> None:
        render.print_table(report, console)
        console.print(f"\nFull report: {folder / 'report.html'}", highlight=False, soft_wrap=True)

    deliver(records.to_text(report), output, show)
    return summary.verdict(report).exit_status
