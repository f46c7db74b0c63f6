"""What of `edgeprune bench` is about phones: its options, and what is asked of `converters.runtimes`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import UserError

if TYPE_CHECKING:
    from converters.runtimes.android import PhoneRan

ANDROID = "android"
ACCELERATORS = ("cpu", "gpu")


def add_phone_options(command: argparse.ArgumentParser) -> None:
    """Give the command the options of a phone."""
    command.add_argument(
        "--write-script",
        type=Path,
        metavar="OUT.py",
        help="measure nothing; write a script that times Core ML packages on a Mac, by compute unit",
    )
    phone = command.add_argument_group(f"with --runtime {ANDROID}")
    phone.add_argument("--device", metavar="SERIAL", help="which phone, as adb devices names it")
    phone.add_argument(
        "--accelerator", choices=ACCELERATORS, default="cpu", help="where on it; %(default)s if not given"
    )
    phone.add_argument(
        "--benchmark-model", type=Path, metavar="PATH", help="LiteRT's tool, built for the phone's processor"
    )


def write_script(output: Path, packages: Sequence[Path]) -> str:
    """Write the script that times packages on a Mac; the words that say how to run it.

    Raises:
        UserError: one of the files is none for a Mac, or not there.
    """
    from converters.files import write_text
    from converters.runtimes import measure_on_mac

    problems = [
        f"{path}: the script times Core ML packages" if path.is_file() else f"{path}: no such package"
        for path in packages
        if not (path / "Manifest.json").is_file()
    ]
    if problems:
        raise UserError(problems)
    write_text(output, Path(measure_on_mac.__file__).read_text(encoding="utf-8"))
    names = " ".join(shlex.quote(path.name) for path in packages)
    return (
        f"{output}: copy it and the packages to a Mac with macOS 14.4 or later; there:\n"
        f"  python3 -m venv mac && mac/bin/pip install coremltools pillow\n"
        f"  mac/bin/python {shlex.quote(output.name)} {names}\n"
        "It has never run on a Mac of ours. What it writes, bench-mac-*.json, goes into the run's folder."
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
