"""What zeros in one layer alone do to the accuracy of a trained model.

Each layer is pruned in one shot, to each sparsity in turn, and put back. Nothing is trained, so the drops are
larger than after fine-tuning; they say which layers mind, and `allocation` takes for that how far the answers
move from the dense model's. Batch norms are measured again at every point: with those of the dense model most
of what is lost is their fault, and no training loses it. The images are a fixed part of those for training:
what is decided by them has not seen the held-out images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune import pruning
from edgeprune.allocator import keeping_freed_memory
from edgeprune.data.dataset import Split
from edgeprune.evaluation.sensitivity_result import LayerSensitivity
from edgeprune.pruning import Pattern, Selected
from edgeprune.pruning.allocation.result import Curves
from edgeprune.pruning.calibration import (
    Calibration,
    as_taken,
    batch_statistics,
    evaluating,
    read_batches,
)
from edgeprune.pruning.distilling import divergence
from edgeprune.tasks.task import score
from edgeprune.training.loop import Setting
from edgeprune.training.predict import EVALUATION_BATCH, normalized

T = TypeVar("T")

ANSWER_IMAGES, ANSWER_POINTS = 100, (0.0, 0.35, 0.6, 0.8)


@keeping_freed_memory()
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
        (score, loss) of the model as it is, and of each layer; all with the batch norms of a batch.
    """
    answers = _answers(model, split, setting)
    dense = _scores(answers, answers, split, setting)[:2]
    advance(1)
    done = itertools.count(2)

    def measure() -> tuple[float, float, float]:
        scores = _scores(_answers(model, split, setting), answers, split, setting)
        advance(next(done))
        return scores

    found = []
    for selected, results in zip(layers, each_alone(layers, sparsities, measure), strict=True):
        scores, losses, divergences = zip(*results, strict=True)
        weights = selected.layer.weight.numel()
        found.append(LayerSensitivity(selected.name, weights, scores, losses, divergences))
    return dense, tuple(found)


@torch.no_grad()
def each_alone(
    layers: Sequence[Selected], sparsities: Sequence[float], measure: Callable[[], T]
) -> list[list[T]]:
    """What `measure` gives with each layer pruned alone, by magnitude: (layers, sparsities).

    Every weight is put back as it was.
    """
    found = []
    for selected in layers:
        weight = selected.layer.weight
        original = weight.detach().clone()
        importance = pruning.CRITERIA["magnitude"](original)
        results = []
        try:
            for sparsity in sparsities:
                weight.data.copy_(original * selected.rule.pattern.mask(importance, sparsity))
                results.append(measure())
        finally:
            weight.data.copy_(original)
        found.append(results)
    return found


@keeping_freed_memory()
@torch.no_grad()
def answer_curves(
    model: nn.Module,
    pattern: Pattern,
    calibration: Calibration,
    *,
    images: int = ANSWER_IMAGES,
    sparsities: Sequence[float] = ANSWER_POINTS,
) -> Curves:
    """How far each layer pruned alone moves a classifier's answers, for `allocation.shares.by_sensitivity`.

    What `edgeprune sensitivity` measures, for those who have some images and no labels: nats, with the batch
    norms of these images. The model stays as it is. Half of EfficientNet-Lite0 in blocks without training::

        curves = answer_curves(model, Block(1, 4), images)
        rules = by_sensitivity(model, Block(1, 4), 0.5, curves=curves, maximum=0.7).rules
        prune_by_rules(model, rules, criterion="obc", calibration=images)

    Args:
        model: dense; it gives (n, classes).
        pattern: where zeros may be; not N of M, which has one sparsity.
        calibration: batches of what the model takes, of one size; labels beside them are not looked at.
        images: how many of them are taken, the first ones, all in one batch.
        sparsities: rising from 0, to below 1.

    Raises:
        UserError: see `select`; no images.
    """
    read = torch.cat([batch for batch, _ in read_batches(calibration, "answers")])
    batch = as_taken(model, read[:images])
    layers = pruning.prunable(model, pattern)
    with evaluating(model), batch_statistics(model):
        dense = model(batch)
        rows = each_alone(layers, sparsities[1:], lambda: max(float(divergence(model(batch), dense)), 0.0))
    return Curves(tuple(s.name for s in layers), tuple(sparsities), np.array([(0.0, *row) for row in rows]))


def curves_of(layers: Sequence[LayerSensitivity], sparsities: Sequence[float]) -> Curves:
    """What zeros cost by layer: how far the answers move, one unit that tells all layers apart."""
    rows = [(0.0, *layer.divergence) for layer in layers]
    return Curves(tuple(layer.name for layer in layers), (0.0, *sparsities), np.array(rows))


def _answers(model: nn.Module, split: Split, setting: Setting) -> Tensor:
    """Outputs of the model, in batches of even size, each with statistics of its own."""
    device = next(model.parameters()).device
    parts = torch.tensor_split(torch.arange(len(split)), math.ceil(len(split) / EVALUATION_BATCH))
    with evaluating(model), batch_statistics(model):
        outputs = [
            model(normalized(split.batch(part)[0].to(device), setting.normalization)).float().cpu()
            for part in parts
        ]
    return torch.cat(outputs)


def _scores(answers: Tensor, dense: Tensor, split: Split, setting: Setting) -> tuple[float, float, float]:
    """Score, loss, and divergence from the dense model's answers."""
    task = setting.task
    reached = score(task, answers, split.labels, len(setting.data.classes))
    loss = task.loss(answers, split.labels, 0.0)
    return reached, float(loss), max(float(task.divergence(answers, dense)), 0.0)
