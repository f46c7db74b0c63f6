"""How many zeros each layer gets. Every way ends in one `Rule` a layer, for a `Sparsifier`.

    uniform             every layer alike
    erdos_renyi         small layers keep more: density by (out + in + kernel) / (out x in x kernel)
    by_multiplications  most zeros where a weight is used for the most pixels: for speed
    by_importance       one threshold for the whole model: what matters least goes ("global")
    by_sensitivity      measured or estimated loss of each layer decides, at a given overall sparsity

`limits` has those that look for the least loss at a size, a time or a number of multiplications.

Sparsity here is the share of zeros among the weights of the layers that take part. A layer that the pattern
does not divide takes no part and stays dense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from converters.layers import weighted_layers
from edgeprune.errors import UserError
from edgeprune.pruning.allocation.curves import curves_of, of_weights, with_loss
from edgeprune.pruning.allocation.layers import (
    MAXIMUM_SPARSITY,
    fitting,
    most_units,
    refuse_bounds,
    unit_count,
    weights,
)
from edgeprune.pruning.allocation.result import Allocation, Curves, Numbers
from edgeprune.pruning.allocation.search import BISECTIONS, Search
from edgeprune.pruning.oneshot import importance_of
from edgeprune.pruning.patterns import NofM, Pattern, smallest
from edgeprune.pruning.select import Selected


def uniform(
    model: nn.Module, pattern: Pattern, sparsity: float, *, layers: Sequence[str] | None = None
) -> Allocation:
    """Every layer to the same sparsity.

    Args:
        model: any module.
        pattern: where zeros may be.
        sparsity: fraction of zeros, 0 to below 1.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.

    Raises:
        UserError: see `select`.
    """
    chosen, left_dense = fitting(model, pattern, sparsity, layers)
    units = {s.name: unit_count(s, pattern) for s in chosen}
    whole = {
        name: sparsity if isinstance(pattern, NofM) else round(sparsity * count) / count
        for name, count in units.items()
    }
    return Allocation(pattern, whole, weights(chosen), left_dense)


def erdos_renyi(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """Densities in proportion to (out + in + kernel height + width) / (out * in * kernel height * width).

    Mocanu et al., 2018; with the kernel's sides, Evci et al., 2020. Layers that would be more than dense
    are dense, and the others give up the difference.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: see `select`; a sparsity above the maximum.

    >>> model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 64))
    >>> from edgeprune.pruning import Unstructured
    >>> erdos_renyi(model, Unstructured(), 0.75).sparsities
    {'0': 0.64453125, '1': 0.7763671875}
    """
    chosen, left_dense = fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    shapes = [tuple(s.layer.weight.shape) for s in chosen]
    share = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    counts = np.array([float(np.prod(shape)) for shape in shapes])

    def sparsities(scale: float) -> Numbers:
        return 1 - np.clip(scale * share, 1 - maximum, 1)

    # Zeros fall as the scale grows, from the maximum everywhere to none.
    low, high = 0.0, 1 / share.min()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = float((sparsities(middle) * counts).sum()) >= sparsity * counts.sum()
        low, high = (middle, high) if enough else (low, middle)
    return _allocation(pattern, chosen, left_dense, sparsities(low), sparsity, maximum)


def by_multiplications(
    model: nn.Module,
    example: torch.Tensor,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    spread: float = 0.1,
) -> Allocation:
    """Zeros where they save most: in the layers whose every weight multiplies the most pixels.

    For speed, not for accuracy: early layers have few weights and large maps. As many zeros in all, each
    layer within `spread` of the overall sparsity; among those, the fewest multiplications are left (a
    continuous knapsack: layers are filled in the order of their pixels).

    Args:
        model: in eval mode.
        example: (1, 3, h, w); the image size decides how often a weight is used.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to below 1.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        spread: how far a layer may be from the overall sparsity, 0 to 1.

    Raises:
        UserError: see `select`; a sparsity and a spread that leave [0, 1).
    """
    chosen, left_dense = fitting(model, pattern, sparsity, layers)
    low, high = sparsity - spread, sparsity + spread
    if spread < 0 or low < 0:
        raise UserError(f"sparsity {sparsity:g} and spread {spread:g}: layers would have {low:g} to {high:g}")
    _refuse_above(high, high, pattern)
    counts = np.array([float(s.layer.weight.numel()) for s in chosen])
    used = {layer.name: layer.uses for layer in weighted_layers(model, example)}
    uses = np.array([float(used.get(s.name, 0)) for s in chosen])
    wanted = np.full(len(chosen), low)
    spare = (sparsity - low) * counts.sum()
    for index in np.argsort(-uses, kind="stable"):
        given = min(spare, (high - low) * counts[index])
        wanted[index] += given / counts[index]
        spare -= given
    return _allocation(pattern, chosen, left_dense, wanted, sparsity, high)


def by_importance(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
    criterion: str = "magnitude",
) -> Allocation:
    """One threshold for the whole model: the blocks that matter least go, wherever they lie ("global").

    Weights of different layers are on one scale here; a criterion that allows for that, such as LAMP
    (Lee et al., 2021), is the better choice.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.
        criterion: a name in `CRITERIA`.

    Raises:
        UserError: see `select`; a sparsity above the maximum, an unknown criterion.
    """
    of_weights(criterion)
    chosen, left_dense = fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    scores = [pattern.units(importance_of(s, criterion, None)).flatten().clone() for s in chosen]
    for layer in scores:  # What the maximum protects is out of reach.
        protected = len(layer) - most_units(len(layer), maximum)
        layer[layer.topk(protected).indices] = torch.inf
    units = [len(layer) for layer in scores]
    drop = smallest(torch.cat(scores), _total_units(sparsity, units, maximum))
    dropped = [int(part.sum()) for part in torch.split(drop, units)]
    sparsities = {s.name: d / u for s, d, u in zip(chosen, dropped, units, strict=True)}
    return Allocation(pattern, sparsities, weights(chosen), left_dense)


def by_sensitivity(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    curves: Curves | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss at an overall sparsity.

    Losses of layers are added up, and a Lagrange multiplier, the loss that one more zero may cost, is
    bisected: at a given multiplier each layer decides for itself.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: see `select`; a sparsity above the maximum, a layer without a curve.
    """
    chosen, left_dense = fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    curves = curves_of(chosen, pattern, curves)
    counts = np.array([float(s.layer.weight.numel()) for s in chosen])
    search = Search(
        [s.name for s in chosen], curves, maximum, lambda grid: (1 - grid)[None, :] * counts[:, None]
    )
    found = search.within(
        lambda sparsities: float(((1 - sparsities) * counts).sum() / max(counts.sum(), 1) / (1 - sparsity))
    )
    allocation = _allocation(pattern, chosen, left_dense, found, sparsity, maximum)
    return with_loss(allocation, curves)


