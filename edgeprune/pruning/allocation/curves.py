"""What zeros cost a layer, estimated from its weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning.allocation.layers import MAXIMUM_SPARSITY, fitting, refuse_bounds
from edgeprune.pruning.allocation.result import Allocation, Curves
from edgeprune.pruning.criteria import CRITERIA, Criterion, Need
from edgeprune.pruning.oneshot import importance_of
from edgeprune.pruning.patterns import Pattern
from edgeprune.pruning.select import Selected


@torch.no_grad()
def error_curves(
    model: nn.Module,
    pattern: Pattern,
    *,
    criterion: str = "magnitude",
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Curves:
    """What zeros cost without measuring accuracy: the noise they make over the signal that stays.

    Of each layer, the sum of squares of the weights that go over that of those that stay. It rises slowly
    where small weights go and without end where a layer is emptied, which no sum over layers should hide.

    Args:
        model: any module.
        pattern: where zeros may be.
        criterion: a name in `CRITERIA`; it decides which weights go.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: the last sparsity.

    Raises:
        UserError: see `select`.
    """
    refuse_bounds(maximum, pattern)
    chosen, _ = fitting(model, pattern, maximum, layers)
    return _errors(chosen, pattern, criterion, maximum)


def _errors(chosen: Sequence[Selected], pattern: Pattern, criterion: str, maximum: float) -> Curves:
    of_weights(criterion)
    sparsities = np.append(np.arange(0, maximum - 1e-9, 0.05), maximum)
    loss = np.zeros((len(chosen), len(sparsities)))
    for row, selected in enumerate(chosen):
        weight = selected.layer.weight.detach().float()
        order = pattern.units(importance_of(selected, criterion, None)).flatten().argsort()
        squares = pattern.units(weight.square()).flatten()[order].double()
        # The sum of squares of the units that go, for any number of them.
        gone = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0).cpu()]).numpy()
        lost = gone[np.rint(sparsities * len(order)).astype(int)]
        loss[row] = lost / np.maximum(gone[-1] - lost, max(1e-6 * gone[-1], 1e-30))
    return Curves(tuple(s.name for s in chosen), tuple(float(s) for s in sparsities), loss)


def of_weights(name: str) -> Criterion:
    """A criterion that needs nothing but the weights.

    Raises:
        UserError: there is none of this name, or it needs more.
    """
    alone = [
        key
        for key, criterion in CRITERIA.items()
        if criterion.needs is Need.NOTHING and not criterion.whole_channels
    ]
    if name not in alone:
        raise UserError(
            f"criterion {name!r} does not rank weights by themselves: choose from {', '.join(alone)}"
        )
    return CRITERIA[name]


def curves_of(chosen: Sequence[Selected], pattern: Pattern, curves: Curves | None) -> Curves:
    """The given curves, if they are of every layer; without any, those of the weights' errors."""
    if curves is None:
        return _errors(chosen, pattern, "magnitude", 0.99)
    missing = [s.name for s in chosen if s.name not in curves.layers]
    if missing:
        raise UserError(f"no sensitivity was measured for {', '.join(missing[:3])}: measure every layer")
    return curves


def with_loss(allocation: Allocation, curves: Curves) -> Allocation:
    """The allocation with what the curves expect of it."""
    pairs = allocation.sparsities.items()
    loss = float(sum(curves.at(name, np.array([sparsity]))[0] for name, sparsity in pairs))
    return dataclasses.replace(allocation, loss=loss)
