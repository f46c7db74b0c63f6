"""What of `edgeprune bench` is about phones: its options, and what is asked of `converters.runtimes`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.runtimes.android import PhoneRan

ANDROID = "android"
ACCELERATORS = ("cpu", "gpu")


def add_phone_options(command: argparse.ArgumentParser) -> None:
    """Give the command the options of a phone."""
    phone = command.add_argument_group(f"with --runtime {ANDROID}")
    phone.add_argument("--device", metavar="SERIAL", help="which phone, as adb devices names it")
    phone.add_argument(
        "--accelerator", choices=ACCELERATORS, default="cpu", help="where on it; %(default)s if not given"
    )
    phone.add_argument(
        "--benchmark-model", type=Path, metavar="PATH", help="LiteRT's tool, built for the phone's processor"
    )


def phone_options_given(options: argparse.Namespace) -> list[str]:
    """The options of a phone that were given."""
    given = {
        "--device": options.device,
        "--accelerator": options.accelerator != "cpu",
        "--benchmark-model": options.benchmark_model,
    }
    return [name for name, value in given.items() if value]


def time_on_phone(options: argparse.Namespace, tool: Path, show: Callable[[int], None]) -> PhoneRan:
    """Time the files; see `converters.runtimes.android.run`."""
    from converters.runtimes.android import run

    return run(
        options.files,
        tool,
        serial=options.device,
        accelerator=options.accelerator,
        threads=options.threads,
        rounds=options.rounds,
        show=show,
    )
