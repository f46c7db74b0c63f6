"""Where zeros may be: single weights, blocks, or N of M. Pure functions of an importance tensor.

A weight is (out, in) for a linear layer and (out, in, kernel height, kernel width) for a convolution.
Masks are boolean, True where the weight is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UserError


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` smallest of `scores`, ties broken by index so that the count is always exact.

    Args:
        scores: any shape, finite.
        count: how many to mark, 0 to `scores.numel()`.

    Returns:
        Boolean tensor of the same shape, True at the marked places.

    >>> smallest(torch.tensor([3.0, 1.0, 1.0, 1.0]), 2)
    tensor([False,  True,  True, False])
    """
    flat = scores.flatten()
    if count <= 0 or count >= flat.numel():
        return torch.full_like(scores, count > 0, dtype=torch.bool)
    threshold = flat.kthvalue(count).values
    marked = flat < threshold
    missing = count - int(marked.sum())
    marked[(flat == threshold).nonzero().flatten()[:missing]] = True
    return marked.view(scores.shape)


@dataclass(frozen=True)
class Unstructured:
    """Single weights, anywhere.

    >>> Unstructured().mask(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), sparsity=0.5)
    tensor([[False,  True],
            [ True, False]])
    """

    def misfit(self, shape: Sequence[int]) -> str | None:
        """Why a weight of this shape cannot take the pattern; None if it can."""
        return None

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Keep all but the least important `sparsity` of the weights."""
        return ~smallest(importance, round(sparsity * importance.numel()))


@dataclass(frozen=True)
class Block:
    """Blocks of `out` output by `in_` input channels, zeroed together; one block per kernel position.

    `Block(out=1, in_=2)` on a 4x4 weight at sparsity 0.5, blocks ranked by the sum of their importance:

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

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Keep all but the least important `sparsity` of the blocks."""
        out, in_, *kernel = importance.shape
        # (out, in, ...) -> (out / a, a, in / b, b, ...): sums over a and b are one score a block.
        blocks = importance.reshape(out // self.out, self.out, in_ // self.in_, self.in_, *kernel)
        scores = blocks.sum(dim=(1, 3))
        keep = ~smallest(scores, round(sparsity * scores.numel()))
        return keep.unsqueeze(1).unsqueeze(3).expand_as(blocks).reshape(importance.shape)


@dataclass(frozen=True)
class NofM:
    """Keep the `keep` most important of every `of` neighbouring input channels. 2:4 is `NofM(keep=2, of=4)`.

    At a sparsity below the pattern's own, on the way there, only the least important of the weights that
    the pattern will drop are zeroed.

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

    def mask(self, importance: Tensor, sparsity: float) -> Tensor:
        """Drop `of - keep` of each group, or at a lower `sparsity` the least important of those."""
        out, in_, *kernel = importance.shape
        groups = importance.reshape(out, in_ // self.of, self.of, *kernel)
        # Rank inside each group, ties by index: a stable sort of the sort's own order.
        rank = groups.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
        drop = (rank < self.of - self.keep).reshape(importance.shape)
        if sparsity < self.sparsity:
            candidates = torch.where(drop, importance, torch.full_like(importance, torch.inf))
            drop = smallest(candidates, round(sparsity * importance.numel()))
        return ~drop


Pattern = Unstructured | Block | NofM
