"""A layer's weight as a matrix of rows (outputs) by columns (inputs), one for each group of a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.pruning.patterns import Block, Channels, Pattern


def joint_channels(pattern: Pattern, channels: int) -> int:
    """Neighbouring input channels that go together, in SparseGPT's order of columns."""
    if isinstance(pattern, Channels):
        return channels
    return pattern.in_ if isinstance(pattern, Block) else 1


def to_columns(weight: Tensor, side: int, groups: int) -> Tensor:
    """(out, in / groups, ...) -> (groups, out / groups, columns), channels that go together side by side.

    Column order: (in / groups / side, kernel position, side).
    """
    out, in_ = weight.shape[:2]
    return weight.reshape(out, in_ // side, side, -1).transpose(2, 3).reshape(groups, out // groups, -1)


def from_columns(columns: Tensor, shape: Sequence[int], side: int) -> Tensor:
    """The way back from `to_columns`, for a weight of `shape`."""
    out, in_ = shape[:2]
    return columns.reshape(out, in_ // side, -1, side).transpose(2, 3).reshape(torch.Size(shape))
