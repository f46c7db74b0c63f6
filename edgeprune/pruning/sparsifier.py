"""Zeros that grow during training and stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.pruning.criteria import CRITERIA
from edgeprune.pruning.patterns import Pattern
from edgeprune.pruning.schedule import OneShot, Schedule
from edgeprune.pruning.select import Rule, Selected, select


class Sparsifier:
    """Prunes a model while it trains: call `step()` after every optimizer step, `finalize()` at the end.

    Masks follow the schedule, and every step puts pruned weights back to exactly zero, so that momentum
    cannot revive them. The model itself gets no hooks, buffers or parameters.

    >>> from edgeprune.pruning import Block, Cubic
    >>> model = nn.Linear(8, 4)
    >>> sparsifier = Sparsifier(model, [Rule(Block(1, 4), 0.5)], Cubic(steps=10))
    >>> for _ in range(11):
    ...     sparsifier.step()  # after optimizer.step()
    >>> sparsifier.finalize()
    {'': 0.5}

    Raises:
        UserError: whatever `select` refuses, or an unknown criterion.
    """

    def __init__(
        self, model: nn.Module, rules: Sequence[Rule], schedule: Schedule, *, criterion: str = "magnitude"
    ) -> None:
        if criterion not in CRITERIA:
            raise UserError(f"unknown criterion {criterion!r}: choose from {', '.join(CRITERIA)}")
        selected = select(model, rules)
        self.exceptions: dict[str, str] = {s.name: s.reason for s in selected if s.reason}
        self._layers: list[Selected] = [s for s in selected if not s.reason]
        self._schedule = schedule
        self._importance = CRITERIA[criterion]
        self._step = 0
        self._masks: list[Tensor] = []

    @property
    def sparsity(self) -> float:
        """The fraction of zeros the schedule asks for now, averaged over the pruned weights."""
        weights = sum(s.layer.weight.numel() for s in self._layers)
        final = sum(s.rule.sparsity * s.layer.weight.numel() for s in self._layers) / max(weights, 1)
        return final * self._schedule.progress(max(self._step - 1, 0))

    @torch.no_grad()
    def step(self) -> None:
        """Choose masks anew where the schedule says so, and zero what they drop."""
        if self._schedule.updates_at(self._step):
            self._choose(self._schedule.progress(self._step))
        self._step += 1
        self._apply()

    @torch.no_grad()
    def finalize(self) -> dict[str, float]:
        """Bring every layer to its full sparsity and return the achieved fraction of zeros of each."""
        if not self._masks or self._schedule.progress(max(self._step - 1, 0)) < 1:
            self._choose(1.0)
        self._apply()
        return {s.name: float((s.layer.weight == 0).float().mean()) for s in self._layers}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: the step and the masks."""
        return {"step": self._step, "masks": [mask.bool().cpu() for mask in self._masks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._step = state["step"]
        self._masks = [_like(s, mask) for mask, s in zip(state["masks"], self._layers, strict=False)]

    def _choose(self, progress: float) -> None:
        self._masks = [
            _like(s, s.rule.pattern.mask(self._importance(s.layer.weight), s.rule.sparsity * progress))
            for s in self._layers
        ]

    def _apply(self) -> None:
        if self._masks:
            torch._foreach_mul_([s.layer.weight.data for s in self._layers], self._masks)


def _like(selected: Selected, mask: Tensor) -> Tensor:
    """The mask in its weight's own type and layout: one fused multiplication then applies all of them."""
    return torch.empty_like(selected.layer.weight.data).copy_(mask)


def prune(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    criterion: str = "magnitude",
    layers: Sequence[str] | None = None,
) -> dict[str, float]:
    """Prune in one shot, in place.

    Args:
        model: any module.
        pattern: `Unstructured`, `Block` or `NofM`.
        sparsity: fraction of zeros, 0 to below 1.
        criterion: a name in `CRITERIA`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.

    Returns:
        The achieved fraction of zeros of each pruned layer.

    Raises:
        UserError: see `select`.

    >>> from edgeprune.pruning import Unstructured
    >>> layer = nn.Linear(4, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
    >>> prune(nn.Sequential(layer), Unstructured(), 0.25)
    {'0': 0.25}
    """
    rules = (
        [Rule(pattern, sparsity)] if layers is None else [Rule(pattern, sparsity, name) for name in layers]
    )
    return Sparsifier(model, rules, OneShot(), criterion=criterion).finalize()
