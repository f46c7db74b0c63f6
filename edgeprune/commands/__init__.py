"""The commands: one file each, with its options, its run, its table and its JSON.

A command is a row below and a module of this folder with `EXAMPLES`, `add_options(parser)` and
`execute(options)`, which returns the exit status; `EXIT_STATUS` there says what its statuses mean, where they
are its own. A module is imported when its command is asked for, and frameworks only where it needs them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from converters.format import timed_suffixes

COMMANDS: dict[str, str] = {
    "run": "take a recipe all the way, by name or as a file, or go on with a stopped run",
    "recipes": "list the recipes that come along, or copy one to begin your own from",
    "convert": "write a torch model that was trained and pruned elsewhere as files",
    "inspect": "show how each weight of a file is stored",
    "verify": "run a file on every runtime at hand and compare it with its torch model",
    "bench": f"time {' and '.join(timed_suffixes())} files on one runtime, interleaved",
    "sensitivity": "measure what zeros in each layer alone do to the accuracy of a run's dense model",
    "early-exit": "split a run's classifier into two files, the second run only where the first is unsure",
    "report": "rebuild a run's report from what was measured, without training",
    "check": "check a run, or any model files, against a budget; exit status 1 if it is broken",
    "card": "write a model card for the Hugging Face hub into a run, from its report",
    "push": "send a run's files and its model card to a repository of the Hugging Face hub",
    "compare": "show what changed between two runs: bytes, accuracy, layers",
    "doctor": "show what is installed, what is missing, and the command that adds it",
    "completion": "write a completion script for a shell",
}
"""What each does, by name."""


def module(name: str) -> ModuleType:
    """The module of a command."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
