"""What a file says of itself among its creator's own entries: input, class names, how it was compressed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converters.coreai.package import NAME
from converters.coreai.program import StoredWeight
from converters.deployed import MAX_PIXEL
from converters.facts import InputSpec, Normalization

SCHEMA = 1
COMPRESSION = "compression"


def describe(
    shape: tuple[int, int, int],
    labels: Sequence[str] | None,
    normalization: Normalization | None,
    weights: Sequence[StoredWeight],
) -> dict[str, str]:
    """The entries: what the input is, the names of classes in output order, and how weights are stored.

    With a range the file takes plain RGB pixels in it and normalises them itself, by mean and std of pixels
    in [0, 1]; without, it takes what the torch model takes.
    """
    own = {
        "schema": SCHEMA,
        "input": {
            "shape": list(shape),
            "range": None if normalization is None else [0.0, MAX_PIXEL],
            "mean": None if normalization is None else list(normalization.mean),
            "std": None if normalization is None else list(normalization.std),
        },
        "labels": None if labels is None else list(labels),
    }
    return {NAME: json.dumps(own, ensure_ascii=False, sort_keys=True), COMPRESSION: summary(weights)}


def summary(weights: Sequence[StoredWeight]) -> str:
    """How weights are stored, e.g. "layers: sparse int8 42, int8 12; 74.1% zeros; 5.2 bits a weight"."""
    count = sum(weight.value.size for weight in weights)
    if not count:
        return "no layers with weights"
    zeros = sum(np.count_nonzero(weight.value == 0) for weight in weights) / count
    bits = sum(weight.bits for weight in weights) / count
    encodings = Counter(weight.encoding for weight in weights).most_common()
    listed = ", ".join(f"{encoding} {number}" for encoding, number in encodings)
    return f"layers: {listed}; {zeros:.1%} zeros; {bits:.1f} bits a weight"


def input_spec(entries: Mapping[str, Any], shape: tuple[int, int, int]) -> InputSpec:
    """What a file takes; what its entries do not say, or say in another form, is None."""
    own = _own(entries.get(NAME))
    taken = own.get("input")
    return InputSpec(
        shape=shape,
        range=_range(taken.get("range")) if isinstance(taken, dict) else None,
        labels=_labels(own.get("labels")),
    )


def _own(told: Any) -> dict[str, Any]:
    """The entry, as JSON or, in files of older versions, an object; nothing where it is neither."""
    try:
        read = json.loads(told) if isinstance(told, str) else told
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _range(told: Any) -> tuple[float, float] | None:
    if not isinstance(told, list) or len(told) != 2 or not all(isinstance(v, (int, float)) for v in told):
        return None
    low, high = (float(value) for value in told)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _labels(told: Any) -> tuple[str, ...] | None:
    known = isinstance(told, list) and bool(told) and all(isinstance(label, str) for label in told)
    return tuple(told) if known else None
