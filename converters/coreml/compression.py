"""Choose how each weight is stored, and let coremltools store it so.

Every weight gets the smallest encoding that the target allows: a mask costs one bit for every weight, so
zeros are left out where there are enough of them, and a layer too small for that stays dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.coreml.blobs import blob_bytes
from converters.coreml.framework import cto
from converters.coreml.package import Contents
from converters.coreml.program import StoredWeight, layer_weights, read_program
from converters.tables import look_up_table
from converters.targets import Storage

# From this specification version (iOS 18) on, the values left of a sparse weight may be int8 or by table.
JOINT_SPECIFICATION = 9
# coremltools writes constants of fewer elements into the specification, where they cannot be compressed.
_MIN_BLOB_ELEMENTS = 10
# What coremltools appends to the name of a weight that it encodes.
_SPARSIFIED = "_sparsified"
_SUFFIXES = (_SPARSIFIED, "_quantized", "_palettized")

TABLE_BITS = {Storage.TABLE4: 4, Storage.TABLE6: 6}


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
    if encoding.storage in TABLE_BITS:
        bits = TABLE_BITS[encoding.storage]
        return mask + blob_bytes(kept, bits) + blob_bytes(2**bits, 16)
    if encoding.storage is Storage.INT8:  # a float16 scale for each output channel
        return mask + blob_bytes(kept, 8) + blob_bytes(weight.channels, 16)
    return mask + blob_bytes(kept, 16)


def allowed_encodings(storage: Storage, joint: bool, weight: WeightStatistics) -> list[Encoding]:
    """The encodings that a storage allows for a weight, plainest first.

    Args:
        storage: of the target.
        joint: whether the values that are left of a sparse weight may be stored smaller than float16.
        weight: to be encoded.
    """
    kept = weight.count - weight.zeros
    allowed = [Encoding(Storage.FLOAT16, sparse=False)]
    if weight.count < _MIN_BLOB_ELEMENTS:
        return allowed
    if kept:  # an empty list of values cannot be written
        allowed.append(Encoding(Storage.FLOAT16, sparse=True))
    if storage is not Storage.FLOAT16:
        allowed.append(Encoding(storage, sparse=False))
        if joint and kept >= _MIN_BLOB_ELEMENTS:
            allowed.append(Encoding(storage, sparse=True))
    return allowed


def smallest_encoding(storage: Storage, joint: bool, weight: WeightStatistics) -> Encoding:
    """The allowed encoding with the fewest bytes, the plainest where several have."""
    return min(
        allowed_encodings(storage, joint, weight), key=lambda encoding: encoded_bytes(encoding, weight)
    )


def compress(mlmodel: Any, storage: Storage) -> Any:
    """Store each weight of a float16 ML program in its smallest encoding; returns another model.

    Raises:
        ValueError: coremltools left a weight as it was.
    """
    joint = mlmodel.get_spec().specificationVersion >= JOINT_SPECIFICATION
    chosen = {
        weight.name: smallest_encoding(_storage_of(storage, weight), joint, statistics(weight.value))
        for weight in layer_weights(read_program(contents_of(mlmodel)))
    }
    sparse = [name for name, encoding in chosen.items() if encoding.sparse]
    if sparse:
        leave_zeros_out = cto.OpThresholdPrunerConfig(
            threshold=1e-12, minimum_sparsity_percentile=0.0, weight_threshold=0
        )
        mlmodel = cto.prune_weights(mlmodel, _for_names(dict.fromkeys(sparse, leave_zeros_out)))
    tables = {
        _name_now(name, encoding): _table_config(encoding)
        for name, encoding in chosen.items()
        if encoding.storage in TABLE_BITS
    }
    if tables:
        mlmodel = cto.palettize_weights(mlmodel, _for_names(tables), joint_compression=joint)
    quantized = [
        _name_now(name, encoding) for name, encoding in chosen.items() if encoding.storage is Storage.INT8
    ]
    if quantized:
        per_channel = cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=0
        )
        config = _for_names(dict.fromkeys(quantized, per_channel))
        mlmodel = cto.linear_quantize_weights(mlmodel, config, joint_compression=joint)
    _check(mlmodel, chosen)
    return mlmodel


def contents_of(mlmodel: Any) -> Contents:
    """A converted model, as if it were read from a package."""
    folder = Path(mlmodel.weights_dir).parent
    return Contents(folder, mlmodel.get_spec(), folder)


def statistics(weight: np.ndarray) -> WeightStatistics:
    """Count a weight, (out, ...)."""
    return WeightStatistics(weight.size, int(np.count_nonzero(weight == 0)), weight.shape[0])


def _storage_of(storage: Storage, weight: StoredWeight) -> Storage:
    """Depthwise weights get int8 where others get a table.

    A channel has nine of them and no other to make up for their error, each channel has its own range, which
    one table for all does not follow, and they are 2 % of a mobile network's weights.
    """
    return Storage.INT8 if storage in TABLE_BITS and weight.kind == "depthwise" else storage


def _name_now(name: str, encoding: Encoding) -> str:
    """A weight whose zeros were left out is known by the operation that puts them back."""
    return name + _SPARSIFIED if encoding.sparse else name


def _table_config(encoding: Encoding) -> Any:
    bits = TABLE_BITS[encoding.storage]
    function = partial(look_up_table, bits=bits, zeros_left_out=encoding.sparse)
    return cto.OpPalettizerConfig(mode="custom", lut_function=function, weight_threshold=0)


def _for_names(configs: Mapping[str, Any]) -> Any:
    """A configuration for the constants of these names and no others."""
    return cto.OptimizationConfig(global_config=None, op_name_configs=dict(configs))


def _check(mlmodel: Any, chosen: Mapping[str, Encoding]) -> None:
    """Make sure that coremltools left no weight out: what it will not do, it only logs."""
    for weight in layer_weights(read_program(contents_of(mlmodel))):
        name = next(name for name in _former_names(weight.name) if name in chosen)
        if weight.encoding != chosen[name].name:
            raise ValueError(
                f"weight {name} was to be stored as {chosen[name].name}, and is {weight.encoding}"
            )


def _former_names(name: str) -> Iterable[str]:
    yield name
    yield from (name.removesuffix(suffix) for suffix in _SUFFIXES)
