"""Times Core ML packages and Core AI files on this Mac, or on an iPhone or iPad connected to it.

By the script that `edgeprune bench --write-script` writes, in a process of its own: a file that ends Core ML
ends that one."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.errors import ToolError, UserError
from converters.files import write_text
from converters.runtimes import measure_on_mac
from converters.runtimes.measure_on_mac import CORE_AI, PACKAGE, UNITS

MAC, IOS_DEVICE = "mac", "ios-device"
SCRIPT = Path(measure_on_mac.__file__)
SECONDS_TO_START, SECONDS_PER_RUN = 600.0, 10.0  # Xcode builds coremltools' app first.
MESSAGE_LINES = 3


def problems(files: Sequence[Path], place: str, unit: str) -> list[str]:
    """What keeps files from being timed here, a line each."""
    told = [problem for path in files for problem in _file_problems(path, place)]
    if unit not in UNITS:
        told.append(f"--accelerator {unit}: choose from {', '.join(UNITS)}")
    if sys.platform != "darwin":
        names = " ".join(shlex.quote(str(path)) for path in files)
        needs = (
            "a Mac that the device is connected to" if place == IOS_DEVICE else "macOS, where Core ML runs"
        )
        told.append(
            f"--runtime {place} needs {needs}; this is {sys.platform}: edgeprune bench {names} "
            "--write-script time_on_mac.py writes a script that measures there and needs nothing else of "
            "edgeprune"
        )
    return told


def measure(
    files: Sequence[Path],
    place: str,
    unit: str,
    rounds: int,
    device: str | None = None,
    team: str | None = None,
) -> dict[str, Any]:
    """Time files in turns; what edgeprune bench writes of it, as plain data.

    Args:
        files: of formats that `problems` has nothing against.
        place: `MAC` or `IOS_DEVICE`.
        unit: of `UNITS`.
        rounds: how often each file is timed.
        device: name of the iPhone or iPad; None: the only one.
        team: whose certificate signs the app that coremltools puts on it.

    Raises:
        ToolError: the script does not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        command = [sys.executable, str(SCRIPT), *map(str, files)]
        command += ["--rounds", str(rounds), "--units", unit, "--output", folder]
        if place == IOS_DEVICE:
            command += ["--ios-device", device or "", "--team", team or ""]
        _run(command, SECONDS_TO_START + SECONDS_PER_RUN * len(files) * (rounds + measure_on_mac.WARMUP))
        plain: dict[str, Any] = json.loads(Path(folder, f"bench-{place}-{unit}.json").read_text())
    return plain


def write_script(output: Path, files: Sequence[Path]) -> str:
    """Write the script that times files on a Mac; the words that say how to run it.

    Raises:
        UserError: one of the files is none for a Mac, or not there.
    """
    found = [problem for path in files for problem in _file_problems(path, MAC)]
    if found:
        raise UserError(found)
    write_text(output, SCRIPT.read_text(encoding="utf-8"))
    names = " ".join(shlex.quote(path.name) for path in files)
    core_ai = " coreai-core" * any(path.suffix == CORE_AI for path in files)
    return (
        f"{output}: copy it and the files to a Mac with macOS 14.4 or later (Core AI: 27); there:\n"
        f"  python3 -m venv mac && mac/bin/pip install coremltools pillow{core_ai}\n"
        f"  mac/bin/python {shlex.quote(output.name)} {names}\n"
        "and for an iPhone or iPad that is connected to it, with Xcode and your team's identifier:\n"
        f"  mac/bin/python {shlex.quote(output.name)} {names} --ios-device --team TEAMID\n"
        "It has never run on a Mac of ours. What it writes, bench-mac-*.json or bench-ios-device-*.json, "
        "goes into the run's folder."
    )


def _file_problems(path: Path, place: str) -> list[str]:
    if not path.exists():
        return [f"{path}: no such file"]
    if path.suffix not in (PACKAGE, CORE_AI) or not path.is_dir():
        return [f"{path}: Apple's runtimes are timed with Core ML packages and Core AI files"]
    if place == IOS_DEVICE and path.suffix == CORE_AI:
        return [
            f"{path}: coremltools times no Core AI files on a device: open it in the app of sample_apps/ios"
        ]
    return []


def _run(command: list[str], limit_s: float) -> None:
    """Run the script to its end; it does not outlive this call."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ToolError(f"{SCRIPT.name} was not done after {limit_s:g} s") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ToolError(
            "; ".join([f"{SCRIPT.name} ended with exit status {done.returncode}", *lines[-MESSAGE_LINES:]])
        )
