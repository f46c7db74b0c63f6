"""What a file says about itself: JSON in a metadata buffer of the flatbuffer."""

from __future__ import annotations

import json
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
    extra: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What is written: the input's size and range, normalisation done inside, labels, caller's entries."""
    return {
        "schema": SCHEMA,
        "input": {
            "shape": list(shape),
            "range": None if normalization is None else [0.0, MAX_PIXEL],
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


def input_spec(graph: Graph, shape: tuple[int, int, int]) -> InputSpec:
    """What the file expects; `shape` is what its input tensor says.

    Entries that are missing or of another kind count as not there: a file is not trusted.
    """
    content = read(graph)
    inputs = content.get("input")
    pixel_range = inputs.get("range") if isinstance(inputs, dict) else None
    labels = content.get("labels")
    known_range = isinstance(pixel_range, list) and len(pixel_range) == 2
    known_range = known_range and all(isinstance(v, (int, float)) for v in pixel_range or ())
    known_labels = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    return InputSpec(
        shape=shape,
        range=(float(pixel_range[0]), float(pixel_range[1])) if known_range and pixel_range else None,
        labels=tuple(labels) if known_labels and labels else None,
    )


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
