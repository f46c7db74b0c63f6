"""Where zeros may be: single weights, blocks, N of M, whole channels. Pure functions of an importance.

A weight is (out, in) for a linear layer and (out, in, kernel height, kernel width) for a convolution.
Masks are boolean, True where the weight is kept. What is zeroed together is a unit; a unit's importance
is the sum over its weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UserError

DIRECT_COUNT = 1 << 18  # Up to here torch's own selection is as fast.
SAMPLE_COUNT = 1 << 16


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` smallest of `scores`, ties broken by index so that the count is always exact.

    Args:
        scores: any shape, finite.
        count: how many to mark, 0 to `scores.numel()`.

    Returns:
        Boolean tensor of the same shape, True at the marked places.

    Examples:
        >>> smallest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2)
        tensor([False,  True,  True, False])
    """
    flat = scores.flatten()
    if count <= 0 or count >= flat.numel():
        return torch.full(scores.shape, count > 0, dtype=torch.bool, device=scores.device)
    threshold = _kth(flat, count)
    marked = flat <= threshold
    too_many = int(marked.count_nonzero()) - count
    if too_many:
        _unmark_last(marked, flat == threshold, too_many)
    return marked.view(scores.shape)


def _unmark_last(marked: Tensor, ties: Tensor, count: int) -> None:
    """Set the last `count` of the places where `ties` is True to False in `marked`, in place.

    A part at a time from the end: the places of all ties of a large layer would fill the memory.
    """
    parts = zip(torch.split(marked, DIRECT_COUNT), torch.split(ties, DIRECT_COUNT), strict=True)
    for part, tied in reversed(list(parts)):
        places = tied.nonzero().flatten()[-count:]
        part[places] = False
        count -= len(places)
        if not count:
            return