def _refuse_above(sparsity: float, maximum: float, pattern: Pattern) -> None:
    refuse_bounds(maximum, pattern)
    if sparsity > maximum:
        raise UserError(f"sparsity {sparsity:g} is above the maximum of any layer, {maximum:g}")


def _allocation(
    pattern: Pattern,
    chosen: Sequence[Selected],
    left_dense: Mapping[str, str],
    wanted: Numbers,
    sparsity: float,
    maximum: float,
) -> Allocation:
    """Whole blocks near the wanted sparsities, whose sum is that of the overall sparsity to one block."""
    units = [unit_count(s, pattern) for s in chosen]
    counts = _whole(np.array([w * u for w, u in zip(wanted, units, strict=True)]), units, sparsity, maximum)
    sparsities = {s.name: c / u for s, c, u in zip(chosen, counts, units, strict=True)}
    return Allocation(pattern, sparsities, weights(chosen), left_dense)


def _whole(wanted: Numbers, units: Sequence[int], sparsity: float, maximum: float) -> list[int]:
    """Round so that the sum is right: the largest remainders are rounded up first."""
    most = np.array([most_units(u, maximum) for u in units])
    counts = np.minimum(np.floor(wanted + 1e-9).astype(np.int64), most)
    missing = _total_units(sparsity, units, maximum) - int(counts.sum())
    while missing:
        step = 1 if missing > 0 else -1
        room = (counts < most) if step > 0 else (counts > 0)
        order = [i for i in np.argsort(-step * (wanted - counts), kind="stable") if room[i]]
        for index in order[: abs(missing)]:
            counts[index] += step
        missing -= step * min(len(order), abs(missing))
    return [int(count) for count in counts]


def _total_units(sparsity: float, units: Sequence[int], maximum: float) -> int:
    return min(round(sparsity * sum(units)), sum(most_units(u, maximum) for u in units))
