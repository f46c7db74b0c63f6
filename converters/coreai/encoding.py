"""Choose how each weight is stored, and write it so: each layer by its own mask.

A mask costs one bit for every weight, whatever the pattern, and the values that are left follow in order, so
zeros are left out where that is smaller than keeping them. Nothing is zeroed here: the zeros of the model,
and only those, are in the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.coreai.framework import mlir, ops
from converters.coreai.program import constant
from converters.coreai.sizes import TABLE_BITS, allowed, choices, encoded_bytes
from converters.tables import look_up_table
from converters.targets import Storage

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


def smallest_encoding(storage: Storage, kind: str, weight: np.ndarray, channels: int) -> Encoding:
    """The allowed encoding with the fewest bytes, the plainest where several have."""
    kept = np.asarray(float(np.count_nonzero(weight)))
    possible = [choice for choice in choices(storage, kind) if allowed(choice, weight.size, kept)]
    return Encoding(
        *min(possible, key=lambda c: float(encoded_bytes(c[0], c[1], weight.size, kept, channels)))
    )


def plan(weight: np.ndarray, storage: Storage, kind: str, channel_axis: int = 0) -> Planned:
    """Decide how a weight is stored, and with which numbers.

    Args:
        weight: in the layout and type of the program, float32 or float16.
        storage: of the target.
        kind: see `LayerFacts`.
        channel_axis: of the output channels, each of which gets its own int8 scale.
    """
    encoding = smallest_encoding(storage, kind, weight, weight.shape[channel_axis])
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
