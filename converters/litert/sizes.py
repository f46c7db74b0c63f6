"""Bytes that a weight takes in a `.tflite` file, for any number of zeros.

The values that are left, one index of one or two bytes for each block of them, one segment for each row of
blocks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.layers import WeightedLayer
from converters.litert import sparse
from converters.targets import Storage, Target

Numbers = NDArray[np.float64]

# Fewer values than this stay as they are (`litert.storage`).
MIN_INT8_VALUES = 256
# What sparse storage adds to the flatbuffer beside its values, measured on MobileNetV3-Small.
SPARSE_BYTES = 255


def layer_bytes(target: Target, layer: WeightedLayer, kept: Numbers, block: tuple[int, int]) -> Numbers:
    """Bytes of one weight for any numbers of kept values, by the choice `litert.sparse.smallest` makes."""
    count = int(np.prod(layer.shape))
    int8 = target.storage is Storage.INT8 and count >= MIN_INT8_VALUES
    value_bytes = 1 if int8 else 4
    dense = np.full(kept.shape, float(count * value_bytes))
    if layer.kind not in ("conv1x1", "linear"):
        return dense
    out, in_ = layer.shape[:2]
    tried = [side for side in sparse.BLOCKS if out % side[0] == 0 and in_ % side[1] == 0]
    encoded = np.min([_encoded(out, in_, kept, block, side, value_bytes) for side in tried], axis=0)
    beside = SPARSE_BYTES + len(layer.name)
    return np.where(encoded + sparse.OVERHEAD_BYTES < dense, encoded + beside, dense)


def _encoded(
    out: int, in_: int, kept: Numbers, zeros_in: tuple[int, int], block: tuple[int, int], value_bytes: int
) -> Numbers:
    """Bytes of values, indices and segments of a matrix stored in blocks."""
    rows, columns = out // block[0], in_ // block[1]
    occupied = np.maximum(_occupied(out * in_, kept, zeros_in, block), 1)
    index_bytes = 1 if columns - 1 <= 255 else 2
    segment_bytes = np.select([occupied <= 255, occupied <= 65535], [1, 2], 4)
    stored = occupied * (block[0] * block[1] * value_bytes + index_bytes) + (rows + 1) * segment_bytes
    return np.asarray(stored)


def _occupied(count: int, kept: Numbers, zeros_in: tuple[int, int], block: tuple[int, int]) -> Numbers:
    """Stored blocks that hold anything.

    Exact where the blocks that zeros come in are made of whole stored blocks; elsewhere what to expect if
    they lie anywhere: a stored block is empty where each of the blocks it touches is.
    """
    touched = max(block[0] // zeros_in[0], 1) * max(block[1] // zeros_in[1], 1)
    density = kept / count
    return np.asarray(count / (block[0] * block[1]) * (1 - (1 - density) ** touched))
