"""Bytes that a weight takes in a Core ML package, for any number of zeros.

One bit of mask a weight and the values that are left; int8 scales or a table beside them; each padded to 64
bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.coreml.blobs import blob_bytes
from converters.layers import WeightedLayer
from converters.targets import Storage, Target

Numbers = NDArray[np.float64]

TABLE_BITS = {Storage.TABLE4: 4, Storage.TABLE6: 6}
# Core ML lets the values left of a sparse weight be int8 or by table from this platform on.
JOINT_PLATFORM = "iOS18"
# Fewer values than this stay as they are (`coreml.compression`).
MIN_VALUES = 10
# What an encoding adds to the program beside its values, measured on MobileNetV3-Small: an operation, or two,
# and their names.
SPARSE_BYTES = 150
ENCODED_BYTES = 145
JOINT_BYTES = 712
IOS16_INT8_BYTES = 215


def layer_bytes(target: Target, layer: WeightedLayer, kept: Numbers, block: tuple[int, int]) -> Numbers:
    """Bytes of one weight for any numbers of kept values, by the choice `coreml.compression` makes."""
    count, channels = int(np.prod(layer.shape)), layer.shape[0]
    # A small group of weights gets int8 where others get a table: see `coreml.compression`.
    depthwise_table = target.storage in TABLE_BITS and layer.kind == "depthwise"
    storage = Storage.INT8 if depthwise_table else target.storage
    joint = target.platform >= JOINT_PLATFORM
    mask = blob_bytes(count, 1)
    never = np.full(kept.shape, np.inf)
    large = count >= MIN_VALUES
    stored = [
        _values_bytes(Storage.FLOAT16, np.full(kept.shape, float(count)), channels),
        np.where(large & (kept > 0), mask + _values_bytes(Storage.FLOAT16, kept, channels), np.inf),
        never,
        never,
    ]
    if storage is not Storage.FLOAT16 and large:
        stored[2] = _values_bytes(storage, np.full(kept.shape, float(count)), channels)
        if joint:
            values = mask + _values_bytes(storage, kept, channels)
            stored[3] = np.where(kept >= MIN_VALUES, values, np.inf)
    # The first of the smallest: the plainest.
    choice = np.argmin(np.stack(stored), axis=0)
    beside = [0, SPARSE_BYTES, ENCODED_BYTES, JOINT_BYTES]
    if (
        storage is Storage.INT8 and not joint
    ):  # With a zero point for each channel, which the choice leaves out.
        beside[2] = IOS16_INT8_BYTES + blob_bytes(channels, 8)
    return np.asarray(np.min(np.stack(stored), axis=0) + np.array(beside)[choice])


def _values_bytes(storage: Storage, count: Numbers, channels: int) -> Numbers:
    """Bytes in `weight.bin` of so many values, with their scales or table."""
    if storage in TABLE_BITS:
        bits = TABLE_BITS[storage]
        return _blob_bytes(count, bits) + blob_bytes(2**bits, 16)
    if storage is Storage.INT8:
        return _blob_bytes(count, 8) + blob_bytes(channels, 16)
    return _blob_bytes(count, 16)


def _blob_bytes(count: Numbers, bits: int) -> Numbers:
    """`blobs.blob_bytes` of many counts, which may lie between whole ones."""
    return np.asarray(blob_bytes(0, bits) + np.ceil(np.ceil(count * bits / 8) / 64) * 64)
