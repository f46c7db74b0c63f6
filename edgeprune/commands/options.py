"""Options that several commands have, in one vocabulary."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from converters.format import FORMATS
from converters.runtimes.environments import RUNTIMES

RUNTIME_NAMES = ", ".join(RUNTIMES)
FILE_HELP = " or ".join(f"{format.suffix} {format.kind}" for format in FORMATS.values())


def add_json(command: argparse.ArgumentParser) -> None:
    """Give a command the option to write its result as JSON."""
    command.add_argument(
        "--json", type=Path, metavar="OUT", help="write the result here too; - for stdout, no table"
    )


def add_normalization(command: argparse.ArgumentParser) -> None:
    """Give a command the options for what a torch model wants done to pixels."""
    for name, meaning in (("mean", "subtracted from RGB in [0, 1]"), ("std", "it is then divided by")):
        command.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar="X",
            help=f"of the torch model: {meaning}; ImageNet's if not given",
        )


def normalization_given(options: argparse.Namespace) -> dict[str, Any]:
    """`mean` and `std` as far as they were given."""
    return {name: tuple(value) for name in ("mean", "std") if (value := getattr(options, name)) is not None}


def add_padding(command: argparse.ArgumentParser) -> None:
    """Add `--padding`."""
    command.add_argument(
        "--padding", choices=("same",), help="how a timm model pads: same, as TensorFlow; else its own way"
    )
