"""LiteRT (`.tflite`): written sparse, repaired until the runtime's sparse kernels take it, read back, run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.lazy import lazily

if TYPE_CHECKING:
    from converters.litert.conversion import convert
    from converters.litert.evaluation import LitertModel, load
    from converters.litert.inspection import Inspection, inspect
    from converters.litert.linter import Lint, Problem, lint
    from converters.litert.lowering import lower
    from converters.litert.task_metadata import add_task_metadata

__all__ = [
    "Inspection",
    "Lint",
    "LitertModel",
    "Problem",
    "add_task_metadata",
    "convert",
    "inspect",
    "lint",
    "load",
    "lower",
]

__getattr__ = lazily(
    __name__,
    {
        "convert": "conversion",
        "LitertModel": "evaluation",
        "load": "evaluation",
        "Inspection": "inspection",
        "inspect": "inspection",
        "Lint": "linter",
        "Problem": "linter",
        "lint": "linter",
        "lower": "lowering",
        "add_task_metadata": "task_metadata",
    },
)
