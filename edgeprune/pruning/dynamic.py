"""Sparse from the first step, with zeros that move: RigL (Evci et al., 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import NofM, Pattern
from edgeprune.pruning.select import Rule, Selected, select


class RigL:
    """Trains sparse from scratch: now and then the smallest blocks go and others with large gradients come.

    Stands where a `Sparsifier` does: `step()` after every optimizer step, before gradients are cleared, and
    `finalize()` at the end. The number of blocks of each layer never changes; those that come start at zero.
    The share that moves falls from `share` to nothing along a cosine, over the first `until` of the steps.

    >>> from edgeprune.pruning import Block
    >>> model = nn.Linear(16, 8)
    >>> rigl = RigL(model, [Rule(Block(1, 4), 0.75)], steps=100, every=10)
    >>> float((model.weight == 0).float().mean())
    0.75

    Args:
        model: freshly made; its zeros are put in at once, at random places.
        rules: sparsities that are kept throughout; `allocation.erdos_renyi(...).rules` is the paper's choice.
        steps: optimizer steps of the whole training.
        every: steps from one move to the next.
        share: of a layer's blocks that the first move replaces.
        until: share of the training after which nothing moves.
        seed: of the first places.

    Raises:
        UserError: whatever `select` refuses; N of M; invalid numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[Rule],
        *,
        steps: int,
        every: int = 100,
        share: float = 0.3,
        until: float = 0.75,
        seed: int = 0,
    ) -> None:
        _refuse(rules, steps, every, share, until)
        selected = select(model, rules)
        self.exceptions: dict[str, str] = {s.name: s.reason for s in selected if s.reason}
        self._layers: list[Selected] = [s for s in selected if not s.reason]
        self._last = until * steps
        self._every, self._share = every, share
        self._step = 0
        generator = torch.Generator().manual_seed(seed)
        self._masks = [_at_random(s, generator) for s in self._layers]
        with torch.no_grad():
            self._apply()

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, averaged over the pruned weights; it never changes."""
        weights = sum(s.layer.weight.numel() for s in self._layers)
        return sum(s.rule.sparsity * s.layer.weight.numel() for s in self._layers) / max(weights, 1)

    @torch.no_grad()
    def step(self) -> None:
        """Move blocks where it is time to, and zero what is not kept.

        Raises:
            UserError: gradients were cleared before this call.
        """
        self._step += 1
        if self._step % self._every == 0 and self._step < self._last:
            self._follow_weights()
            share = moving_share(self._share, self._step / self._last)
            for index, (selected, mask) in enumerate(zip(self._layers, self._masks, strict=True)):
                gradient = selected.layer.weight.grad
                if gradient is None:
                    raise UserError(
                        f"layer {selected.name!r} has no gradient: call step() after backward() and before "
                        "zero_grad()"
                    )
                self._masks[index] = moved(
                    selected.rule.pattern, selected.layer.weight * mask, gradient, mask, share
                )
                # What comes starts at zero, whatever the optimizer made of it meanwhile.
                selected.layer.weight.data.mul_(mask)
        self._apply()

    @torch.no_grad()
    def finalize(self) -> dict[str, float]:
        """Return the achieved fraction of zeros of each layer."""
        self._apply()
        return {s.name: float((s.layer.weight == 0).double().mean()) for s in self._layers}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: the step and the masks."""
        return {"step": self._step, "masks": [mask.cpu() for mask in self._masks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._step = state["step"]
        self._masks = [
            mask.to(s.layer.weight.device) for mask, s in zip(state["masks"], self._layers, strict=True)
        ]

    def _follow_weights(self) -> None:
        """Masks go where the model went."""
        self._masks = [m.to(s.layer.weight.device) for m, s in zip(self._masks, self._layers, strict=True)]

    def _apply(self) -> None:
        self._follow_weights()
        for selected, mask in zip(self._layers, self._masks, strict=True):
            selected.layer.weight.data.mul_(mask)


def moving_share(share: float, progress: float) -> float:
    """The share that moves at a `progress` of 0 to 1: along a cosine from `share` to 0.

    >>> [round(moving_share(0.3, progress), 3) for progress in (0, 0.5, 1)]
    [0.3, 0.15, 0.0]
    """
    return share / 2 * (1 + math.cos(math.pi * progress))


def moved(pattern: Pattern, weight: Tensor, gradient: Tensor, mask: Tensor, share: float) -> Tensor:
    """The mask after one move: `share` of what it keeps goes, by magnitude, and as much comes, by gradient.

    What goes may come back at once, where its gradient is among the largest.

    Args:
        pattern: of the mask.
        weight: zero where the mask is.
        gradient: of all weights, those that are zero too.
        mask: True where kept, in whole blocks.
        share: 0 to 1.

    >>> from edgeprune.pruning import Unstructured
    >>> weight = torch.tensor([[4.0, 3.0, 2.0, 1.0], [0, 0, 0, 0]])
    >>> gradient = torch.tensor([[0.0, 0, 0, 1], [0, 9, 0, 8]])
    >>> moved(Unstructured(), weight, gradient, weight != 0, share=0.5)
    tensor([[ True,  True, False, False],
            [False,  True, False,  True]])
    """
    kept = pattern.units(mask.float()).flatten() > 0
    moving = round(share * int(kept.sum()))
    if not moving:
        return mask
    magnitude = pattern.units(weight.detach().float().abs())
    # Where nothing is kept ranks below the smallest that is, zeros among the kept too.
    ranked = torch.where(kept.view(magnitude.shape), magnitude, -1.0).flatten()
    staying = torch.zeros_like(kept)
    staying[ranked.argsort(descending=True, stable=True)[: int(kept.sum()) - moving]] = True
    growth = pattern.units(gradient.detach().float().abs()).flatten()
    growth = growth.masked_fill(staying, -1.0)
    staying[growth.argsort(descending=True, stable=True)[:moving]] = True
    return pattern.spread(staying.view(magnitude.shape), weight.shape)


def _at_random(selected: Selected, generator: torch.Generator) -> Tensor:
    weight = selected.layer.weight
    chance = torch.rand(weight.shape, generator=generator).to(weight.device)
    return selected.rule.pattern.mask(chance, selected.rule.sparsity)


def _refuse(rules: Sequence[Rule], steps: int, every: int, share: float, until: float) -> None:
    checks = [
        (steps >= 1 and every >= 1, f"{steps} steps, a move every {every}: both must be 1 or more"),
        (0 < share <= 1, f"moving share {share:g}: above 0 to 1"),
        (0 < until <= 1, f"moves until {until:g} of the training: above 0 to 1"),
        (
            not any(isinstance(rule.pattern, NofM) for rule in rules),
            "N of M leaves no room to move: choose blocks or single weights",
        ),
    ]
    problems = [message for fine, message in checks if not fine]
    if problems:
        raise UserError(problems)
