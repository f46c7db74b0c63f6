"""How large a file will be for any choice of zeros, without converting: exact to 1 % of the file.

A file is a part that no zeros change (graph, biases, layers too small to encode) and, layer by layer, weights
in the smallest form that the target allows. The fixed part is measured on one real conversion; the rest is
arithmetic on counts, so a thousand choices take a fraction of a second.

What a weight takes is for its format to say: `layer_bytes` of `converters.format.Format`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from converters.errors import UserError
from converters.facts import Converted
from converters.format import FORMATS
from converters.layers import WeightedLayer
from converters.targets import Storage, Target
from converters.targets import target as target_named

Numbers = NDArray[np.float64]


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
        per_layer = FORMATS[self.target.format].layer_bytes
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
