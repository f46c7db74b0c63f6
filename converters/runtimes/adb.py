"""Android devices over adb: found, spoken to, and left as they were. Every failure is one message.

An adb server that was not there before is ended again.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from converters.errors import ToolError, UserError

SERVER_PORT = 5037
SECONDS_TO_ANSWER = 30.0
BYTES_PER_SECOND = 500_000  # of a slow cable
# What a shell command is followed by; where it is missing the connection was lost before the end.
ENDED = "edgeprune-ended"
FULL = "No space left on device"
STATES = {
    "unauthorized": "has not allowed this computer: unlock it, and allow USB debugging on its screen",
    "offline": "does not answer: unplug it and plug it in again",
    "no permissions": "may not be opened by this user: it needs a udev rule, or root",
    "recovery": "is in recovery mode: start Android on it",
    "bootloader": "is in its bootloader: start Android on it",
    "sideload": "is in sideload mode: start Android on it",
    "authorizing": "is still asking: allow USB debugging on its screen",
}


@dataclass(frozen=True)
class Said:
    """What a command on the device printed, both streams together, and its exit status."""

    text: str
    status: int


@dataclass(frozen=True)
class Device:
    """A device that is connected.

    Attributes:
        adb: path of the program.
        serial: of the device.
    """

    adb: str
    serial: str

    def shell(self, command: str, limit_s: float = SECONDS_TO_ANSWER) -> Said:
        """Run a command in the device's shell.

        Raises:
            ToolError: the connection is lost, or it is not done in time.
        """
        told = self._adb(["shell", f"({command}) 2>&1; echo {ENDED} $?"], limit_s)
        text, found, status = told.stdout.rpartition(f"{ENDED} ")
        if not found:
            raise self._lost(told)
        return Said(text.replace("\r\n", "\n").strip(), int(status))

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the device.

        Raises:
            UserError: there is no space for it.
            ToolError: the connection is lost, or the device refuses it.
        """
        size = source.stat().st_size
        told = self._adb(["push", str(source), target], SECONDS_TO_ANSWER + size / BYTES_PER_SECOND)
        if told.returncode == 0:
            return
        if FULL in told.stdout + told.stderr:
            raise UserError(f"{self.serial} is full: free at least {size:,} bytes on it for {source.name}")
        raise self._lost(told)

    def _adb(self, command: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        return _run([self.adb, "-s", self.serial, *command], limit_s)

    def _lost(self, told: subprocess.CompletedProcess[str]) -> ToolError:
        return ToolError(f"the connection to {self.serial} was lost: {_last_line(told)}")


def find() -> str:
    """Path of adb, of the PATH or of $ANDROID_HOME.

    Raises:
        UserError: it is not installed.
    """
    home = os.environ.get("ANDROID_HOME", "")
    own = shutil.which("adb", path=str(Path(home, "platform-tools"))) if home else None
    found = own or shutil.which("adb")
    if found is None:
        raise UserError(
            "adb is not installed: install Android's platform tools (Debian: apt-get install adb; macOS: "
            "brew install android-platform-tools), or set ANDROID_HOME"
        )
    return found


@contextmanager
def connected(serial: str | None = None) -> Iterator[Device]:
    """The only device that is connected, or the one that is named.

    Raises:
        UserError: there is no adb, no device, more than one, or one that does not let us in.
        ToolError: adb's server does not start.
    """
    adb = find()
    ours = not _server_runs()
    try:
        yield _choose(adb, serial)
    finally:
        if ours:
            _run([adb, "kill-server"], SECONDS_TO_ANSWER)


def _choose(adb: str, serial: str | None) -> Device:
    told = _run([adb, "devices"], SECONDS_TO_ANSWER)
    if told.returncode != 0:
        raise ToolError(f"adb's server does not answer: {_last_line(told)}")
    lines = [line.split("\t", 1) for line in told.stdout.splitlines() if "\t" in line]
    devices = {name: state.strip() for name, state in lines}
    if not devices:
        raise UserError(
            "no Android device is connected: plug one in with USB debugging on (in its developer options), "
            "or adb connect ADDRESS"
        )
    if serial is not None and serial not in devices:
        raise UserError(f"--device {serial}: not connected; there is {', '.join(devices)}")
    if serial is None and len(devices) > 1:
        listed = ", ".join(devices)
        raise UserError(f"{len(devices)} Android devices are connected: name one with --device: {listed}")
    chosen = serial or next(iter(devices))
    state = devices[chosen]
    if state != "device":
        why = next(
            (words for name, words in STATES.items() if state.startswith(name)), f"is in state {state!r}"
        )
        raise UserError(f"{chosen} {why}")
    return Device(adb, chosen)


def _server_runs() -> bool:
    port = int(os.environ.get("ANDROID_ADB_SERVER_PORT", SERVER_PORT))
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run adb to its end; it does not outlive this call."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(
            f"adb {command[-2 if len(command) > 2 else -1]} was not done after {limit_s:g} s"
        ) from None


def _last_line(told: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in f"{told.stdout}\n{told.stderr}".splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"adb ended with exit status {told.returncode}"
