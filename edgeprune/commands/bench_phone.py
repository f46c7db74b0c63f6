"""What of `edgeprune bench` is about phones and Macs: options, and what is asked of `converters.runtimes`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.commands.output import unwritable
from edgeprune.errors import UserError

if TYPE_CHECKING:
    from converters.runtimes.android import PhoneRan
    from edgeprune.evaluation.bench_result import BenchResult

ANDROID, MAC, IOS_DEVICE = DEVICES = ("android", "mac", "ios-device")
APPLE = (MAC, IOS_DEVICE)
PHONE_ACCELERATORS = ("cpu", "gpu")
ACCELERATORS = (*PHONE_ACCELERATORS, "ane", "all")


def add_phone_options(command: argparse.ArgumentParser) -> None:
    """Give the command the options of a phone."""
    command.add_argument(
        "--write-script",
        type=Path,
        metavar="OUT.py",
        help="measure nothing; write a script that times Core ML and Core AI on a Mac, by compute unit",
    )
    phone = command.add_argument_group(f"with --runtime {', '.join(DEVICES)}")
    phone.add_argument(
        "--device", metavar="NAME", help="which phone: as adb devices names it, or its name or identifier"
    )
    phone.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        help=f"where on it: {ANDROID} has cpu, if not given, and gpu; Apple's have all, their own choice, if "
        "not given, ane (Neural Engine), gpu and cpu",
    )
    phone.add_argument(
        "--benchmark-model",
        type=Path,
        metavar="PATH",
        help="LiteRT's tool, built for the phone's processor; downloaded once if not given",
    )
    phone.add_argument(
        "--team", metavar="TEAMID", help=f"{IOS_DEVICE}: whose certificate signs coremltools' app"
    )


def refuse_elsewhere(options: argparse.Namespace) -> None:
    """Options of a device mean nothing on other runtimes.

    Raises:
        UserError: some are given.
    """
    given = {
        "--device": (options.device, (ANDROID, IOS_DEVICE)),
        "--accelerator": (options.accelerator, DEVICES),
        "--benchmark-model": (options.benchmark_model, (ANDROID,)),
        "--team": (options.team, (IOS_DEVICE,)),
    }
    by_place: dict[tuple[str, ...], list[str]] = {}
    for name, (value, places) in given.items():
        if value is not None and options.runtime not in places:
            by_place.setdefault(places, []).append(name)
    if by_place:
        raise UserError(
            [f"{', '.join(names)}: only with --runtime {' or '.join(at)}" for at, names in by_place.items()]
        )


def time_on_apple(options: argparse.Namespace, result_of: Callable[[Path], BenchResult]) -> BenchResult:
    """Time the files on this Mac or a device that is connected to it; see `converters.runtimes.apple`.

    Args:
        options: of the command line.
        result_of: reads what a measurement wrote.

    Raises:
        UserError: all mistakes together.
        ToolError: the measurement does not come to its end.
    """
    from converters.files import write_text
    from converters.runtimes import apple

    unit = options.accelerator or "all"
    problems = unwritable(options.json)
    problems += [f"--rounds {options.rounds}: must be 1 or more"] * (options.rounds < 1)
    problems += [f"--threads {options.threads}: Apple's runtimes choose for themselves"] * (
        options.threads != 1
    )
    problems += apple.problems(options.files, options.runtime, unit)
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    plain = apple.measure(options.files, options.runtime, unit, options.rounds, options.device, options.team)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        return result_of(write_text(Path(folder) / "bench.json", json.dumps(plain)))


def time_on_phone(options: argparse.Namespace, tool: Path, show: Callable[[int], None]) -> PhoneRan:
    """Time the files; see `converters.runtimes.android.run`."""
    from converters.runtimes.android import run

    return run(
        options.files,
        tool,
        serial=options.device,
        accelerator=options.accelerator or "cpu",
        threads=options.threads,
        rounds=options.rounds,
        show=show,
    )
