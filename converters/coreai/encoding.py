"""Choose how each weight is stored, and write it so: each layer by its own mask.

A mask costs one bit for every weight, whatever the pattern, and the values that are left follow in order, so
zeros are left out where that is smaller than keeping them. Nothing is zeroed here: the zeros of the model, and
only those, are in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.coreai.program import constant, mlir, ops
from converters.coreml.tables import look_up_table
from converters.targets import Storage

TABLE_BITS = {Storage.TABLE4: 4, Storage.TABLE6: 6}
# Fewer values than this stay as they are: a table or scales would be larger.
MIN_VALUES = 64
INT8_LIMIT = 127
# The smallest scale that float16 holds; a channel below it is stored as zeros and loses less than 1e-5.
SMALLEST_SCALE = 2.0**-24


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


@dataclass(frozen=True)
class Planned:
    """A weight, and what is to be read back from the file.

    Attributes:
        encoding: chosen for it.
        stored: what the arrays in the program will be: by their role.
        value: what they stand for, in the layout and type of the program.
    """

    encoding: Encoding
    stored: dict[str, np.ndarray]
    value: np.ndarray


# What an encoding adds to the program beside its arrays, measured on MobileNetV3-Small: operations, types and
# the names of resources, each array padded to 16 bytes (see tests/converters/coreai).
OVERHEAD_BYTES = {"dense": 0, "sparse": 0, "int8": 0, "table": 0}


def encoded_bytes(encoding: Encoding, weight: WeightStatistics) -> int:
    """Bytes that a weight takes in the file: one bit of mask for each, what is left, scales or a table."""
    kept = weight.count - weight.zeros if encoding.sparse else weight.count
    total = OVERHEAD_BYTES["dense"]
    if encoding.sparse:
        total += _bytes(weight.count, 1) + OVERHEAD_BYTES["sparse"]
    if encoding.storage in TABLE_BITS:
        bits = TABLE_BITS[encoding.storage]
        return total + _bytes(kept, bits) + _bytes(2**bits, 16) + OVERHEAD_BYTES["table"]
    if encoding.storage is Storage.INT8:
        return total + _bytes(kept, 8) + _bytes(weight.channels, 16) + OVERHEAD_BYTES["int8"]
    return total + _bytes(kept, 32 if encoding.storage is Storage.FLOAT32 else 16)


def _bytes(count: int, bits: int) -> int:
    return (count * bits + 7) // 8


def statistics(weight: np.ndarray, channel_axis: int = 0) -> WeightStatistics:
    """Count a weight."""
    return WeightStatistics(weight.size, int(np.count_nonzero(weight == 0)), weight.shape[channel_axis])


def allowed_encodings(storage: Storage, weight: WeightStatistics) -> list[Encoding]:
    """The encodings that a storage allows for a weight, plainest first."""
    kept = weight.count - weight.zeros
    plain = Storage.FLOAT32 if storage is Storage.FLOAT32 else Storage.FLOAT16
    allowed = [Encoding(plain, sparse=False)]
    if kept and weight.zeros:
        allowed.append(Encoding(plain, sparse=True))
    if storage is not plain and kept >= MIN_VALUES:
        allowed.append(Encoding(storage, sparse=False))
        if weight.zeros:
            allowed.append(Encoding(storage, sparse=True))
    return allowed


def smallest_encoding(storage: Storage, kind: str, weight: WeightStatistics) -> Encoding:
    """The allowed encoding with the fewest bytes, the plainest where several have.

    Depthwise weights get int8 where others get a table: a channel has nine of them and its own range, which
    one table for all does not follow, and they are 2 % of a mobile network's weights.
    """
    own = Storage.INT8 if storage in TABLE_BITS and kind == "depthwise" else storage
    return min(allowed_encodings(own, weight), key=lambda encoding: encoded_bytes(encoding, weight))


def plan(weight: np.ndarray, storage: Storage, kind: str, channel_axis: int = 0) -> Planned:
    """Decide how a weight is stored, and with which numbers.

    Args:
        weight: in the layout and type of the program, float32 or float16.
        storage: of the target.
        kind: see `LayerFacts`.
        channel_axis: of the output channels, each of which gets its own int8 scale.
    """
    encoding = smallest_encoding(storage, kind, statistics(weight, channel_axis))
    mask = weight != 0
    kept = mask if encoding.sparse else np.ones(weight.shape, bool)
    stored: dict[str, np.ndarray] = {"mask": mask.astype(np.uint8)} if encoding.sparse else {}
    if encoding.storage in TABLE_BITS:
        table, indices = look_up_table(weight, TABLE_BITS[encoding.storage], zeros_left_out=encoding.sparse)
        indices = indices.reshape(weight.shape)
        stored |= {"table": table, "indices": indices[kept] if encoding.sparse else indices}
        value = np.where(kept, table[indices], weight.dtype.type(0))
    elif encoding.storage is Storage.INT8:
        numbers, scales = _int8(weight, channel_axis)
        stored |= {"scales": scales, "numbers": numbers[kept] if encoding.sparse else numbers}
        value = (numbers.astype(np.float32) * scales.astype(np.float32)).astype(weight.dtype)
    else:
        stored |= {"values": weight[kept] if encoding.sparse else weight}
        value = np.where(mask, weight, weight.dtype.type(0)) if encoding.sparse else weight  # no -0.0 by mask
    return Planned(encoding, stored, value)


def _int8(weight: np.ndarray, channel_axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 numbers, and a scale for each output channel that broadcasts over them."""
    others = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    largest = np.abs(weight.astype(np.float32)).max(axis=others, keepdims=True)
    scales = np.maximum(largest / INT8_LIMIT, SMALLEST_SCALE).astype(weight.dtype)
    numbers = np.rint(weight.astype(np.float32) / scales.astype(np.float32))
    return np.clip(numbers, -INT8_LIMIT, INT8_LIMIT).astype(np.int8), scales


