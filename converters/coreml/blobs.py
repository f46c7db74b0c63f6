"""Read `weight.bin`, the file a Core ML program keeps its large constants in, trusting nothing in it.

Layout (MILBlob, version 2): a 64-byte header, then for each tensor a 64-byte record and its bytes, both
aligned to 64. Values narrower than a byte are packed into one bit stream, least significant bit first.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

_ALIGNMENT_BYTES = 64
_SENTINEL = 0xDEADBEEF
# sentinel, type, size in bytes, offset of the bytes
_RECORD = struct.Struct("<IIQQ")


class MalformedError(ValueError):
    """A package that does not hold what it says; the message is for people."""


@dataclass(frozen=True)
class ElementType:
    """How one element of a MIL tensor is stored.

    Attributes:
        name: for people, e.g. "float16", "4-bit".
        bits: of one element.
        numpy: type that holds one decoded element.
    """

    name: str
    bits: int
    numpy: np.dtype[np.generic]

    @property
    def is_float(self) -> bool:
        """Whether it is a floating point type."""
        return self.numpy.kind == "f"


def _element(name: str, bits: int, numpy: str) -> ElementType:
    return ElementType(name, bits, np.dtype(numpy))


# By name in MIL's `DataType`.
ELEMENT_TYPES = {
    "BOOL": _element("bool", 8, "?"),
    "FLOAT16": _element("float16", 16, "<f2"),
    "FLOAT32": _element("float32", 32, "<f4"),
    "INT4": _element("int4", 4, "i1"),
    "INT8": _element("int8", 8, "i1"),
    "INT16": _element("int16", 16, "<i2"),
    "INT32": _element("int32", 32, "<i4"),
    "UINT1": _element("uint1", 1, "u1"),
    "UINT2": _element("uint2", 2, "u1"),
    "UINT3": _element("uint3", 3, "u1"),
    "UINT4": _element("uint4", 4, "u1"),
    "UINT6": _element("uint6", 6, "u1"),
    "UINT8": _element("uint8", 8, "u1"),
    "UINT16": _element("uint16", 16, "<u2"),
    "UINT32": _element("uint32", 32, "<u4"),
}


def size_bytes(count: int, bits: int) -> int:
    """Bytes that `count` elements of `bits` bits take, without alignment."""
    return -(-count * bits // 8)


def blob_bytes(count: int, bits: int) -> int:
    """Bytes that they take in `weight.bin`: record, content, and padding to the next 64."""
    return _ALIGNMENT_BYTES + -(-size_bytes(count, bits) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def unpack(raw: bytes, element: ElementType, shape: tuple[int, ...]) -> np.ndarray:
    """Decode the bytes of a tensor.

    Raises:
        MalformedError: they are more or fewer than the shape needs.
    """
    count = math.prod(shape)
    if len(raw) != size_bytes(count, element.bits):
        raise MalformedError(
            f"{element.name} tensor of shape {list(shape)} needs {size_bytes(count, element.bits):,} bytes, "
            f"and {len(raw):,} are stored"
        )
    if element.bits >= 8:
        return np.frombuffer(raw, element.numpy).reshape(shape)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: count * element.bits]
    # (count, bits) of 0 and 1 -> (count,)
    values = bits.reshape(count, element.bits) @ (1 << np.arange(element.bits, dtype=np.uint8))
    if element.name.startswith("int"):
        values = values.astype(np.int8) - ((values >> (element.bits - 1)) << element.bits).astype(np.int8)
    return values.astype(element.numpy).reshape(shape)


def read_blob(
    content: bytes | memoryview, offset: int, element: ElementType, shape: tuple[int, ...]
) -> np.ndarray:
    """Decode the tensor whose record starts at `offset` of a `weight.bin`.

    Raises:
        MalformedError: no record is there, or it or its bytes reach beyond the end of the file.
    """
    if offset + _RECORD.size > len(content):
        raise MalformedError(f"a weight at byte {offset:,} of a weight file that has {len(content):,} bytes")
    sentinel, _, stored_bytes, start = _RECORD.unpack_from(content, offset)
    if sentinel != _SENTINEL:
        raise MalformedError(f"no weight record at byte {offset:,} of the weight file")
    if start + stored_bytes > len(content):
        raise MalformedError(
            f"a weight that ends at byte {start + stored_bytes:,} of a weight file that has "
            f"{len(content):,} bytes: it was cut short"
        )
    return unpack(bytes(content[start : start + stored_bytes]), element, shape)
