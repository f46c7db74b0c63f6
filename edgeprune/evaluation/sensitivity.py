"""What zeros in one layer alone do to the accuracy of a trained model.

Each layer is pruned in one shot, to each sparsity in turn, and put back. Nothing is trained, so the drops are
larger than after fine-tuning; they say which layers mind, and `allocation` takes them for that. The images
are a fixed part of those for training: what is decided by them has not seen the held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from edgeprune import pruning
from edgeprune.data.dataset import Split
from edgeprune.evaluation.sensitivity_result import LayerSensitivity, Sensitivity
from edgeprune.pruning import Selected
from edgeprune.pruning.allocation.result import Curves
from edgeprune.tasks.task import score
from edgeprune.training.loop import Setting
from edgeprune.training.predict import predict


@torch.no_grad()
def prune_each_layer(
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
        scores, losses = zip(*results, strict=True)
        found.append(LayerSensitivity(selected.name, weight.numel(), scores, losses))
    return dense, tuple(found)


def curves(result: Sensitivity) -> Curves:
    """For `allocation`: points lost by layer, from no zeros on."""
    drops = np.concatenate([np.zeros((len(result.layers), 1)), np.array(result.drops_points())], axis=1)
    return Curves(tuple(layer.name for layer in result.layers), (0.0, *result.sparsities), drops)


def _evaluate(model: nn.Module, split: Split, setting: Setting) -> tuple[float, float]:
    outputs, labels = predict(model, split, setting.normalization), split.labels
    reached = score(setting.task, outputs, labels, len(setting.data.classes))
    return reached, float(setting.task.loss(outputs, labels, 0.0))
