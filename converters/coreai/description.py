"""What a file says of itself among its creator's own entries: input, class names, how it was compressed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from converters.coreai.program import StoredWeight
from converters.deployed import MAX_PIXEL
from converters.facts import InputSpec, Normalization

NAME = "edgeprune"
SCHEMA = 1
COMPRESSION = "compression"


def describe(
    shape: tuple[int, int, int],
    labels: Sequence[str] | None,
    normalization: Normalization | None,
    weights: Sequence[StoredWeight],
) -> dict[str, Any]:
    """The entries: what the input is, the names of classes in output order, and how weights are stored.

    With a range the file takes plain RGB pixels in it and normalises them itself, by mean and std of pixels
    in [0, 1]; without, it takes what the torch model takes.
    """
    return {
        NAME: {
            "schema": SCHEMA,
            "input": {
                "shape": list(shape),
                "range": None if normalization is None else [0.0, MAX_PIXEL],
                "mean": None if normalization is None else list(normalization.mean),
                "std": None if normalization is None else list(normalization.std),
            },
            "labels": None if labels is None else list(labels),
        },
        COMPRESSION: summary(weights),
    }


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
    own = entries.get(NAME)
    own = own if isinstance(own, dict) else {}
    taken = own.get("input")
    return InputSpec(
        shape=shape,
        range=_range(taken.get("range")) if isinstance(taken, dict) else None,
        labels=_labels(own.get("labels")),
    )


def _range(told: Any) -> tuple[float, float] | None:
    if not isinstance(told, list) or len(told) != 2 or not all(isinstance(v, (int, float)) for v in told):
        return None
    low, high = (float(value) for value in told)
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _labels(told: Any) -> tuple[str, ...] | None:
    known = isinstance(told, list) and bool(told) and all(isinstance(label, str) for label in told)
    return tuple(told) if known else None
