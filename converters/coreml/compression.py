"""Choose how each weight is stored, and let coremltools store it so.

Every weight gets the smallest encoding that the target's storage allows: a mask costs one bit for every
weight, so zeros are left out where there are enough of them, and a layer too small for that stays dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.coreml.blobs import blob_bytes
from converters.coreml.framework import cto
from converters.coreml.package import Contents
from converters.coreml.program import layer_weights, read_program
from converters.targets import Storage

# coremltools writes constants of fewer elements into the specification, where they cannot be compressed.
_MIN_BLOB_ELEMENTS = 10
# What coremltools appends to the name of a weight that it encodes.
_SPARSIFIED = "_sparsified"
_SUFFIXES = (_SPARSIFIED, "_quantized", "_palettized")


@dataclass(frozen=True)
class Encoding:
    """How the values of a weight are stored, and whether its zeros are left out."""

    storage: Storage
    sparse: bool

    @property
    def name(self) -> str:
        """For people, as `StoredWeight.encoding` has it."""
        return f"sparse {self.storage.value}" if self.sparse else self.storage.value


@dataclass(frozen=True)
class WeightStatistics:
    """What decides the size of an encoded weight: its elements, those of them that are zero, its channels."""

    count: int
    zeros: int
    channels: int


def encoded_bytes(encoding: Encoding, weight: WeightStatistics) -> int:
    """Bytes that a weight takes in `weight.bin`, records and padding included."""
    kept = weight.count - weight.zeros if encoding.sparse else weight.count
    mask = blob_bytes(weight.count, 1) if encoding.sparse else 0
    if encoding.storage is Storage.INT8:  # a float16 scale for each output channel
        return mask + blob_bytes(kept, 8) + blob_bytes(weight.channels, 16)
    return mask + blob_bytes(kept, 16)


def smallest_encoding(storage: Storage, weight: WeightStatistics) -> Encoding:
    """The encoding with the fewest bytes that a storage allows; the plainer one where two are equal."""
    kept = weight.count - weight.zeros
    allowed = [Encoding(Storage.FLOAT16, sparse=False)]
    if weight.count >= _MIN_BLOB_ELEMENTS:
        if kept:
            allowed.append(Encoding(Storage.FLOAT16, sparse=True))
        if storage is not Storage.FLOAT16:
            allowed.append(Encoding(storage, sparse=False))
            if kept >= _MIN_BLOB_ELEMENTS:
                allowed.append(Encoding(storage, sparse=True))
    return min(allowed, key=lambda encoding: encoded_bytes(encoding, weight))


def compress(mlmodel: Any, storage: Storage) -> Any:
    """Store each weight of a float16 ML program in its smallest encoding; returns another model."""
    weights = {weight.name: weight.value for weight in layer_weights(read_program(_contents(mlmodel)))}
    chosen = {name: smallest_encoding(storage, _statistics(value)) for name, value in weights.items()}
    sparse = [name for name, encoding in chosen.items() if encoding.sparse]
    if sparse:
        leave_zeros_out = cto.OpThresholdPrunerConfig(
            threshold=1e-12, minimum_sparsity_percentile=0.0, weight_threshold=0
        )
        mlmodel = cto.prune_weights(mlmodel, _for_names(leave_zeros_out, sparse))
    quantized = [
        # A weight whose zeros are left out is known by the operation that puts them back.
        name + (_SPARSIFIED if encoding.sparse else "")
        for name, encoding in chosen.items()
        if encoding.storage is Storage.INT8
    ]
    if quantized:
        per_channel = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
        )
        config = _for_names(per_channel, quantized)
        mlmodel = cto.linear_quantize_weights(mlmodel, config, joint_compression=True)
    _check(mlmodel, chosen)
    return mlmodel


def _check(mlmodel: Any, chosen: Mapping[str, Encoding]) -> None:
    """Make sure that coremltools left no weight out: what it will not do, it only logs."""
    for weight in layer_weights(read_program(_contents(mlmodel))):
        name = next(
            name for name in (weight.name, *map(weight.name.removesuffix, _SUFFIXES)) if name in chosen
        )
        if weight.encoding != chosen[name].name:
            raise ValueError(
                f"weight {name} was to be stored as {chosen[name].name}, and is {weight.encoding}"
            )


def _statistics(weight: np.ndarray) -> WeightStatistics:
    return WeightStatistics(weight.size, int(np.count_nonzero(weight == 0)), weight.shape[0])


def _for_names(config: Any, names: Iterable[str]) -> Any:
    """A configuration for the constants of these names and no others."""
    return cto.OptimizationConfig(global_config=None, op_name_configs=dict.fromkeys(names, config))


def _contents(mlmodel: Any) -> Contents:
    """A converted model, as if it were read from the package it lies in."""
    folder = Path(mlmodel.weights_dir).parent
    return Contents(folder, mlmodel.get_spec(), folder)
