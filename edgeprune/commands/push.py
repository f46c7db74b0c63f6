"""`edgeprune push`: a run's files and its model card, sent to the Hugging Face hub."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.facts import sha256, size_bytes
from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, deliver, json_text, refuse_unwritable
from edgeprune.errors import UserError
from edgeprune.pipeline.run_folder import RECIPE_FILE
from edgeprune.report import card, records

if TYPE_CHECKING:
    from rich.console import Console

    from edgeprune.report.records import Report

EXAMPLES = """\
  edgeprune push runs/mine NAME/my-model --dry-run    # lists what would be sent; needs no network
  edgeprune push runs/mine NAME/my-model --private

Sent are the card, the files of the report, report.json and recipe.toml, which may name folders of
this machine; pictures (report.html, thumbnails) and trained weights stay here. It needs pip install
'edgeprune[hub]' and a token: hf auth login, or HF_TOKEN.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with a card")
    command.add_argument("repository", metavar="NAME/REPOSITORY", help="on the hub; made if it is missing")
    command.add_argument("--private", action="store_true", help="a repository that is made is private")
    command.add_argument("--dry-run", action="store_true", help="list what would be sent, and send nothing")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Check, send, and say what was sent."""
    refuse_unwritable(options.json)
    problems = [] if re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository) else [
        f"repository {options.repository!r}: NAME/REPOSITORY, as in the hub's addresses"
    ]  # fmt: skip
    paths = _checked(options.run, problems)
    address = None if options.dry_run else send(options.run, paths, options.repository, options.private)
    plain = {
        "repository": options.repository,
        "sent": not options.dry_run,
        "address": address,
        "files": [{"path": path, "bytes": size_bytes(options.run / path)} for path in paths],
    }
    deliver(json_text(plain), options.json, lambda console: print_sent(plain, console))
    return DONE


def to_send(report: Report) -> tuple[str, ...]:
    """The paths in the run folder that are sent: none shows images, none is needed only to go on training."""
    return (
        card.FILE_NAME,
        records.FILE_NAME,
        RECIPE_FILE,
        *dict.fromkeys(row.path for row in report.rows),
    )


def send(folder: Path, paths: tuple[str, ...], repository: str, private: bool) -> str:
    """Send files of a run in one commit, and return its address.

    Raises:
        UserError: no package, no token, no network, or the hub refuses.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise UserError("sending needs another package: pip install 'edgeprune[hub]'") from None

    if get_token() is None:
        raise UserError(
            "no token for the hub: hf auth login, or set HF_TOKEN (https://huggingface.co/settings/tokens)"
        )
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        # A folder that is a file for the app (.mlpackage) is sent with all that is in it.
        return str(
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=[pattern for path in paths for pattern in (path, f"{path}/**")],
                commit_message=f"{folder.resolve().name}, by edgeprune",
            )
        )
    except Exception as error:  # From one version of the client to the next another HTTP library raises.
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{repository} was not sent: {told[0]}; to see what would be: "
            f"edgeprune push {folder} {repository} --dry-run"
        ) from error


def print_sent(plain: dict[str, Any], console: Console) -> None:
    """Print each file with its bytes, and where it went."""
    for file in plain["files"]:
        console.print(f"{file['bytes']:>14,}  {file['path']}", highlight=False, markup=False, soft_wrap=True)
    total = sum(file["bytes"] for file in plain["files"])
    done = f"Sent to {plain['address']}" if plain["sent"] else f"Nothing was sent to {plain['repository']}"
    console.print(f"{total:>14,}  bytes. {done}", highlight=False, markup=False, soft_wrap=True)


def _checked(folder: Path, problems: list[str]) -> tuple[str, ...]:
    """What to send of a run whose files are those in its report.

    Raises:
        UserError: `problems`, and every file that is missing or is not the one that was measured.
    """
    report = records.read(folder)
    problems = [*problems, *_faults(folder, report)]
    if problems:
        raise UserError(problems)
    return to_send(report)


def _faults(folder: Path, report: Report) -> Iterator[str]:
    if not (folder / card.FILE_NAME).is_file():
        yield f"{folder} has no card: edgeprune card {folder}"
    digests = {row.path: row.sha256 for row in report.rows}
    for path in to_send(report)[1:]:
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            yield f"{folder / path} is not in the run folder: the report names a file elsewhere"
        elif not (folder / path).exists():
            yield f"{folder / path} is missing: edgeprune run {folder / RECIPE_FILE} makes it again"
        elif path in digests and sha256(folder / path) != digests[path]:
            yield f"{folder / path} is not the file that was measured: edgeprune report {folder}"
