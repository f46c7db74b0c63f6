"""A Core AI program's operations and constants, as numpy has them.

A constant is stored as it is (float16), as integers that `blockwise_shift_scale` multiplies, as indices that
`lut_to_dense` looks up, or as a mask and the values that are left, which `sparse_with_bitmask_to_dense` puts
back; here such a chain becomes the value it stands for and the bits it takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.coreai.framework import compiler, create_elements_attr, mlir, ops

CONV = "coreai.conv2d"
MATMULS = ("coreai.batch_matmul", "coreai.decomposable.broadcasting_batch_matmul")
CONSTANT = "coreai.constant"
SPARSE_TO_DENSE = "coreai.sparse_with_bitmask_to_dense"
BUILD_SPARSE = "coreai.build_sparse_with_bitmask"
LUT_TO_DENSE = "coreai.lut_to_dense"
LUT_TO_SPARSE = "coreai.lut_to_sparse_with_bitmask"
SHIFT_SCALE = "coreai.blockwise_shift_scale"
CAST = "coreai.cast"
TRANSPOSE = "coreai.transpose"
DECODING = (SPARSE_TO_DENSE, LUT_TO_DENSE, SHIFT_SCALE)
MAIN = "main"
# A tensor that a file says is larger is refused, not allocated: 2 GB of float32.
_MAX_ELEMENTS = 2**29


class MalformedError(Exception):
    """What does not hold together in a file; the caller knows its name."""


@dataclass(frozen=True)
class Encoded:
    """A constant, decoded.

    Attributes:
        value: as the program computes with it.
        bits: stored: values, mask, scales, table.
        encoding: see `LayerFacts`.
    """

    value: np.ndarray
    bits: int
    encoding: str


@dataclass(frozen=True)
class StoredWeight:
    """A layer's weight as it is stored, and decoded.

    Attributes:
        name: of the operation that uses it, by its place in the program.
        kind: see `LayerFacts`.
        value: (out, in / groups, height, width) or (out, in), in the type the program computes with.
        bits: stored, for the whole weight.
        encoding: see `LayerFacts`.
    """

    name: str
    kind: str
    value: np.ndarray
    bits: int
    encoding: str

    @property
    def zero_fraction(self) -> float:
        """Exact zeros, 0 to 1."""
        return float(np.count_nonzero(self.value == 0) / max(self.value.size, 1))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        return self.bits / max(self.value.size, 1)


@dataclass(frozen=True)
class LayerUse:
    """An operation of a layer, and where its weight comes from.

    Attributes:
        operation: a convolution or matrix product of the program.
        source: the value that holds the weight, decoded, before any transposition.
        transposed: whether the weight lies (in, out) in `source`.
        kind: see `LayerFacts`.
    """

    operation: Any
    source: Any
    transposed: bool
    kind: str


def operations(module: Any) -> list[Any]:
    """All operations of a module, those of the functions it calls too, in order."""
    found: list[Any] = []

    def note(operation: Any) -> Any:
        found.append(operation)
        return mlir.WalkResult.ADVANCE

    module.operation.walk(note)
    return found


def main_graph(module: Any) -> Any:
    """The function that an app calls.

    Raises:
        MalformedError: there is none.
    """
    for operation in module.body.operations:
        if operation.name == "coreai.graph" and operation.attributes["sym_name"].value == MAIN:
            return operation
    raise MalformedError(f"its program has no function {MAIN!r}")


def shape_of(value: Any) -> tuple[int, ...]:
    """Sizes of a tensor.

    Raises:
        MalformedError: it is none of fixed shape.
    """
    kind = value.type
    if not isinstance(kind, mlir.RankedTensorType) or not kind.has_static_shape:
        raise MalformedError(f"a value of type {kind} is no tensor of fixed shape")
    return tuple(kind.shape)


# --- Constants ---------------------------------------------------------------------------------------------


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned integers below 2**bits as a run of bits, lowest first.

    >>> pack(np.array([1, 0, 1, 1]), 1)
    array([13], dtype=uint8)
    """
    places = (values.reshape(-1, 1).astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(places.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """What `pack` packed, (count,) uint8."""
    places = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    numbers: np.ndarray = (places * weights).sum(axis=1).astype(np.uint8)
    return numbers


def constant(values: np.ndarray, element: Any) -> Any:
    """Write a constant at the current place of the program, and return its value.

    Args:
        values: of any shape; of a type that numpy has, or uint8 for fewer bits.
        element: the type of an element.
    """
    kind = mlir.RankedTensorType.get(list(values.shape), element)
    narrow = isinstance(element, mlir.IntegerType) and element.width < 8
    if values.size and (values == values.flat[0]).all() and not (values == 0).any():
        splat = _attribute(values.flat[0], element)
        return ops.ConstantOp(value=mlir.DenseElementsAttr.get_splat(kind, splat)).result
    data = np.ascontiguousarray(pack(values, element.width) if narrow else values).reshape(-1)
    data = data if data.size else np.zeros(1, data.dtype)
    data.flags.writeable = False
    return ops.ConstantOp(value=create_elements_attr(mlir.Location.unknown(), kind, data)).result


def _attribute(value: Any, element: Any) -> Any:
    if isinstance(element, mlir.IntegerType):
        return mlir.IntegerAttr.get(element, int(value))
    return mlir.FloatAttr.get(element, float(value))


def constant_array(operation: Any) -> np.ndarray:
    """The values of a constant; of fewer than 8 bits each as uint8.

    Raises:
        MalformedError: its type is none that numbers are stored in here, or it is too large.
    """
    shape = shape_of(operation.results[0])
    element = operation.results[0].type.element_type
    count = int(np.prod(shape, dtype=np.int64))
    if count > _MAX_ELEMENTS:
        raise MalformedError(f"a constant of shape {shape} is too large")
    bits = element.width
    raw = np.zeros((count * bits + 7) // 8, np.uint8)
    compiler.copy_constant_value_to_array(constant_op=operation, destination=raw)
    if bits < 8:
        return unpack(raw, bits, count).reshape(shape)
    return raw.view(_numpy_type(element)).reshape(shape)


def _numpy_type(element: Any) -> np.dtype[Any]:
    if isinstance(element, mlir.F32Type):
        return np.dtype(np.float32)
    if isinstance(element, mlir.F16Type):
        return np.dtype(np.float16)
    if isinstance(element, mlir.IntegerType) and element.width in (8, 16, 32, 64):
        return np.dtype(f"{'u' if element.is_unsigned else 'i'}{element.width // 8}")
    raise MalformedError(f"a constant of {element} is none that is known here")


# --- Decoding ----------------------------------------------------------------------------------------------


def decode(value: Any) -> Encoded | None:
    """What a value is that a program makes of constants alone; None where it depends on anything else."""
    operation = producer(value)
    if operation is None:
        return None
    if operation.name == CONSTANT:
        array = constant_array(operation)
        return Encoded(array, _bits(operation), _plain_name(operation))
    if operation.name == SPARSE_TO_DENSE:
        return _decode_sparse(operation)
    if operation.name == LUT_TO_DENSE:
        return _decode_table(operation)
    if operation.name == SHIFT_SCALE:
        return _decode_scaled(operation)
    return None


def producer(value: Any) -> Any:
    """The operation that makes a value; None for what is given to the function."""
    owner = value.owner
    return None if isinstance(owner, mlir.Block) else getattr(owner, "operation", owner).opview


def _operand(operation: Any, index: int) -> Any:
    found = producer(operation.operands[index])
    if found is None or found.name != CONSTANT:
        raise MalformedError(f"{operation.name} takes something else than constants")
    return found


def _bits(operation: Any) -> int:
    shape = shape_of(operation.results[0])
    return int(np.prod(shape, dtype=np.int64)) * int(operation.results[0].type.element_type.width)


def _plain_name(operation: Any) -> str:
    element = operation.results[0].type.element_type
    return {"f32": "float32", "f16": "float16"}.get(str(element), str(element))


def _decode_sparse(operation: Any) -> Encoded:
    """A mask and the values that are left, which may be looked up before or after they are put in place."""
    built = producer(operation.operands[0])
    table = None
    if built is not None and built.name == LUT_TO_SPARSE:
        table = built
        built = producer(built.operands[0])
    if built is None or built.name != BUILD_SPARSE:
        raise MalformedError(f"{SPARSE_TO_DENSE} takes something else than a sparse tensor")
    values = decode(built.operands[0])
    mask_operation = _operand(built, 1)
    mask = constant_array(mask_operation).astype(bool)
    if values is None or values.value.ndim != 1 or values.value.size != int(mask.sum()):
        raise MalformedError("a sparse weight's mask and values differ in number")
    bits, encoding = values.bits + _bits(mask_operation), values.encoding
    kept = values.value
    if table is not None:
        entries = _operand(table, 1)
        index_bits = int(producer(built.operands[0]).results[0].type.element_type.width)
        kept = _look_up(constant_array(entries), kept)
        bits, encoding = bits + _bits(entries), f"{index_bits}-bit table"
    dense = np.zeros(mask.shape, kept.dtype)
    dense[mask] = kept
    return Encoded(dense, bits, encoding if encoding.startswith("sparse") else f"sparse {encoding}")


def _decode_table(operation: Any) -> Encoded:
    indices, entries = _operand(operation, 0), _operand(operation, 1)
    value = _look_up(constant_array(entries), constant_array(indices))
    index_bits = int(indices.results[0].type.element_type.width)
    return Encoded(value, _bits(indices) + _bits(entries), f"{index_bits}-bit table")


def _look_up(entries: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One table of single numbers for the whole weight."""
    table = entries.reshape(-1)
    if max(entries.shape, default=0) != table.size or (indices.size and int(indices.max()) >= table.size):
        raise MalformedError(f"a table of shape {entries.shape} is not one list of numbers, or too short")
    found: np.ndarray = table[indices]
    return found


def _decode_scaled(operation: Any) -> Encoded:
    """(data - offset) * scale, scales broadcast over blocks of channels; offsets must be zero."""
    data = decode(operation.operands[0])
    if data is None:
        raise MalformedError(f"{SHIFT_SCALE} takes something else than constants")
    scale = _operand(operation, 1)
    offsets = [_operand(operation, index) for index in range(2, len(operation.operands))]
    if any(np.any(constant_array(offset)) for offset in offsets):
        raise MalformedError("a weight has offsets: none are written here")
    scales = constant_array(scale)
    if any(full % part for full, part in zip(data.value.shape, scales.shape, strict=True)):
        raise MalformedError(f"scales of shape {scales.shape} for a weight of {data.value.shape}")
    for axis, (full, part) in enumerate(zip(data.value.shape, scales.shape, strict=True)):
        scales = np.repeat(scales, full // part, axis)
    value = (data.value.astype(np.float32) * scales.astype(np.float32)).astype(scales.dtype)
    encoding = data.encoding.replace("si8", "int8")
    return Encoded(value, data.bits + sum(map(_bits, (scale, *offsets[:1]))), encoding)


# --- Layers ------------------------------------------------------------------------------------------------


def layer_uses(module: Any) -> list[LayerUse]:
    """The convolutions and matrix products whose weight is constant, in the order of the program.

    Raises:
        MalformedError: there is no main function.
    """
    block = main_graph(module).regions[0].blocks[0]
    found = (_layer_use(operation) for operation in block.operations)
    return [use for use in found if use is not None]


def distinct(uses: Sequence[LayerUse]) -> list[LayerUse]:
    """The first use of each weight."""
    kept: list[LayerUse] = []
    for use in uses:
        if all(use.source != other.source for other in kept):
            kept.append(use)
    return kept


def _layer_use(operation: Any) -> LayerUse | None:
    if operation.name == CONV:
        source = _through_casts(operation.operands[1])
        groups = constant_array(_operand(operation, 4)).reshape(-1)
        if not _is_stored(source):
            return None
        return LayerUse(operation, source, False, _conv_kind(shape_of(source), int(groups[0])))
    if operation.name in MATMULS:
        source, turned = _through_transpose(_through_casts(operation.operands[1]))
        if not _is_stored(source) or len(shape_of(source)) != 2:
            return None
        return LayerUse(operation, source, not turned, "linear")
    return None


def _conv_kind(shape: Sequence[int], groups: int) -> str:
    if groups > 1 and shape[1] == 1:
        return "depthwise"
    return "conv1x1" if groups == 1 and tuple(shape[2:]) == (1, 1) else "conv"


def _is_stored(value: Any) -> bool:
    operation = producer(value)
    return operation is not None and operation.name in (CONSTANT, *DECODING)


def _through_casts(value: Any) -> Any:
    operation = producer(value)
    while operation is not None and operation.name == CAST:
        value = operation.operands[0]
        operation = producer(value)
    return value


def _through_transpose(value: Any) -> tuple[Any, bool]:
    operation = producer(value)
    if operation is not None and operation.name == TRANSPOSE:
        return _through_casts(operation.operands[0]), True
    return value, False


def stored_weights(uses: Sequence[LayerUse]) -> Iterator[StoredWeight]:
    """The weights of layers, decoded, each (out, in, ...).

    Raises:
        MalformedError: one is stored in a way that is not known here.
    """
    for number, use in enumerate(uses):
        encoded = decode(use.source)
        if encoded is None:
            raise MalformedError(f"the weight of {use.operation.name} is not constant")
        value = encoded.value.T if use.transposed else encoded.value
        name = f"{use.operation.name.rsplit('.', 1)[-1]}_{number}"
        yield StoredWeight(name, use.kind, np.ascontiguousarray(value), encoded.bits, encoded.encoding)
