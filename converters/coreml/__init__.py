"""Core ML packages: written by coremltools, read back and run anywhere.

`convert` writes an `.mlpackage`, `load` runs one (by evaluating its program where there is no Core ML),
`decode` gives every weight as stored, `inspect` the facts about a file that is already there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converters.coreml.conversion import convert
    from converters.coreml.evaluation import Package, load
    from converters.coreml.inspection import Inspection, decode, inspect
    from converters.coreml.program import StoredWeight

__all__ = ["Inspection", "Package", "StoredWeight", "convert", "decode", "inspect", "load"]

_HOME = {
    "convert": "conversion",
    "load": "evaluation",
    "Package": "evaluation",
    "decode": "inspection",
    "inspect": "inspection",
    "Inspection": "inspection",
    "StoredWeight": "program",
}


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when it is first asked for: coremltools takes seconds."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
