"""The least expected loss within limits: bytes of files, time on runtimes, multiplications.

    to_budget   files of at most so many bytes
    to_time     at most such a share of the dense file's time, and of bytes where that is asked for too
    to_macs     at most such a share of the dense model's multiplications

Each limit says what every layer costs at any sparsity, as a share of what may be had; shares of several
limits are added up, one multiplier weighs them against the loss, and all limits must be met.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from converters.layers import weighted_layers
from converters.runtimes.latency import TimeModel
from converters.sizes import SizeModel
from edgeprune.errors import UserError
from edgeprune.models.cost import count_macs
from edgeprune.pruning.allocation.curves import curves_of, with_loss
from edgeprune.pruning.allocation.layers import (
    MAXIMUM_SPARSITY,
    fitting,
    most_units,
    refuse_bounds,
    unit_count,
    weights,
)
from edgeprune.pruning.allocation.result import Allocation, Curves, Numbers
from edgeprune.pruning.allocation.search import Search
from edgeprune.pruning.patterns import Block, Pattern
from edgeprune.pruning.select import Selected

# The size model is exact to 1 % of the file: aim below the budget by as much.
SIZE_MARGIN = 0.01


class Limit(Protocol):
    """What may be had of one thing that zeros save."""

    def shares(self, grid: Numbers) -> Numbers:
        """What each layer costs at each sparsity, as a share of the limit: (layers, grid)."""

    def fullness(self, sparsities: Numbers) -> float:
        """What the whole model costs, as a share of the limit, for (layers,) sparsities."""

    def impossible(self, sparsities: Numbers) -> str:
        """The limit cannot be met, and these sparsities are the nearest to it."""


class BytesLimit:
    """The size of one target's file."""

    def __init__(self, model: SizeModel, chosen: Sequence[Selected], pattern: Pattern, budget: int) -> None:
        places = {layer.name: index for index, layer in enumerate(model.layers)}
        counts = {layer.name: int(np.prod(layer.shape)) for layer in model.layers}
        missing = [s.name for s in chosen if counts.get(s.name) != s.layer.weight.numel()]
        if missing:
            raise UserError(
                f"the size model of {model.target.name} knows no layer {missing[0]!r} of this size: "
                "calibrate it with a conversion of this very model"
            )
        self._model, self._budget = model, budget
        self._places = [places[s.name] for s in chosen]
        self._block = (pattern.out, pattern.in_) if isinstance(pattern, Block) else (1, 1)

    def bytes(self, sparsities: Numbers) -> int:
        """Of the file."""
        return int(self._model.bytes(self._kept(sparsities), self._block))

    def shares(self, grid: Numbers) -> Numbers:
        """Bytes of each layer's weight."""
        sparsities = np.broadcast_to(grid[:, None], (len(grid), len(self._places)))
        stored = self._model.layer_bytes(self._kept(sparsities), self._block)
        return np.asarray(stored[:, self._places].T / self._budget)

    def fullness(self, sparsities: Numbers) -> float:
        """Bytes of the file."""
        return self.bytes(sparsities) / (self._budget * (1 - SIZE_MARGIN))

    def impossible(self, sparsities: Numbers) -> str:
        """With the smallest file that there is."""
        return (
            f"{self._model.target.name}: {self._budget:,} bytes cannot be met: the smallest file is about "
            f"{self.bytes(sparsities) / (1 - SIZE_MARGIN):,.0f} bytes"
        )

    def _kept(self, sparsities: Numbers) -> Numbers:
        kept = np.broadcast_to(self._model.counts, (*sparsities.shape[:-1], len(self._model.layers))).copy()
        kept[..., self._places] *= 1 - sparsities
        return kept


class TimeLimit:
    """The predicted time on one runtime, as a share of the dense file's.

    Zeros in layers that its sparse kernels do not run (the classifier, most often) save nothing.
    """

    def __init__(self, model: TimeModel, chosen: Sequence[Selected], left: float) -> None:
        counts = dict(zip(model.layers, model.counts, strict=True))
        wrong = [
            s.name for s in chosen if counts.get(s.name, s.layer.weight.numel()) != s.layer.weight.numel()
        ]
        if wrong:
            raise UserError(
                f"the time model of {model.runtime} knows no layer {wrong[0]!r} of this size: "
                "make it from a conversion of this very model"
            )
        self._model, self._left = model, left
        places = {name: index for index, name in enumerate(model.layers)}
        self._count = len(chosen)
        self._rows = [row for row, s in enumerate(chosen) if s.name in places]
        self._places = [places[chosen[row].name] for row in self._rows]

    def fraction(self, sparsities: Numbers) -> float:
        """Of the dense file's time."""
        kept = self._model.counts.copy()
        kept[self._places] *= 1 - sparsities[self._rows]
        return float(self._model.milliseconds(kept)) / self._model.dense_ms

    def shares(self, grid: Numbers) -> Numbers:
        """Time that each layer's weights take on sparse kernels."""
        found = np.zeros((self._count, len(grid)))
        full_ms = (self._model.counts * self._model.per_kept_ms)[self._places]
        found[self._rows] = full_ms[:, None] * (1 - grid) / (self._left * self._model.dense_ms)
        return found

    def fullness(self, sparsities: Numbers) -> float:
        """Time of the file."""
        return self.fraction(sparsities) / self._left

    def impossible(self, sparsities: Numbers) -> str:
        """With the shortest time that there is."""
        return (
            f"{self._model.runtime}: {self._left:.0%} of the dense time cannot be met: the least is "
            f"{self.fraction(sparsities):.0%}"
        )


