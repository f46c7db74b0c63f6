"""Whether Apple's Core AI packages can be used here, found out without importing them."""

from __future__ import annotations

import importlib.util
import platform
import sys

INSTALL = "pip install 'edgeprune[coreai]'"
# What pip calls a package, and its module.
PACKAGES = {"coreai-core": "coreai", "coreai-torch": "coreai_torch"}
MACHINES = {("linux", "x86_64"), ("darwin", "arm64")}
LOWEST_PYTHON = (3, 11)


def missing() -> str | None:
    """One line: what is missing, and the command that installs it where there is one; None: nothing is."""
    machine = platform.machine().lower()
    if (sys.platform, machine) not in MACHINES:
        return f"Core AI: Apple has no packages for {sys.platform} on {machine}: use macOS or x86-64 Linux"
    if sys.version_info[:2] < LOWEST_PYTHON:
        here, lowest = (".".join(map(str, version)) for version in (sys.version_info[:2], LOWEST_PYTHON))
        return (
            f"Core AI: Apple has no packages for Python {here}: make an environment of Python {lowest} or "
            f"later, then {INSTALL}"
        )
    absent = [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        return f"Core AI needs Apple's packages ({' and '.join(absent)} {are} not installed): {INSTALL}"
    return None
