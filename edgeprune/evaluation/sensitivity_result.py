"""What `edgeprune sensitivity` measures, written and read here: what zeros in each layer alone cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune import parsing

SCHEMA = 2
# What is measured where nothing else is asked for.
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
IMAGES = 500


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, pruned alone.

    Attributes:
        name: as `model.named_modules()` has it.
        weights: how many it has.
        score: of the model with this layer at each sparsity, 0 to 1.
        loss: of the task, likewise.
        divergence: Kullback-Leibler divergence of its answers from the dense model's, nats an image; empty in
            results of schema 1.
    """

    name: str
    weights: int
    score: tuple[float, ...]
    loss: tuple[float, ...]
    divergence: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        schema: of this record as JSON.
        model: name.
        block: (out, in) channels zeroed together.
        images: how many, and `image_source` which.
        image_source: for people.
        score: of the dense model on these images, 0 to 1.
        loss: of the task, likewise.
        sparsities: rising, each layer's columns.
        layers: in the order they have in the model.
        left_dense: layers that the block does not fit, and why.
        metric: key of what `score` is measured by; in JSON it stands in the place of "score".
    """

    schema: int
    model: str
    block: tuple[int, int]
    images: int
    image_source: str
    score: float
    loss: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerSensitivity, ...]
    left_dense: dict[str, str]
    metric: str

    def drops_points(self) -> list[list[float]]:
        """Points of accuracy lost, (layers, sparsities); below 0 where zeros helped."""
        return [[100 * (self.score - score) for score in layer.score] for layer in self.layers]


def read(path: Path) -> Sensitivity:
    """Read a `sensitivity.json`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    plain = parsing.read_json(path, "edgeprune sensitivity RUN writes one")
    return parsing.build(Sensitivity, _with_metric(plain), str(path))


def to_plain(result: Sensitivity) -> dict[str, Any]:
    """All of it, as plain data for JSON."""

    def keyed(record: dict[str, Any]) -> dict[str, Any]:
        return {result.metric if name == "score" else name: value for name, value in record.items()}

    plain = keyed(dataclasses.asdict(result))
    del plain["metric"]
    return plain | {"layers": [keyed(layer) for layer in plain["layers"]]}


def _with_metric(plain: Any) -> Any:
    """Plain data of a `sensitivity.json` with its metric named, and the scores called so.

    The metric is the one field of the whole that the layers have too, besides their loss.
    """
    layers = plain.get("layers") if isinstance(plain, dict) else None
    if not isinstance(layers, list) or not layers or not isinstance(layers[0], dict):
        return plain
    keys = [key for key in layers[0] if key in plain and key != "loss"]
    if len(keys) != 1:
        return plain

    def named(record: Any) -> Any:
        return {"score" if name == keys[0] else name: value for name, value in record.items()}

    found = [named(layer) if isinstance(layer, dict) else layer for layer in layers]
    return named(plain) | {"layers": found, "metric": keys[0]}
