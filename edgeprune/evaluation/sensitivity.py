"""`edgeprune sensitivity`: what zeros in one layer alone do to the accuracy of a run's dense model.

Each layer is pruned in one shot, to each sparsity in turn, and put back. Nothing is trained, so the drops are
larger than after fine-tuning; they say which layers mind, and `allocation` takes them for that. The images
are a fixed part of those for training: what is decided by them has not seen the held-out images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeprune import parsing, pruning
from edgeprune.data.dataset import Split
from edgeprune.errors import UserError
from edgeprune.pruning import Selected
from edgeprune.pruning.allocation.result import Curves
from edgeprune.tasks import metrics
from edgeprune.tasks.task import score as task_score
from edgeprune.training.loop import Setting
from edgeprune.training.predict import predict

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
IMAGES = 500
BLOCK = (1, 4)
SCHEMA = 1


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, pruned alone.

    Attributes:
        name: as `model.named_modules()` has it.
        weights: how many it has.
        score: of the model with this layer at each sparsity, 0 to 1.
        loss: of the task, likewise.
    """

    name: str
    weights: int
    score: tuple[float, ...]
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

    def drops_points(self) -> np.ndarray:
        """Points of accuracy lost, (layers, sparsities); below 0 where zeros helped."""
        return np.array([[100 * (self.score - score) for score in layer.score] for layer in self.layers])

    def curves(self) -> Curves:
        """For `allocation`: points lost by layer, from no zeros on."""
        drops = np.concatenate([np.zeros((len(self.layers), 1)), self.drops_points()], axis=1)
        return Curves(tuple(layer.name for layer in self.layers), (0.0, *self.sparsities), drops)


@torch.no_grad()
def measure(
    model: nn.Module,
    layers: Sequence[Selected],
    sparsities: Sequence[float],
    split: Split,
    setting: Setting,
    advance: Callable[[int], None],
) -> tuple[tuple[float, float], tuple[LayerSensitivity, ...]]:
    """Prune each layer alone, by magnitude, to each sparsity; every weight is put back as it was.

    Args:
        model: in eval mode.
        layers: with the pattern of their rules.
        sparsities: fractions of zeros.
        split: images and labels.
        setting: the task, and what the model wants done to pixels.
        advance: told how many evaluations are done.

    Returns:
        (score, loss) of the model as it is, and of each layer.
    """
    dense = _evaluate(model, split, setting)
    advance(1)
    done, found = 1, []
    for selected in layers:
        weight = selected.layer.weight
        original = weight.detach().clone()
        importance = pruning.CRITERIA["magnitude"](original)
        results = []
        try:
            for sparsity in sparsities:
                weight.data.copy_(original * selected.rule.pattern.mask(importance, sparsity))
                results.append(_evaluate(model, split, setting))
                done += 1
                advance(done)
        finally:
            weight.data.copy_(original)
        score, loss = zip(*results, strict=True)
        found.append(LayerSensitivity(selected.name, weight.numel(), score, loss))
    return dense, tuple(found)


def read(path: Path) -> Sensitivity:
    """Read a `sensitivity.json`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; edgeprune sensitivity RUN writes one") from None
    return parsing.build(Sensitivity, with_score(plain), str(path))


def with_score(plain: Any) -> Any:
    """Plain data of a `sensitivity.json` with its metric named, and the scores called so."""
    key = next((known.key for known in metrics() if isinstance(plain, dict) and known.key in plain), None)
    if key is None:
        return plain

    def named(record: Any) -> Any:
        return {"score" if name == key else name: value for name, value in record.items()}

    layers = [named(layer) if isinstance(layer, dict) else layer for layer in plain.get("layers", ())]
    return named(plain) | {"layers": layers, "metric": key}


def to_plain(result: Sensitivity) -> dict[str, Any]:
    """All of it, the scores under their metric's key."""

    def named(record: dict[str, Any]) -> dict[str, Any]:
        return {result.metric if name == "score" else name: value for name, value in record.items()}

    plain = named(dataclasses.asdict(result))
    del plain["metric"]
    return plain | {"layers": [named(layer) for layer in plain["layers"]]}


def _evaluate(model: nn.Module, split: Split, setting: Setting) -> tuple[float, float]:
    outputs, labels = predict(model, split, setting.normalization), split.labels
    reached = task_score(setting.task, outputs, labels, len(setting.data.classes))
    return reached, float(setting.task.loss(outputs, labels, 0.0))
