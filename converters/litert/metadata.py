"""What a file says about itself: JSON in a metadata buffer of the flatbuffer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.facts import InputSpec, Normalization
from converters.litert.graph import AlignedBuffer, Graph
from converters.litert.lowering import MAX_PIXEL

NAME = "edgeprune"
SCHEMA = 1
# Asks the runtime for half precision. On a sparse file it ends some releases with a segmentation fault.
HALF_PRECISION_HINT = "reduced_precision_support"


def describe(
    shape: tuple[int, int, int],
    labels: Sequence[str] | None,
    normalization: Normalization | None,
    folded: bool,
    extra: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What is written: the input's size, its range and normalisation, labels, the caller's entries.

    With a range the file takes plain pixels in it, and normalises them itself by mean and std. Without, the
    app gives `(pixel / 255 - mean) / std`; where there is no mean either, the file does not say.
    """
    return {
        "schema": SCHEMA,
        "input": {
            "shape": list(shape),
            "range": [0.0, MAX_PIXEL] if folded else None,
            "mean": None if normalization is None else list(normalization.mean),
            "std": None if normalization is None else list(normalization.std),
        },
        "labels": None if labels is None else list(labels),
        "metadata": dict(sorted((extra or {}).items())),
    }


def write(graph: Graph, content: Mapping[str, Any]) -> None:
    """Make `content` the file's only metadata: what the converters underneath leave there is theirs."""
    buffer = AlignedBuffer()
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    graph.model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = NAME, len(graph.model.buffers) - 1
    graph.model.metadata = [entry]
    graph.model.metadataBuffer = None
    graph.model.description = NAME


def names(graph: Graph) -> list[str]:
    """Names of all metadata entries, ours or not."""
    return [_text(entry.name) for entry in graph.model.metadata or ()]


def read(graph: Graph) -> dict[str, Any]:
    """What `write` wrote; {} where there is none, or none that can be read."""
    for entry in graph.model.metadata or ():
        if _text(entry.name) == NAME and 0 <= entry.buffer < len(graph.model.buffers):
            data = graph.model.buffers[entry.buffer].data
            try:
                content = json.loads(b"" if data is None else np.asarray(data, np.uint8).tobytes())
            except ValueError:
                return {}
            return content if isinstance(content, dict) else {}
    return {}


def told_shape(graph: Graph) -> tuple[int, int, int] | None:
    """(channels, height, width) of the input as the file says it; None where it does not."""
    inputs = read(graph).get("input")
    shape: Any = inputs.get("shape") if isinstance(inputs, dict) else None
    if not _numbers(shape, 3) or not all(isinstance(side, int) and side > 0 for side in shape):
        return None
    return shape[0], shape[1], shape[2]


def input_spec(graph: Graph, shape: tuple[int, int, int]) -> InputSpec:
    """What the file expects; `shape` is what its input tensor says.

    Entries that are missing or of another kind count as not there: a file is not trusted.
    """
    content = read(graph)
    inputs = content.get("input")
    pixel_range = inputs.get("range") if isinstance(inputs, dict) else None
    labels = content.get("labels")
    known_range = _numbers(pixel_range, 2)
    known_labels = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return InputSpec(
        shape=shape,
        range=(float(pixel_range[0]), float(pixel_range[1])) if known_range and pixel_range else None,
        labels=tuple(labels) if known_labels and labels else None,
        normalization=_normalization(inputs) if pixel_range is None else None,
    )


def _normalization(inputs: Any) -> Normalization | None:
    """What the app must do to pixels, where the file says it."""
    told: dict[str, Any] = inputs if isinstance(inputs, dict) else {}
    mean, std = told.get("mean", []), told.get("std", [])
    if not (_numbers(mean, 3) and _numbers(std, 3)) or not all(value > 0 for value in std):
        return None
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _numbers(values: Any, count: int) -> bool:
    is_list = isinstance(values, list) and len(values) == count
    return is_list and all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
