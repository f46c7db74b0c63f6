"""The runtimes, as data: what each stands for, and the command that does a job on it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from converters.errors import UserError

CHECKOUT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
WEB = CHECKOUT / "sample_apps" / "web"
ARM64_CPU = "cortex-a76"
CPU_WITHOUT_AVX = "Nehalem"
X86_64 = ("x86_64", "AMD64")
GET_QEMU = "run make runtimes, or install qemu-user (Debian: apt-get install qemu-user-static)"


@dataclass(frozen=True)
class Runtime:
    """Something that runs `.tflite` files.

    Attributes:
        name: "host".
        description: for people.
        emulated: its times say nothing but ratios within one run.
        lint_runtime: what `litert.lint` calls it.
        command: gives the command line that a job's file name is put behind.
            Raises UserError where something is missing, with the command that adds it.
        one_thread: it cannot use more.
    """

    name: str
    description: str
    emulated: bool
    lint_runtime: str
    command: Callable[[], list[str]]
    one_thread: bool = False


def prepared(name: str) -> Path:
    """Where `make runtime-NAME` puts what a runtime needs: in the checkout, or in $EDGEPRUNE_RUNTIMES."""
    return Path(os.environ.get("EDGEPRUNE_RUNTIMES", CHECKOUT / ".runtimes")) / name


def runtime(name: str) -> Runtime:
    """Look a runtime up by name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}: choose from {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def _host() -> list[str]:
    return [sys.executable, str(WORKER)]


def _x86_sparse() -> list[str]:
    if platform.machine() not in X86_64:
        raise UserError(f"the x86-sparse runtime needs an x86-64 machine, this is {platform.machine()}")
    return [emulator("qemu-x86_64"), "-cpu", CPU_WITHOUT_AVX, sys.executable, str(WORKER)]


def _arm64() -> list[str]:
    root, site = prepared("arm64") / "root", prepared("arm64") / "site"
    if not site.is_dir():
        raise UserError(f"the arm64 runtime is not prepared ({site.parent}): run make runtime-arm64")
    # Compiled modules are kept below `root` and `site`, whatever is wished elsewhere: they halve the start.
    environment = ["-E", f"PYTHONPATH={site}", "-U", "PYTHONDONTWRITEBYTECODE"]
    python = [str(root / "usr" / "bin" / "python3"), "-s", str(WORKER)]
    return [emulator("qemu-aarch64"), "-cpu", ARM64_CPU, "-L", str(root), *environment, *python]


def _browser() -> list[str]:
    if not all((WEB / needed).exists() for needed in ("node_modules/playwright-core", "dist/job.html")):
        raise UserError(f"the browser runtime is not prepared ({WEB}): run make runtime-browser")
    return [_program("node", "install Node.js 20 or later"), str(WEB / "run.mjs")]


def emulator(name: str) -> str:
    """Path of a user-mode emulator ("qemu-x86_64"): the one fetched for this project, else an installed one.

    Raises:
        UserError: there is neither.
    """
    fetched = prepared("qemu") / "root" / "usr" / "bin"
    for candidate in (fetched / f"{name}-static", fetched / name):
        if candidate.is_file():
            return str(candidate)
    return shutil.which(f"{name}-static") or _program(name, GET_QEMU)


def _program(name: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise UserError(f"{name} is not installed: {remedy}")
    return found


RUNTIMES: dict[str, Runtime] = {
    entry.name: entry
    for entry in (
        Runtime("host", "LiteRT on this machine's processor", False, "host", _host),
        Runtime("x86-sparse", "LiteRT on x86 without AVX, emulated", True, "x86-sparse", _x86_sparse),
        Runtime("arm64", "LiteRT on a 64-bit ARM processor, emulated", True, "arm64", _arm64),
        Runtime("browser", "LiteRT.js (WebAssembly) in Chromium", False, "web", _browser, one_thread=True),
    )
}
