"""Training from pretrained weights: a new head first, then everything, the body more slowly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Transfer:
    """What of a model is new, and how gently the rest is trained.

    Attributes:
        head: names of the weights that start from nothing; none where all were loaded.
        freeze_epochs: first epochs in which only the head learns, where there is one.
        body_learning_rate: of all other weights, as a share of the head's, above 0 to 1.
    """

    head: tuple[str, ...] = ()
    freeze_epochs: int = 0
    body_learning_rate: float = 1.0

    def groups(self, model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Groups of parameters for an optimizer, the head's first; biases and batch norms do not decay."""
        parameters = dict(model.named_parameters())
        groups: list[dict[str, Any]] = []
        for is_head, rate in ((True, learning_rate), (False, learning_rate * self.body_learning_rate)):
            own = [value for name, value in parameters.items() if (name in self.head) is is_head]
            groups += [
                {"params": [p for p in own if p.ndim > 1], "weight_decay": weight_decay, "lr": rate},
                {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
            ]
        return [group for group in groups if group["params"]]

    def freeze(self, model: nn.Module, epoch: int) -> None:
        """Let only the head of `model` learn in the first epochs, counted from 0, and all of it later."""
        frozen = bool(self.head) and epoch < self.freeze_epochs
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen or name in self.head)
