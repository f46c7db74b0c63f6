"""Core AI models (`.aimodel`, iOS 27 and later): written sparse, read back, run by Apple's own runtime.

Needs the extra `coreai`: Apple's beta packages, for macOS and x86-64 Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.lazy import lazily

if TYPE_CHECKING:
    from converters.coreai.conversion import Prepared, convert, prepare, write
    from converters.coreai.evaluation import AppleModel, load
    from converters.coreai.inspection import Inspection, decode, inspect
    from converters.coreai.program import StoredWeight

__all__ = [
    "AppleModel", "Inspection", "Prepared", "StoredWeight", "convert", "decode", "inspect", "load", "prepare",
    "write",
]  # fmt: skip

__getattr__ = lazily(
    __name__,
    {
        "AppleModel": "evaluation",
        "Inspection": "inspection",
        "Prepared": "conversion",
        "StoredWeight": "program",
        "convert": "conversion",
        "decode": "inspection",
        "inspect": "inspection",
        "load": "evaluation",
        "prepare": "conversion",
        "write": "conversion",
    },
)
