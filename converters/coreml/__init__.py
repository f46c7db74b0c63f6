"""Core ML packages: written by coremltools, read back and run anywhere.

`convert` writes an `.mlpackage`, `convert_all` several of one model; `load` runs one (by evaluating its
program where there is no Core ML), `decode` gives every weight as stored, `inspect` the facts about a file
that is already there. `write_object_detector` puts Apple's own suppression behind a detector's package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from converters.lazy import lazily

if TYPE_CHECKING:
    from converters.coreml.conversion import convert, convert_all
    from converters.coreml.evaluation import Package, load
    from converters.coreml.inspection import Inspection, decode, inspect
    from converters.coreml.object_detector import ObjectDetector, read_object_detector, write_object_detector
    from converters.coreml.program import StoredWeight

__all__ = [
    "Inspection",
    "ObjectDetector",
    "Package",
    "StoredWeight",
    "convert",
    "convert_all",
    "decode",
    "inspect",
    "load",
    "read_object_detector",
    "write_object_detector",
]

__getattr__ = lazily(
    __name__,
    {
        "convert": "conversion",
        "convert_all": "conversion",
        "load": "evaluation",
        "Package": "evaluation",
        "decode": "inspection",
        "inspect": "inspection",
        "Inspection": "inspection",
        "ObjectDetector": "object_detector",
        "read_object_detector": "object_detector",
        "write_object_detector": "object_detector",
        "StoredWeight": "program",
    },
)
