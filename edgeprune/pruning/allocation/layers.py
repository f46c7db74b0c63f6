"""The layers that take part in an allocation, and the blocks that their weights are made of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import Block, NofM, Pattern, Unstructured
from edgeprune.pruning.select import Rule, Selected, select

# Above this a layer of a small network is all but cut through; what it costs is no longer on any curve.
MAXIMUM_SPARSITY = 0.95


def fitting(
    model: nn.Module, pattern: Pattern, sparsity: float, layers: Sequence[str] | None
) -> tuple[list[Selected], dict[str, str]]:
    """The layers that take part, and those that the pattern does not fit."""
    level = pattern.sparsity if isinstance(pattern, NofM) else sparsity
    names: Sequence[str | None] = [None] if layers is None else layers
    selected = select(model, [Rule(pattern, level, name) for name in names])
    fit = [s for s in selected if not s.reason]
    if not fit:
        raise UserError(f"no layer takes part: {pattern} fits none of {len(selected)}")
    return fit, {s.name: s.reason for s in selected if s.reason}


def refuse_bounds(maximum: float, pattern: Pattern) -> None:
    """Refuse a maximum or a pattern that nothing can be shared out with."""
    problems = []
    if not 0 < maximum < 1:
        problems.append(f"maximum sparsity {maximum:g} is not between 0 and 1: 0.95 means 95 % zeros")
    if not isinstance(pattern, (Unstructured, Block)):
        problems.append(f"{pattern}: only blocks and single weights can be allocated; the rest is uniform")
    if problems:
        raise UserError(problems)


def unit_count(selected: Selected, pattern: Pattern) -> int:
    """Blocks of a layer."""
    return int(pattern.units(selected.layer.weight.detach()).numel())


def most_units(units: int, maximum: float) -> int:
    """How many of so many blocks may be zero."""
    return int(maximum * units + 1e-9)


def weights(chosen: Sequence[Selected]) -> dict[str, int]:
    """Number of weights of each layer."""
    return {s.name: s.layer.weight.numel() for s in chosen}