class MacsLimit:
    """The multiplications of one image, as a share of the dense model's."""

    def __init__(
        self, model: nn.Module, example: torch.Tensor, chosen: Sequence[Selected], left: float
    ) -> None:
        used = {layer.name: layer.uses for layer in weighted_layers(model, example)}
        total = count_macs(model, example)
        # (layers,), shares of the dense model's.
        self._own = np.array([used.get(s.name, 0) * s.layer.weight.numel() / total for s in chosen])
        self._left = left

    def fraction(self, sparsities: Numbers) -> float:
        """Of the dense model's multiplications."""
        return float(1 - self._own @ sparsities)

    def shares(self, grid: Numbers) -> Numbers:
        """Multiplications of each layer."""
        return self._own[:, None] * (1 - grid) / self._left

    def fullness(self, sparsities: Numbers) -> float:
        """Multiplications of the model."""
        return self.fraction(sparsities) / self._left

    def impossible(self, sparsities: Numbers) -> str:
        """With the fewest that there are."""
        return (
            f"{self._left:.0%} of the multiplications cannot be left: the least is "
            f"{self.fraction(sparsities):.0%}; what zeros do not reach (the first layer, depthwise) stays"
        )


def to_budget(
    model: nn.Module,
    pattern: Pattern,
    budgets: Mapping[str, int],
    sizes: Mapping[str, SizeModel],
    *,
    curves: Curves | None = None,
    most_loss: float | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss whose files have at most so many bytes.

    The same search as `by_sensitivity`, on the bytes that zeros save rather than on their number: the first
    zeros of a layer save nothing where a mask or indices must be stored for them. With several targets, bytes
    count as shares of each one's budget, and all must be met. The files come out between 97 and 100 % of the
    budget that is hardest to meet; where the dense file is smaller than that, nothing is pruned.

    Args:
        model: the model that `sizes` was calibrated with, dense.
        pattern: where zeros may be; not N of M, which has one sparsity.
        budgets: bytes by target.
        sizes: the size model of each of these targets (`converters.sizes.calibrated`).
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        most_loss: expected loss that is accepted, in the unit of the curves; None: any.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: a budget that cannot be met, with the smallest that can; see `select`; a layer without a
            curve; a target without a size model.
    """
    refuse_bounds(maximum, pattern)
    _refuse_budgets(budgets, sizes)
    chosen, left_dense = fitting(model, pattern, maximum, layers)
    files = _files(budgets, sizes, chosen, pattern)
    found = _within(chosen, pattern, list(files.values()), curves, maximum, most_loss)
    return _told(pattern, chosen, left_dense, found, curves, bytes=_predicted(files, found))


def to_time(
    model: nn.Module,
    pattern: Pattern,
    left: Mapping[str, float],
    times: Mapping[str, TimeModel],
    *,
    budgets: Mapping[str, int] | None = None,
    sizes: Mapping[str, SizeModel] | None = None,
    curves: Curves | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss that take at most such a share of the dense time.

    Zeros go where they save time, not where there are many weights. A runtime takes its sparse kernels only
    where more than two thirds of the weights they run are zero, so that there is nothing in between.

    Args:
        model: the model that `times` was made from, dense.
        pattern: where zeros may be; not N of M, which has one sparsity.
        left: share of the dense file's time that stays, by runtime, above 0 and below 1.
        times: the time model of each of these runtimes (`converters.runtimes.latency.time_model`).
        budgets: bytes by target that must be met as well.
        sizes: the size model of each of these targets.
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: a time or budget that cannot be met, with the least that can; see `select`; a layer
            without a curve; a runtime without a time model.
    """
    refuse_bounds(maximum, pattern)
    problems = [] if left else ["no time: give the share that stays for one runtime or more"]
    problems += [
        _not_a_share(f"time on {runtime}", share) for runtime, share in left.items() if not 0 < share < 1
    ]
    problems += [f"time on {runtime}: no time model for it" for runtime in left if runtime not in times]
    if problems:
        raise UserError(problems)
    if budgets:
        _refuse_budgets(budgets, sizes or {})
    chosen, left_dense = fitting(model, pattern, maximum, layers)
    limits = {runtime: TimeLimit(times[runtime], chosen, share) for runtime, share in left.items()}
    files = _files(budgets or {}, sizes or {}, chosen, pattern)
    found = _within(chosen, pattern, [*limits.values(), *files.values()], curves, maximum)
    fractions = {runtime: limit.fraction(found) for runtime, limit in limits.items()}
    return _told(
        pattern, chosen, left_dense, found, curves, bytes=_predicted(files, found), time_fractions=fractions
    )


def to_macs(
    model: nn.Module,
    example: torch.Tensor,
    pattern: Pattern,
    left: float,
    *,
    curves: Curves | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss that leave at most such a share of the multiplications.

    Args:
        model: dense, in eval mode.
        example: (1, 3, h, w); the image size decides how often a weight is used.
        pattern: where zeros may be; not N of M, which has one sparsity.
        left: share of the model's multiplications that stays, above 0 and below 1; those of layers that get
            no zeros are counted.
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: a share that cannot be met, with the least that can; see `select`; a layer without a curve.
    """
    refuse_bounds(maximum, pattern)
    if not 0 < left < 1:
        raise UserError(_not_a_share("multiplications", left))
    chosen, left_dense = fitting(model, pattern, maximum, layers)
    limit = MacsLimit(model, example, chosen, left)
    found = _within(chosen, pattern, [limit], curves, maximum)
    return _told(pattern, chosen, left_dense, found, curves, macs_fraction=limit.fraction(found))


def _not_a_share(what: str, share: float) -> str:
    return f"{what}: {share:g} left is not between 0 and 1: 0.4 leaves 40 % of the dense model's"


def _files(
    budgets: Mapping[str, int], sizes: Mapping[str, SizeModel], chosen: Sequence[Selected], pattern: Pattern
) -> dict[str, BytesLimit]:
    return {target: BytesLimit(sizes[target], chosen, pattern, wanted) for target, wanted in budgets.items()}


def _predicted(files: Mapping[str, BytesLimit], sparsities: Numbers) -> dict[str, int]:
    return {target: file.bytes(sparsities) for target, file in files.items()}


def _within(
    chosen: Sequence[Selected],
    pattern: Pattern,
    limits: Sequence[Limit],
    curves: Curves | None,
    maximum: float,
    most_loss: float | None = None,
) -> Numbers:
    """Sparsities of whole blocks, (layers,), with the least loss within all limits."""
    curves = curves_of(chosen, pattern, curves)

    def cost(grid: Numbers) -> Numbers:
        return np.asarray(np.sum([limit.shares(grid) for limit in limits], axis=0))

    units = np.array([unit_count(s, pattern) for s in chosen])
    most = np.array([most_units(u, maximum) for u in units])

    def whole(sparsities: Numbers) -> Numbers:
        """Of whole blocks, upwards: a limit may be undercut, not passed."""
        return np.asarray(np.clip(np.ceil(sparsities * units - 1e-9), 0, most) / units)

    search = Search([s.name for s in chosen], curves, maximum, cost)
    maximal = whole(search.maximal())
    full = [limit for limit in limits if limit.fullness(maximal) > 1]
    _refuse_impossible(full, maximal, f"with {maximum:.0%} zeros in every layer")
    found = search.within(lambda sparsities: max(limit.fullness(whole(sparsities)) for limit in limits))
    if most_loss is not None and search.loss(found) > most_loss:
        condition = f"at an expected loss of at most {most_loss:g}"
        _refuse_impossible(limits, search.least_cost(most_loss), condition)
    return whole(found)


def _told(
    pattern: Pattern,
    chosen: Sequence[Selected],
    left_dense: Mapping[str, str],
    found: Numbers,
    curves: Curves | None,
    **predicted: object,
) -> Allocation:
    sparsities = {s.name: float(f) for s, f in zip(chosen, found, strict=True)}
    allocation = Allocation(pattern, sparsities, weights(chosen), left_dense)
    allocation = with_loss(allocation, curves_of(chosen, pattern, curves))
    return dataclasses.replace(allocation, **predicted)  # type: ignore[arg-type]


def _refuse_budgets(budgets: Mapping[str, int], sizes: Mapping[str, SizeModel]) -> None:
    problems = [] if budgets else ["no budget: give bytes for one target or more"]
    problems += [
        f"budget for {target}: {wanted:,} bytes" for target, wanted in budgets.items() if wanted <= 0
    ]
    problems += [f"budget for {target}: no size model for it" for target in budgets if target not in sizes]
    if problems:
        raise UserError(problems)


def _refuse_impossible(limits: Sequence[Limit], sparsities: Numbers, condition: str) -> None:
    if limits:
        raise UserError([f"{limit.impossible(sparsities)}, {condition}" for limit in limits])
