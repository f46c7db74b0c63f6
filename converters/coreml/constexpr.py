"""What Core ML's `constexpr_*` operations stand for: sparse, quantized and table-encoded constants.

Each takes decoded constants and gives decoded constants, with the bits it all takes in the file. iOS 16 and
iOS 18 have operations of the same names with different arguments, by which they are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from converters.coreml.blobs import ELEMENT_TYPES, ElementType, MalformedError, unpack


@dataclass(frozen=True)
class Constant:
    """A constant tensor.

    Attributes:
        value: decoded.
        encoding: for people, e.g. "float16", "sparse int8".
        bits: it takes in the file, alignment left out.
        element: how an element of a plain constant is stored; None for a decoded one.
    """

    value: np.ndarray
    encoding: str
    bits: int
    element: ElementType | None = None


Arguments = Mapping[str, Constant | str | list[str]]


def decode(type: str, arguments: Arguments) -> tuple[Constant, ...]:
    """Evaluate a `constexpr_*` operation.

    Raises:
        MalformedError: it is unknown, or its arguments do not fit together.
    """
    if type not in DECODERS:
        raise MalformedError(
            f"weights encoded by {type!r}, which is not supported; supported: {', '.join(DECODERS)}"
        )
    return DECODERS[type](arguments)


def _tensor(arguments: Arguments, name: str) -> Constant:
    value = arguments.get(name)
    if not isinstance(value, Constant):
        raise MalformedError(f"an encoded weight without its {name!r}")
    return value


def _optional(arguments: Arguments, name: str) -> Constant | None:
    return _tensor(arguments, name) if name in arguments else None


def _scatter(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put `values` where `mask` (any shape, of 0 and 1) is set, row by row; zeros elsewhere."""
    kept = mask != 0
    if np.count_nonzero(kept) != values.size:
        raise MalformedError(
            f"a sparse weight with {values.size:,} values for {np.count_nonzero(kept):,} places"
        )
    dense = np.zeros(mask.shape, values.dtype)
    dense[kept] = values.reshape(-1)
    return dense


def _flat_shape(arguments: Arguments, name: str = "shape") -> tuple[int, ...]:
    shape = tuple(int(size) for size in _tensor(arguments, name).value.reshape(-1))
    if math.prod(shape) > 2**29:
        raise MalformedError(f"a weight of shape {list(shape)}: larger than any that a vision model has")
    return shape


