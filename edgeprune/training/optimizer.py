"""What takes the steps of a training, and how large they are when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

from edgeprune.training.config import TrainConfig


def optimizer_of(groups: Sequence[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a training, for groups of parameters with their learning rates."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def schedule_of(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> Any:
    """The learning rates of so many steps; each group of the optimizer has its own peak."""
    if config.schedule == "cosine":
        warmup = round(config.warmup_fraction * steps)
        return lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, warmup, steps))
    return lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=config.warmup_fraction,
        # Which cycles a beta of AdamW; of SGD the momentum is a setting of its own.
        cycle_momentum=config.optimizer != "sgd",
    )


def cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0.

    >>> [round(cosine(step, 2, 6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
