"""LiteRT (`.tflite`): written sparse, repaired until the runtime's sparse kernels take it, read back, run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.litert.conversion import convert
    from converters.litert.evaluation import LitertModel, load
    from converters.litert.inspection import Inspection, inspect
    from converters.litert.linter import Lint, Problem, lint
    from converters.litert.lowering import lower

__all__ = ["Inspection", "Lint", "LitertModel", "Problem", "convert", "inspect", "lint", "load", "lower"]

# The frameworks take seconds to import: each name brings its module when it is first asked for.
_HOMES = {
    "convert": "conversion",
    "LitertModel": "evaluation",
    "load": "evaluation",
    "Inspection": "inspection",
    "inspect": "inspection",
    "Lint": "linter",
    "Problem": "linter",
    "lint": "linter",
    "lower": "lowering",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
