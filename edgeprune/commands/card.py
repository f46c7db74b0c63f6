"""`edgeprune card`: a model card for the Hugging Face hub, written into a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, deliver, json_text, refuse_unwritable
from edgeprune.errors import UserError
from edgeprune.report import card, records

EXAMPLES = """\
  edgeprune card runs/mine
  edgeprune card runs/mine --license apache-2.0 --overwrite
  edgeprune push runs/mine NAME/my-model --dry-run      # what goes with it

Everything in the card is from the run's report.json.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("run", type=Path, metavar="RUN", help="run folder")
    command.add_argument(
        "--license",
        default=card.UNKNOWN,
        metavar="NAME",
        help="licence of the weights as the hub names it, e.g. apache-2.0 or other; default: unknown",
    )
    command.add_argument("--overwrite", action="store_true", help="replace a card that was changed by hand")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Write the card, and say where."""
    from converters.files import write_text

    refuse_unwritable(options.json)
    report = records.read(options.run)
    text, path = card.text(report, options.license), options.run / card.FILE_NAME
    if not options.overwrite and path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path} is there already and says something else: edgeprune card {options.run} --overwrite "
            "replaces it"
        )
    write_text(path, text)
    plain = {"path": str(path), "front_matter": card.front_matter(report, options.license)}
    deliver(
        json_text(plain),
        options.json,
        lambda console: console.print(
            f"Wrote {path}. Send it and the files: edgeprune push {options.run} NAME/REPOSITORY --dry-run",
            highlight=False,
            markup=False,
            soft_wrap=True,
        ),
    )
    return DONE
