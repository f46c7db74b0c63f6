"""Bytes that a weight takes in a Core AI model, for any number of zeros.

One bit of mask a weight and the values that are left; int8 scales or a table beside them. Padding is not
worth counting: the program is one run of bytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from converters.layers import WeightedLayer
from converters.targets import Storage, Target

Numbers = NDArray[np.float64]

TABLE_BITS = {Storage.TABLE4: 4, Storage.TABLE6: 6}
# Fewer values than this stay as they are: a table or scales would be larger.
MIN_VALUES = 64
# What an encoding adds to the program beside its numbers, measured on MobileNetV3-Small: operations, their
# types, and the names of constants.
SPARSE_BYTES = 108
INT8_BYTES = 67
TABLE_BYTES = 48


def encoded_bytes(storage: Storage, sparse: bool, count: int, kept: Numbers, channels: int) -> Numbers:
    """Bytes of one weight in one encoding.

    Args:
        storage: of its values.
        sparse: whether its zeros are left out.
        count: of its elements.
        kept: how many are not zero, (...).
        channels: of its output, each of which has an int8 scale.
    """
    values = kept if sparse else np.full(kept.shape, float(count))
    beside = _bytes(np.asarray(float(count)), 1) + SPARSE_BYTES if sparse else 0
    if storage in TABLE_BITS:
        bits = TABLE_BITS[storage]
        return np.asarray(_bytes(values, bits) + 2 * 2**bits + TABLE_BYTES + beside)
    if storage is Storage.INT8:
        return np.asarray(values + 2 * channels + INT8_BYTES + beside)
    return np.asarray(values * (4 if storage is Storage.FLOAT32 else 2) + beside)


def choices(storage: Storage, kind: str) -> list[tuple[Storage, bool]]:
    """The encodings a target's storage allows for a layer, and whether zeros are left out; plainest first.

    Depthwise weights get int8 where others get a table: a channel has nine of them and its own range, which
    one table for all does not follow, and they are 2 % of a mobile network's weights.
    """
    own = Storage.INT8 if storage in TABLE_BITS and kind == "depthwise" else storage
    plain = Storage.FLOAT32 if storage is Storage.FLOAT32 else Storage.FLOAT16
    return [(kept, sparse) for kept in dict.fromkeys((plain, own)) for sparse in (False, True)]


def allowed(choice: tuple[Storage, bool], count: int, kept: Numbers) -> NDArray[np.bool_]:
    """Whether a weight can be stored so: (...)."""
    storage, sparse = choice
    plain = storage in (Storage.FLOAT16, Storage.FLOAT32)
    enough = np.asarray(kept >= (1 if plain else MIN_VALUES))
    return enough & (kept < count) if sparse else enough | plain


def layer_bytes(target: Target, layer: WeightedLayer, kept: Numbers, block: tuple[int, int]) -> Numbers:
    """Bytes of one weight for any numbers of kept values, in the encoding that takes fewest."""
    count, channels = int(np.prod(layer.shape)), layer.shape[0]
    stored = [
        np.where(
            allowed(choice, count, kept), encoded_bytes(choice[0], choice[1], count, kept, channels), np.inf
        )
        for choice in choices(target.storage, layer.kind)
    ]
    return np.asarray(np.min(np.stack(stored), axis=0))


def _bytes(count: Numbers, bits: int) -> Numbers:
    return np.asarray(np.ceil(count * bits / 8))
