"""Zeros that grow during training and stay."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.pruning.criteria import Need, criterion_named
from edgeprune.pruning.oneshot import importance_of, masks_of, noise, refuse_unfit, zero_fraction
from edgeprune.pruning.schedule import Schedule
from edgeprune.pruning.select import Rule, Selected, select

IN_TRAINING = (Need.NOTHING, Need.NOISE, Need.GRADIENTS, Need.MOVEMENT)


class Sparsifier:
    """Prunes a model while it trains: call `step()` after every optimizer step, `finalize()` at the end.

    Masks follow the schedule, and every step puts pruned weights back to exactly zero, so that momentum
    cannot revive them. What is pruned stays pruned. The model itself gets no hooks, buffers or parameters.

    With `regrow`, what the optimizer makes of pruned weights is kept aside instead, and they are ranked by
    it: one that has grown takes the place of one that shrank, whenever masks are chosen (dynamic pruning
    with feedback, Lin et al., ICLR 2020). After the last choice they are gone as well. While an optimizer
    steps, what is aside is back in its place, so that weight decay reaches it like any other weight:
    gradients are those of the pruned model, updates those of the whole one, as in the paper.

    "lamp" compares layers: the layers of one rule share its sparsity (see `masks_of`).

    Criteria that look at gradients ("movement", "taylor", "snip") take them from the weights' `.grad` at
    every `step()`: call it before they are cleared. "movement" adds up over the whole training, the others
    since masks were last chosen.

    Examples:
        >>> from edgeprune.pruning import Block, Cubic
        >>> model = nn.Linear(8, 4)
        >>> sparsifier = Sparsifier(model, [Rule(Block(1, 4), 0.5)], Cubic(steps=10))
        >>> for _ in range(11):
        ...     sparsifier.step()  # after optimizer.step()
        >>> sparsifier.finalize()
        {'': 0.5}

    Raises:
        UserError: whatever `select` refuses; an unknown criterion, or one that needs calibration images.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[Rule],
        schedule: Schedule,
        *,
        criterion: str = "magnitude",
        regrow: bool = False,
        seed: int = 0,
    ) -> None:
        self._criterion = criterion_named(criterion)
        if self._criterion.needs not in IN_TRAINING:
            raise UserError(
                f"criterion {criterion!r} needs calibration images, which a Sparsifier does not see: "
                f"prune(model, pattern, sparsity, criterion={criterion!r}, calibration=...)"
            )
        selected = select(model, rules)
        self.exceptions: dict[str, str] = {s.name: s.reason for s in selected if s.reason}
        self._layers: list[Selected] = [s for s in selected if not s.reason]
        refuse_unfit(self._layers, criterion)
        self._schedule = schedule
        self._name = criterion
        self._seed = seed
        self._step = 0
        self._masks: list[Tensor] = []
        self._regrowing = regrow
        # While regrowing: pruned weights as the optimizer moved them, 0 elsewhere.
        self._aside: list[Tensor] = []
        self._aside_is_in = False  # While the optimizer steps.
        self._unhook = _before_steps(self) if regrow else lambda: None
        self._gathered: list[Tensor] = []
        self._gathered_steps = 0
        self._gather_anew = True

    @property
    def sparsity(self) -> float:
        """The fraction of zeros the schedule asks for now, averaged over the pruned weights."""
        weights = sum(s.layer.weight.numel() for s in self._layers)
        final = sum(s.rule.sparsity * s.layer.weight.numel() for s in self._layers) / max(weights, 1)
        return final * self._schedule.progress(max(self._step - 1, 0))

    @property
    def is_complete(self) -> bool:
        """Whether the schedule asks for all zeros."""
        return self._schedule.progress(max(self._step - 1, 0)) >= 1

    @torch.no_grad()
    def step(self) -> None:
        """Choose masks again where the schedule says so, and zero what they drop.

        Raises:
            UserError: gradients that the criterion needs are missing or not finite, by layer.
        """
        self._follow_weights()
        chooses = self._schedule.updates_at(self._step)
        if chooses or self._regrowing or self._criterion.gather is not None:
            self._settle()
        if self._criterion.gather is not None:
            self._gather(self._criterion.gather)
        if chooses:
            self._choose(self._schedule.progress(self._step))
        self._step += 1
        self._apply()

    @torch.no_grad()
    def finalize(self) -> dict[str, float]:
        """Bring every layer to its full sparsity and return the achieved fraction of zeros of each.

        Raises:
            UserError: masks must still be chosen, and the criterion has seen no step.
        """
        self._follow_weights()
        # Not `_settle`: whatever replaced the weights meanwhile, an average of them, holds a part of what is
        # aside already.
        self._apply(again=False)
        if not self._masks or self._schedule.progress(max(self._step - 1, 0)) < 1:
            if self._aside:
                torch._foreach_add_([s.layer.weight.data for s in self._layers], self._aside)
            self._choose(1.0)
        self._end_regrowing()
        self._apply()
        return {s.name: zero_fraction(s.layer.weight) for s in self._layers}

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here: the step, the masks, what was gathered."""
        return {
            "step": self._step,
            "masks": [mask.bool().cpu() for mask in self._masks],
            "regrowing": self._regrowing,
            "aside": [tensor.cpu().clone() for tensor in self._aside],
            "gathered": [tensor.cpu().clone() for tensor in self._gathered],
            "gathered_steps": self._gathered_steps,
            "gather_anew": self._gather_anew,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._step = state["step"]
        self._masks = [_like(s, mask) for mask, s in zip(state["masks"], self._layers, strict=False)]
        self._aside, self._gathered = (
            [
                tensor.clone().to(s.layer.weight.device)
                for tensor, s in zip(state.get(kept, []), self._layers, strict=False)
            ]
            for kept in ("aside", "gathered")
        )
        self._regrowing = state.get("regrowing", False)
        self._gathered_steps = state.get("gathered_steps", 0)
        self._gather_anew = state.get("gather_anew", True)

    def _gather(self, gather: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add what this step's gradients tell."""
        missing = [s.name for s in self._layers if s.layer.weight.grad is None]
        if missing:
            raise UserError(
                f"criterion {self._name!r} needs gradients, and layer {missing[0]!r} has none: call step() "
                "after backward() and optimizer.step(), before zero_grad()"
            )
        new = [
            gather(s.layer.weight.detach().float(), s.layer.weight.grad.float())
            for s in self._layers
            if s.layer.weight.grad is not None
        ]
        if self._gather_anew:
            self._gathered, self._gathered_steps, self._gather_anew = new, 1, False
        else:
            torch._foreach_add_(self._gathered, new)
            self._gathered_steps += 1

    def _choose(self, progress: float) -> None:
        importances = [
            importance_of(s, self._name, statistic)
            for s, statistic in zip(self._layers, self._statistics(), strict=True)
        ]
        masks = masks_of(self._layers, self._name, importances, progress)
        self._masks = [_like(s, mask) for s, mask in zip(self._layers, masks, strict=True)]
        # A weight's movement is its whole history; the other gradients tell of the weights as they are.
        self._gather_anew = self._criterion.needs is Need.GRADIENTS
        if progress >= 1:
            self._end_regrowing()

    def _end_regrowing(self) -> None:
        self._regrowing, self._aside, self._aside_is_in = False, [], False
        self._unhook()

    def put_aside_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Before a step of the optimizer that moves these weights: what is aside goes back to its place."""
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if self._aside and not self._aside_is_in and any(id(s.layer.weight) in moved for s in self._layers):
            self._follow_weights()
            torch._foreach_add_([s.layer.weight.data for s in self._layers], self._aside)
            self._aside_is_in = True

    def _follow_weights(self) -> None:
        """Whatever is kept goes where the model went, to its device and type."""
        for kept in (self._masks, self._aside, self._gathered):
            for index, (tensor, s) in enumerate(zip(kept, self._layers, strict=False)):
                weight = s.layer.weight
                dtype = tensor.dtype if kept is self._gathered else weight.dtype
                if tensor.device != weight.device or tensor.dtype != dtype:
                    kept[index] = tensor.to(weight.device, dtype)

    def _statistics(self) -> Sequence[Tensor | None]:
        if self._criterion.needs is Need.NOISE:
            return list(noise({s.name: s.layer for s in self._layers}, self._seed).values())
        if self._criterion.gather is None:
            return [None] * len(self._layers)
        if not self._gathered:
            raise UserError(f"criterion {self._name!r} has seen no training step: call step() first")
        return [total / self._gathered_steps for total in self._gathered]

    def _settle(self) -> None:
        """Undo what the optimizer did to pruned weights; while they may regrow, take it up instead."""
        if self._aside_is_in:
            self._aside_is_in = False
        elif self._aside:
            torch._foreach_add_([s.layer.weight.data for s in self._layers], self._aside)
        else:
            self._apply()

    def _apply(self, *, again: bool = True) -> None:
        """Zero what masks drop; while it may regrow, put it aside `again`."""
        if not self._masks:
            return
        weights = [s.layer.weight.data for s in self._layers]
        if self._regrowing and again:
            kept = torch._foreach_mul(weights, self._masks)
            self._aside = list(torch._foreach_sub(weights, kept))
            torch._foreach_copy_(weights, kept)
        else:
            torch._foreach_mul_(weights, self._masks)


def _before_steps(sparsifier: Sparsifier) -> Callable[[], None]:
    """Let a sparsifier know before any optimizer steps, as long as there is the sparsifier; how to stop."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    known = weakref.ref(sparsifier)

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        living = known()
        if living is not None:
            with torch.no_grad():
                living.put_aside_in(optimizer)

    handle = register_optimizer_step_pre_hook(before)
    weakref.finalize(sparsifier, handle.remove)
    return handle.remove


def _like(selected: Selected, mask: Tensor) -> Tensor:
    """The mask in its weight's own type and layout: one fused multiplication then applies all of them."""
    return torch.empty_like(selected.layer.weight.data).copy_(mask)