def _repacked(stored: Constant, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Read iOS 16's flat byte array as a tensor of `bits`-bit elements."""
    return unpack(stored.value.astype(np.uint8).tobytes(), ELEMENT_TYPES[f"UINT{bits}"], shape)


def _sparse_to_dense(arguments: Arguments) -> tuple[Constant, ...]:
    values, mask = _tensor(arguments, "nonzero_data"), _tensor(arguments, "mask")
    kept = mask.value
    if "shape" in arguments:  # iOS 16: the mask is packed into bytes
        kept = _repacked(mask, 1, _flat_shape(arguments))
    return (Constant(_scatter(values.value, kept), f"sparse {values.encoding}", values.bits + mask.bits),)


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each of `values` over its block of a tensor of `shape`: (2, 3) -> (4, 3): rows twice."""
    if values.ndim != len(shape) or any(
        size % count for size, count in zip(shape, values.shape, strict=True)
    ):
        raise MalformedError(f"scales of shape {list(values.shape)} for a weight of shape {list(shape)}")
    for axis, (size, count) in enumerate(zip(shape, values.shape, strict=True)):
        # An axis of 1 is left to broadcasting.
        if count not in (1, size):
            values = np.repeat(values, size // count, axis)
    return values


def _shift_scale(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> np.ndarray:
    """`(data - offset) * scale`, in the type of `scale`: what the operation is declared to give."""
    shifted = data.astype(scale.dtype)
    if offset is not None:
        shifted = shifted - _spread(offset, data.shape).astype(scale.dtype)
    return np.asarray(np.broadcast_to(shifted * _spread(scale, data.shape), data.shape))


def _blockwise_shift_scale(arguments: Arguments) -> tuple[Constant, ...]:
    data, scale = _tensor(arguments, "data"), _tensor(arguments, "scale")
    offset = _optional(arguments, "offset")
    value = _shift_scale(data.value, scale.value, None if offset is None else offset.value)
    bits = data.bits + scale.bits + (offset.bits if offset else 0)
    return (Constant(value, data.encoding, bits),)


def _sparse_blockwise_shift_scale(arguments: Arguments) -> tuple[Constant, ...]:
    mask, values = _tensor(arguments, "data_mask"), _tensor(arguments, "nonzero_data")
    scale, offset = _tensor(arguments, "scale"), _optional(arguments, "offset")
    dense = _shift_scale(
        _scatter(values.value, mask.value), scale.value, None if offset is None else offset.value
    )
    bits = values.bits + scale.bits + (offset.bits if offset else 0)
    return mask, Constant(dense[mask.value != 0], values.encoding, bits)


def _affine_dequantize(arguments: Arguments) -> tuple[Constant, ...]:
    """iOS 16's quantization: scale and zero point of one axis, or one for all."""
    data, scale, zero = (_tensor(arguments, name) for name in ("quantized_data", "scale", "zero_point"))
    axis = int(_tensor(arguments, "axis").value)
    if not -data.value.ndim <= axis < data.value.ndim:
        raise MalformedError(f"scales along axis {axis} of a weight of {data.value.ndim} axes")
    shape = [1] * data.value.ndim

    def along_axis(values: np.ndarray) -> np.ndarray:
        shape[axis] = values.size
        return values.reshape(shape)

    value = _shift_scale(data.value, along_axis(scale.value), along_axis(zero.value))
    return (Constant(value, data.encoding, data.bits + scale.bits + zero.bits),)


def _look_up(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Scalar tables: `table` is (groups..., entries, 1), one for each block of `indices`."""
    if table.ndim != indices.ndim + 2 or table.shape[-1] != 1:
        raise MalformedError(
            f"tables of shape {list(table.shape)} for indices of shape {list(indices.shape)}"
        )
    entries = table.shape[-2]
    if indices.size and int(indices.max()) >= entries:
        raise MalformedError(f"an index of {int(indices.max())} into a table of {entries} entries")
    # Which table each weight uses: numbered 0, 1, ... over the groups and spread over their blocks.
    groups = math.prod(table.shape[:-2])
    number = _spread(np.arange(groups).reshape(table.shape[:-2]), indices.shape)
    flat = table.reshape(groups, entries)
    return np.asarray(flat[np.broadcast_to(number, indices.shape), indices])


def _lut_to_dense(arguments: Arguments) -> tuple[Constant, ...]:
    indices, table = _tensor(arguments, "indices"), _tensor(arguments, "lut")
    bits = indices.bits + table.bits
    if "shape" in arguments:  # iOS 16: packed indices, one flat table of 2**bits entries
        shape = _flat_shape(arguments)
        index_bits = int(math.log2(max(table.value.size, 1)))
        if index_bits not in (1, 2, 4, 6, 8) or table.value.size != 2**index_bits:
            raise MalformedError(f"a table of {table.value.size} entries")
        numbers = _repacked(indices, index_bits, shape)
        return (Constant(table.value.reshape(-1)[numbers], f"{index_bits}-bit table", bits),)
    return (Constant(_look_up(indices.value, table.value), _table_name(indices), bits),)


def _lut_to_sparse(arguments: Arguments) -> tuple[Constant, ...]:
    mask, indices = _tensor(arguments, "indices_mask"), _tensor(arguments, "indices_nonzero_data")
    table = _tensor(arguments, "lut")
    dense = _look_up(_scatter(indices.value, mask.value), table.value)
    return mask, Constant(dense[mask.value != 0], _table_name(indices), indices.bits + table.bits)


def _table_name(indices: Constant) -> str:
    return f"{indices.element.bits}-bit table" if indices.element else "table"


def _cast(arguments: Arguments) -> tuple[Constant, ...]:
    source = _tensor(arguments, "source_val")
    return (Constant(source.value.astype(np.float32), source.encoding, source.bits),)


DECODERS: dict[str, Callable[[Arguments], tuple[Constant, ...]]] = {
    "constexpr_sparse_to_dense": _sparse_to_dense,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_cast": _cast,
}