def write(planned: Planned) -> Any:
    """Write a weight's operations at the current place of the program; returns the value they make."""
    stored = planned.stored
    element = mlir.F16Type.get() if planned.value.dtype == np.float16 else mlir.F32Type.get()
    sparse = planned.encoding.sparse
    if "indices" in stored:
        value = _write_table(stored, element, TABLE_BITS[planned.encoding.storage])
    elif "numbers" in stored:
        value = constant(stored["numbers"], mlir.IntegerType.get_signed(8))
    else:
        value = constant(stored["values"], element)
    if sparse:
        mask = constant(stored["mask"], mlir.IntegerType.get_unsigned(1))
        value = ops.sparse_with_bitmask_to_dense(ops.build_sparse_with_bitmask(values=value, bitmask=mask))
    if "scales" in stored:
        value = _write_scaled(value, stored["scales"], element)
    return value


def _write_table(stored: dict[str, np.ndarray], element: Any, bits: int) -> Any:
    """Indices (of the kept values, or of all) and the table: of two dimensions more than they have."""
    indices, table = stored["indices"], stored["table"]
    shape = (*[1] * indices.ndim, table.size, 1)
    return ops.lut_to_dense(
        indices=constant(indices, mlir.IntegerType.get_unsigned(bits)),
        lut=constant(table.reshape(shape), element),
        axis=constant(np.array(0, np.int16), mlir.IntegerType.get_signed(16)),
    )


def _write_scaled(value: Any, scales: np.ndarray, element: Any) -> Any:
    nothing = np.zeros(scales.shape)
    return ops.blockwise_shift_scale(
        data=value,
        scale=constant(scales, element),
        offset1=constant(nothing.astype(np.int8), mlir.IntegerType.get_signed(8)),
        offset2=constant(nothing.astype(scales.dtype), element),
    )
