"""Training of an early exit's head alone: the model that it is part of stays as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.models.early_exit import Halves
from edgeprune.training.recover import soft_divergence

LEARNING_RATE, WEIGHT_DECAY = 5e-3, 0.01
WARM_UP = 0.1  # Share of the steps in which the learning rate grows.


@dataclass(frozen=True)
class Seen:
    """A batch as the head learns from it.

    Attributes:
        features: (n, channels, rows, columns) that the front gives.
        answers: (n, classes) of the whole model.
        labels: (n,) int64.
    """

    features: Tensor
    answers: Tensor
    labels: Tensor


def seen(halves: Halves, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Seen]:
    """Run both halves, without gradients, on batches of images, as the model takes them, and labels."""
    for images, labels in batches:
        with torch.no_grad():
            features = halves.front(images)
            answers = halves.rest(features.clone())  # It may change its input in place.
        yield Seen(features, answers, labels)  # Not in there: who takes it would be without gradients, too.


def train_head(
    head: nn.Module,
    batches: Callable[[int], Iterable[Seen]],
    *,
    epochs: int,
    steps: int,
    distill: float = 0.7,
    learning_rate: float = LEARNING_RATE,
    show: Callable[[int, float], None] | None = None,
) -> tuple[float, ...]:
    """Train the head of an early exit, in place; it is in eval mode afterwards.

    AdamW; the learning rate grows, then falls to zero along half a cosine.

    Args:
        head: `edgeprune.models.early_exit.ExitHead`, or another module from features to (n, classes).
        batches: given an epoch, counted from 0, its batches of at least two images.
        epochs: 1 or more.
        steps: batches in an epoch.
        distill: weight of what the whole model says, against the labels, from 0 to 1.
        learning_rate: its peak.
        show: told (epochs done, mean loss) after each.

    Returns:
        The mean loss of each epoch.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / (epochs * steps)))
    losses = []
    head.train()
    for epoch in range(epochs):
        own = [_step(head, batch, optimizer, schedule, distill) for batch in batches(epoch)]
        losses.append(math.fsum(own) / max(len(own), 1))
        if show is not None:
            show(epoch + 1, losses[-1])
    head.eval()
    return tuple(losses)


def _step(
    head: nn.Module,
    batch: Seen,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    distill: float,
) -> float:
    outputs = head(batch.features)
    loss = torch.lerp(
        F.cross_entropy(outputs, batch.labels), soft_divergence(outputs, batch.answers), distill
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    schedule.step()
    return loss.item()


def _rate(done: float) -> float:
    """Share of the peak learning rate after a share of all steps.

    >>> [round(_rate(done), 2) for done in (0.0, 0.1, 0.55, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if done < WARM_UP:
        return max(done / WARM_UP, 0.01)
    return (1 + math.cos(math.pi * min((done - WARM_UP) / (1 - WARM_UP), 1.0))) / 2
