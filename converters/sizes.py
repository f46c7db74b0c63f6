"""How large a file will be for any choice of zeros, without converting: exact to 1 % of the file.

A file is a part that no zeros change (graph, biases, layers too small to encode) and, layer by layer, weights
in the smallest form that the target allows. The fixed part is measured on one real conversion; the rest is
arithmetic on counts, so a thousand choices take a fraction of a second.

Core ML: one bit of mask a weight and the values that are left; int8 scales or a table beside them; each
padded to 64 bytes. LiteRT: the values that are left, one index of one or two bytes for each block of them,
one segment for each row of blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from converters.coreml.blobs import blob_bytes
from converters.errors import UserError
from converters.facts import Converted
from converters.layers import WeightedLayer
from converters.litert import sparse
from converters.targets import Format, Storage, Target
from converters.targets import target as target_named

Numbers = NDArray[np.float64]

TABLE_BITS = {Storage.TABLE4: 4, Storage.TABLE6: 6}
# Core ML lets the values left of a sparse weight be int8 or by table from this platform on.
JOINT_PLATFORM = "iOS18"
# Fewer values than this stay as they are (`coreml.compression`, `litert.storage`).
MIN_COREML_VALUES = 10
MIN_LITERT_INT8_VALUES = 256
# What an encoding adds to the program or the flatbuffer beside its values, measured on MobileNetV3-Small: an
# operation, or two, and their names.
COREML_SPARSE_BYTES = 150
COREML_ENCODED_BYTES = 145
COREML_JOINT_BYTES = 712
COREML_IOS16_INT8_BYTES = 215
LITERT_SPARSE_BYTES = 255


@dataclass(frozen=True)
class SizeModel:
    """Predicts the size of a model's file on one target.

    Attributes:
        target: of the file.
        layers: the weights that are counted, as the converted file has them.
        base_bytes: of everything else in the file.
    """

    target: Target
    layers: tuple[WeightedLayer, ...]
    base_bytes: int

    @property
    def counts(self) -> Numbers:
        """Weights of each layer, (layers,)."""
        return np.array([float(np.prod(layer.shape)) for layer in self.layers])

    def bytes(self, kept: ArrayLike, block: ArrayLike = (1, 1)) -> NDArray[np.int64]:
        """Size of the file, to 1 %.

        Args:
            kept: weights that are not zero, (..., layers); leading dimensions are separate choices.
            block: (out, in) channels that the zeros of all layers come in, or (layers, 2), one for each.

        Returns:
            Bytes, (...).
        """
        total = self.base_bytes + self.layer_bytes(kept, block).sum(axis=-1)
        return np.asarray(np.rint(total), dtype=np.int64)

    def layer_bytes(self, kept: ArrayLike, block: ArrayLike = (1, 1)) -> Numbers:
        """Bytes that each layer's weight takes, (..., layers); see `bytes`."""
        kept = np.asarray(kept, dtype=np.float64)
        if kept.shape[-1:] != (len(self.layers),):
            raise UserError(f"kept counts of shape {kept.shape} for {len(self.layers)} layers")
        blocks = np.broadcast_to(np.asarray(block), (len(self.layers), 2))
        per_layer = _coreml_bytes if self.target.format is Format.COREML else _litert_bytes
        columns = [
            per_layer(self.target, layer, kept[..., index], (int(blocks[index, 0]), int(blocks[index, 1])))
            for index, layer in enumerate(self.layers)
        ]
        return np.stack(columns, axis=-1)


def calibrated(converted: Converted) -> SizeModel:
    """The size model of a network, its fixed part measured on one conversion of the dense model.

    Raises:
        UserError: a weight is stored sparse; or a static int8 target, where none ever is.
    """
    target = target_named(converted.target)
    if target.storage is Storage.STATIC_INT8:
        raise UserError(
            f"target {target.name}: its weights are stored dense, so zeros do not change its size"
        )
    stored_sparse = [fact.name for fact in converted.layers if fact.encoding.startswith("sparse")]
    if stored_sparse:
        raise UserError(
            f"layer {stored_sparse[0]!r} is stored sparse already: calibrate with the dense model"
        )
    layers = tuple(WeightedLayer(fact.name, fact.kind, tuple(fact.shape)) for fact in converted.layers)
    model = SizeModel(target, layers, 0)
    zeros = np.array([fact.zero_fraction for fact in converted.layers])
    return SizeModel(target, layers, int(converted.bytes - model.bytes(model.counts * (1 - zeros))))


def _coreml_bytes(target: Target, layer: WeightedLayer, kept: Numbers, block: tuple[int, int]) -> Numbers:
    """Bytes of one weight for any numbers of kept values, by the choice `coreml.compression` makes."""
    count, channels = int(np.prod(layer.shape)), layer.shape[0]
    # A small group of weights gets int8 where others get a table: see `coreml.compression`.
    depthwise_table = target.storage in TABLE_BITS and layer.kind == "depthwise"
    storage = Storage.INT8 if depthwise_table else target.storage
    joint = target.platform >= JOINT_PLATFORM
    mask = blob_bytes(count, 1)
    never = np.full(kept.shape, np.inf)
    large = count >= MIN_COREML_VALUES
    stored = [
        _coreml_values(Storage.FLOAT16, np.full(kept.shape, float(count)), channels),
        np.where(large & (kept > 0), mask + _coreml_values(Storage.FLOAT16, kept, channels), np.inf),
        never,
        never,
    ]
    if storage is not Storage.FLOAT16 and large:
        stored[2] = _coreml_values(storage, np.full(kept.shape, float(count)), channels)
        if joint:
            values = mask + _coreml_values(storage, kept, channels)
            stored[3] = np.where(kept >= MIN_COREML_VALUES, values, np.inf)
    # The first of the smallest: the plainest.
    choice = np.argmin(np.stack(stored), axis=0)
    beside = [0, COREML_SPARSE_BYTES, COREML_ENCODED_BYTES, COREML_JOINT_BYTES]
    if (
        storage is Storage.INT8 and not joint
    ):  # With a zero point for each channel, which the choice leaves out.
        beside[2] = COREML_IOS16_INT8_BYTES + blob_bytes(channels, 8)
    return np.asarray(np.min(np.stack(stored), axis=0) + np.array(beside)[choice])


def _coreml_values(storage: Storage, count: Numbers, channels: int) -> Numbers:
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


def _litert_bytes(target: Target, layer: WeightedLayer, kept: Numbers, block: tuple[int, int]) -> Numbers:
    """Bytes of one weight for any numbers of kept values, by the choice `litert.sparse.smallest` makes."""
    count = int(np.prod(layer.shape))
    int8 = target.storage is Storage.INT8 and count >= MIN_LITERT_INT8_VALUES
    value_bytes = 1 if int8 else 4
    dense = np.full(kept.shape, float(count * value_bytes))
    if layer.kind not in ("conv1x1", "linear"):
        return dense
    out, in_ = layer.shape[:2]
    tried = [side for side in sparse.BLOCKS if out % side[0] == 0 and in_ % side[1] == 0]
    encoded = np.min([_encoded(out, in_, kept, block, side, value_bytes) for side in tried], axis=0)
    beside = LITERT_SPARSE_BYTES + len(layer.name)
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
