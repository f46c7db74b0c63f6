"""What `edgeprune sensitivity` measures, written and read here: what zeros in each layer alone cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import parsing

SCHEMA = 1
# What is measured where nothing else is asked for.
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
IMAGES = 500


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, pruned alone.

    Attributes:
        name: as `model.named_modules()` has it.
        weights: how many it has.
        top1: of the model with this layer at each sparsity, 0 to 1.
        loss: cross entropy, likewise.
    """

    name: str
    weights: int
    top1: tuple[float, ...]
    loss: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        schema: of this record as JSON.
        model: name.
        block: (out, in) channels zeroed together.
        images: how many, and `image_source` which.
        image_source: for people.
        top1: of the dense model on these images, 0 to 1.
        loss: cross entropy, likewise.
        sparsities: rising, each layer's columns.
        layers: in the order they have in the model.
        left_dense: layers that the block does not fit, and why.
    """

    schema: int
    model: str
    block: tuple[int, int]
    images: int
    image_source: str
    top1: float
    loss: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerSensitivity, ...]
    left_dense: dict[str, str]

    def drops_points(self) -> list[list[float]]:
        """Points of accuracy lost, (layers, sparsities); below 0 where zeros helped."""
        return [[100 * (self.top1 - top1) for top1 in layer.top1] for layer in self.layers]


def read(path: Path) -> Sensitivity:
    """Read a `sensitivity.json`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    plain = parsing.read_json(path, "edgeprune sensitivity RUN writes one")
    return parsing.build(Sensitivity, plain, str(path))


def to_plain(result: Sensitivity) -> dict[str, Any]:
    """All of it, as plain data for JSON."""
    return dataclasses.asdict(result)
