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
from torch.nn import functional as F

from converters.facts import Normalization
from edgeprune import pruning
from edgeprune.data.dataset import Split
from edgeprune.pruning import Selected
from edgeprune.pruning.allocation.result import Curves
from edgeprune.report.sensitivity_result import LayerSensitivity, Sensitivity
from edgeprune.training import predict


@torch.no_grad()
def prune_each_layer(
    model: nn.Module,
    layers: Sequence[Selected],
    sparsities: Sequence[float],
    split: Split,
    normalization: Normalization,
    advance: Callable[[int], None],
) -> tuple[tuple[float, float], tuple[LayerSensitivity, ...]]:
    """Prune each layer alone, by magnitude, to each sparsity; every weight is put back as it was.

    Args:
        model: in eval mode.
        layers: with the pattern of their rules.
        sparsities: fractions of zeros.
        split: images and labels.
        normalization: of pixels.
        advance: told how many evaluations are done.

    Returns:
        (top-1, cross entropy) of the model as it is, and of each layer.
    """
    dense = _evaluate(model, split, normalization)
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
                results.append(_evaluate(model, split, normalization))
                done += 1
                advance(done)
        finally:
            weight.data.copy_(original)
        top1, loss = zip(*results, strict=True)
        found.append(LayerSensitivity(selected.name, weight.numel(), top1, loss))
    return dense, tuple(found)


def fixed_subset(split: Split, count: int) -> Split:
    """The same `count` images every time, each class with its share; all of them if there are no more.

    Of images with a class for each pixel, those that chance takes.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    if split.labels.ndim > 1:
        some = order[:count].sort().values
        return Split(split.images[some], split.labels[some])
    # The n-th image of every class comes before the n+1-th of any, classes in proportion to their size.
    labels = split.labels[order]
    sizes = torch.bincount(labels).double()
    rank = torch.zeros(len(labels), dtype=torch.double)
    for label in range(len(sizes)):
        places = labels == label
        rank[places] = torch.arange(int(places.sum()), dtype=torch.double) + 0.5
    chosen = order[(rank / sizes[labels]).argsort(stable=True)[:count]].sort().values
    return Split(split.images[chosen], split.labels[chosen])


def curves(result: Sensitivity) -> Curves:
    """For `allocation`: points lost by layer, from no zeros on."""
    drops = np.concatenate([np.zeros((len(result.layers), 1)), np.array(result.drops_points())], axis=1)
    return Curves(tuple(layer.name for layer in result.layers), (0.0, *result.sparsities), drops)


def _evaluate(model: nn.Module, split: Split, normalization: Normalization) -> tuple[float, float]:
    outputs = predict.predict(model, split, normalization)
    return predict.score(outputs, split), float(F.cross_entropy(outputs, split.labels.long()))
