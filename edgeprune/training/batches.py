"""The order in which a training goes through its images: it follows from the seed and the epoch alone."""

from __future__ import annotations

import torch
from torch import Tensor


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """What everything random of an epoch is drawn from."""
    return torch.Generator().manual_seed((seed << 20) + epoch + 1)


def whole_batches(order: Tensor, size: int) -> list[Tensor]:
    """Whole batches only, unless there is less than one: a batch norm cannot train on a single image."""
    whole = len(order) // size * size
    return list(torch.split(order[: whole or len(order)], size))