def _kth(flat: Tensor, count: int) -> Tensor:
    """The `count`-th smallest value, exactly.

    A regular sample tells two values between which it very probably lies; only what lies between them is
    then ranked (after Floyd & Rivest, 1975). Where the sample misled, everything is.
    """
    if flat.numel() <= DIRECT_COUNT:
        return flat.kthvalue(count).values
    # An odd stride, so that it does not fall in step with rows of even length.
    sample = flat[:: flat.numel() // SAMPLE_COUNT | 1].sort().values
    place = count * len(sample) // flat.numel()
    margin = 3 * math.isqrt(len(sample))  # Six standard deviations of the place, or more.
    low, high = sample[max(place - margin, 0)], sample[min(place + margin, len(sample) - 1)]
    to_low = int((flat <= low).count_nonzero())
    if count <= to_low:  # Many weights share one value: zeros, of a layer pruned before.
        return low if count > int((flat < low).count_nonzero()) else flat.kthvalue(count).values
    inside = flat[(flat > low) & (flat < high)]
    rank = count - to_low
    if rank <= inside.numel():
        return inside.kthvalue(rank).values
    return high if count <= int((flat <= high).count_nonzero()) else flat.kthvalue(count).values


@dataclass(frozen=True)
class Unstructured:
    """Single weights, anywhere.

    Examples:
        >>> weight = torch.tensor([[9.0, 1, 8, 2], [3, 7, 4, 6], [5, 5, 5, 5], [0, 9, 1, 9]])
        >>> weight * Unstructured().mask(weight, sparsity=0.5)
        tensor([[9., 0., 8., 0.],
                [0., 7., 0., 6.],
                [0., 0., 5., 5.],
                [0., 9., 0., 9.]])
    """

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why a weight of this shape cannot take the pattern; None if it can."""
        return None

    def units(self, importance: Tensor) -> Tensor:
        """Importance of each unit."""
        return importance

    def spread(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Give every weight of a weight of `shape` the value of its unit."""
        return units

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Keep all but the least important `sparsity` of the weights."""
        return ~smallest(importance, round(sparsity * importance.numel()))


@dataclass(frozen=True)
class Block:
    """Blocks of `out` output by `in_` input channels, zeroed together; one block per kernel position.

    `Block(out=1, in_=2)` on a 4x4 weight at sparsity 0.5, blocks ranked by the sum of their importance:

    Examples:
        >>> weight = torch.tensor([[9.0, 9, 1, 1], [1, 1, 9, 9], [0, 5, 4, 0], [2, 2, 3, 3]])
        >>> weight * Block(out=1, in_=2).mask(weight, sparsity=0.5)
        tensor([[9., 9., 0., 0.],
                [0., 0., 9., 9.],
                [0., 5., 0., 0.],
                [0., 0., 3., 3.]])
    """

    out: int = 1
    in_: int = 4

    def __post_init__(self) -> None:
        if self.out < 1 or self.in_ < 1:
            raise UserError(f"a block of {self.out}x{self.in_} channels: both sides must be 1 or more")

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why a weight of this shape cannot take the pattern; None if it can."""
        for channels, side, word in ((shape[0], self.out, "output"), (shape[1], self.in_, "input")):
            if channels % side:
                return f"{channels} {word} channels are not a multiple of {side}"
        return None

    def units(self, importance: Tensor) -> Tensor:
        """Importance of each unit: (out, in, ...) -> (out / `self.out`, in / `self.in_`, ...)."""
        out, in_, *kernel = importance.shape
        # (out, in, ...) -> (out / a, a, in / b, b, ...): sums over a and b are one score a block.
        return importance.reshape(out // self.out, self.out, in_ // self.in_, self.in_, *kernel).sum((1, 3))

    def spread(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Give every weight of a weight of `shape` the value of its unit."""
        rows, columns, *kernel = units.shape
        blocks = units.unsqueeze(1).unsqueeze(3).expand(rows, self.out, columns, self.in_, *kernel)
        return blocks.reshape(torch.Size(shape))

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Keep all but the least important `sparsity` of the blocks."""
        scores = self.units(importance)
        return self.spread(~smallest(scores, round(sparsity * scores.numel())), importance.shape)


@dataclass(frozen=True)
class Channels:
    """Whole output channels, set to zero where they are; `shrink` takes them out.

    Biases and batch norms behind the layer are left as they are. Without rules of its own for it, the
    model's last layer is left dense: its outputs are the answers.

    Examples:
        >>> weight = torch.tensor([[1.0, 1, 1, 1], [0, 0, 9, 0], [2, 2, 0, 0], [0, 0, 0, 8]])
        >>> weight * Channels().mask(weight, sparsity=0.5)
        tensor([[0., 0., 0., 0.],
                [0., 0., 9., 0.],
                [0., 0., 0., 0.],
                [0., 0., 0., 8.]])
    """

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why a weight of this shape cannot take the pattern; None if it can."""
        return None

    def units(self, importance: Tensor) -> Tensor:
        """Importance of each unit: (out, ...) -> (out,)."""
        return importance.flatten(1).sum(1)

    def spread(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Give every weight of a weight of `shape` the value of its unit."""
        return units.view(-1, *(1 for _ in shape[1:])).expand(torch.Size(shape)).contiguous()

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Keep all but the least important `sparsity` of the channels."""
        scores = self.units(importance)
        return self.spread(~smallest(scores, round(sparsity * scores.numel())), importance.shape)


@dataclass(frozen=True)
class NofM:
    """Keep the `keep` most important of every `of` neighbouring input channels. 2:4 is `NofM(keep=2, of=4)`.

    At a sparsity below the pattern's own, on the way there, only the least important of the weights that
    the pattern will drop are zeroed.

    Examples:
        >>> weight = torch.tensor([[1.0, 2, 3, 4], [8, 7, 6, 5], [1, 9, 1, 9], [5, 5, 5, 5]])
        >>> weight * NofM(keep=2, of=4).mask(weight, sparsity=0.5)
        tensor([[0., 0., 3., 4.],
                [8., 7., 0., 0.],
                [0., 9., 0., 9.],
                [0., 0., 5., 5.]])
    """

    keep: int = 2
    of: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.keep < self.of:
            raise UserError(f"N of M with keep={self.keep}, of={self.of}: keep must be from 1 to of - 1")

    @property
    def sparsity(self) -> float:
        """The fraction of zeros the pattern stands for, 0 to 1."""
        return 1 - self.keep / self.of

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why a weight of this shape cannot take the pattern; None if it can."""
        return (
            None if shape[1] % self.of == 0 else f"{shape[1]} input channels are not a multiple of {self.of}"
        )

    def units(self, importance: Tensor) -> Tensor:
        """Importance of each unit: single weights."""
        return importance

    def spread(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Give every weight of a weight of `shape` the value of its unit."""
        return units

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Drop `of - keep` of each group, or at a lower `sparsity` the least important of those."""
        out, in_, *kernel = importance.shape
        groups = importance.reshape(out, in_ // self.of, self.of, *kernel)
        drop = (_ranks(groups) < self.of - self.keep).reshape(importance.shape)
        if sparsity < self.sparsity:
            candidates = torch.where(drop, importance, torch.full_like(importance, torch.inf))
            drop = smallest(candidates, round(sparsity * importance.numel()))
        return ~drop


def _ranks(groups: Tensor) -> Tensor:
    """Rank of each value among those along dim 2, 0 for the smallest; ties by index.

    Every pair is compared once: for the few of a group that is many times faster than sorting.
    """
    # (out, in / of, of, ...) -> (of, out, in / of, ...), so that each comparison reads without gaps.
    places = groups.movedim(2, 0).contiguous()
    ranks = torch.zeros_like(places, dtype=torch.int8 if len(places) < 128 else torch.int16)
    for later in range(len(places)):
        for earlier in range(later):
            first = places[earlier] <= places[later]
            ranks[later] += first
            ranks[earlier] += ~first
    return ranks.movedim(0, 2)


Pattern = Unstructured | Block | Channels | NofM
