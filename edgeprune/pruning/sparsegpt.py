"""SparseGPT (Frantar & Alistarh, ICML 2023): choose zeros by second-order importance, and let the weights
that stay make up for those that go. For linear layers and convolutions, for every pattern.

A layer is a matrix of rows (outputs) by columns (inputs: input channel, kernel position). Columns are
settled from left to right. U is the upper Cholesky factor of the inverse second moments of the inputs:
zeroing weight w of column j, with the columns before it settled, costs (w / U_jj)^2 in the layer's output,
and the least is lost when the columns k behind j change by -(w / U_jj) U_jk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.errors import ToolError
from edgeprune.pruning.columns import from_columns, joint_channels, to_columns
from edgeprune.pruning.patterns import Channels, NofM, Pattern

DAMPING = 0.01  # Of the mean second moment, added to all: inputs seen too rarely would be trusted too much.
SLICE_COLUMNS = 128  # Zeros are chosen for so many columns at a time, as in the paper.


def compress(weight: Tensor, second_moments: Tensor, pattern: Pattern, sparsity: float) -> Tensor:
    """Prune one layer's weight and update what stays.

    Two inputs that always agree: the weight that stays takes over all that the other did (1 + 3 = 4).

    >>> from edgeprune.pruning import Unstructured
    >>> agree = torch.ones(1, 2, 2, dtype=torch.float64)
    >>> compress(torch.tensor([[1.0, 3.0]]), agree, Unstructured(), 0.5).round(decimals=1)
    tensor([[0., 4.]])

    Args:
        weight: (out, in / groups, ...), finite.
        second_moments: (groups, columns, columns), columns = in / groups * kernel positions.
        pattern: one that divides the weight.
        sparsity: fraction of zeros, 0 to below 1.

    Returns:
        The new weight, in the shape, type and layout of the old one.

    Raises:
        ToolError: the second moments cannot be inverted.
    """
    side = joint_channels(pattern, weight.shape[1])
    factor = _factor(second_moments, weight.shape, side)
    groups, count, _ = factor.shape
    columns = to_columns(weight.double(), side, groups)
    positions = count // weight.shape[1]
    width = _slice_channels(pattern, weight.shape, positions) * positions
    # How many of each slice go is settled over the whole layer: inputs differ in size far more than the
    # weights, and an equal share of every slice (the paper's way) would cost the largest half their weights.
    scores = _scores(columns, factor, pattern, weight.shape, side)
    gone = to_columns(~pattern.mask(scores, sparsity), side, groups)
    for begin in range(0, count, width):
        end = min(begin + width, count)
        shape = (weight.shape[0], (end - begin) // positions, *weight.shape[2:])
        scores = _scores(columns[:, :, begin:end], factor[:, begin:end, begin:end], pattern, shape, side)
        keep = pattern.mask(scores, float(gone[:, :, begin:end].double().mean()))
        _settle(columns, to_columns(keep, side, groups), factor, begin, end)
    return torch.empty_like(weight).copy_(from_columns(columns, weight.shape, side))


def saliency(weight: Tensor, second_moments: Tensor, pattern: Pattern) -> Tensor:
    """What zeroing each weight costs in the layer's output, (out, in / groups, ...), float32.

    Over the units of `pattern` it sums to the cost of losing the unit as a whole.
    """
    side = joint_channels(pattern, weight.shape[1])
    factor = _factor(second_moments, weight.shape, side)
    columns = to_columns(weight.double(), side, len(factor))
    return _scores(columns, factor, pattern, weight.shape, side)


def _scores(columns: Tensor, factor: Tensor, pattern: Pattern, shape: Sequence[int], side: int) -> Tensor:
    """Cost of each weight of a layer, or of a slice of it, of `shape`; float32."""
    # A block lies at one kernel position; a channel takes all columns.
    joint = columns.shape[2] if isinstance(pattern, Channels) else side
    return from_columns(_costs(columns, factor, joint), shape, side).float()


def _slice_channels(pattern: Pattern, shape: Sequence[int], positions: int) -> int:
    """Input channels whose zeros are chosen at a time: whole units, near `SLICE_COLUMNS` columns."""
    if isinstance(pattern, Channels):
        return shape[1]
    if isinstance(pattern, NofM):
        return pattern.of
    side = joint_channels(pattern, shape[1])
    return max(SLICE_COLUMNS // (positions * side), 1) * side


def _factor(second_moments: Tensor, shape: Sequence[int], side: int) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped second moments, columns ordered for `side`."""
    order = to_columns(torch.arange(second_moments.shape[1]).view(1, *shape[1:]), side, 1).flatten()
    moments = second_moments.double()[:, order][:, :, order]
    diagonal = moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(dim=1, keepdim=True)
    # Inputs that were never anything but zero: any damping will do.
    damping = torch.where(damping > 0, damping, torch.ones_like(damping))
    damped = moments + torch.diag_embed(damping.expand_as(diagonal))
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as error:  # torch's own LinAlgError is one.
        raise ToolError(f"the second moments of its inputs cannot be inverted: {error}") from error
    return factor


def _costs(columns: Tensor, factor: Tensor, side: int) -> Tensor:
    """Cost of zeroing each weight together with all of its unit of `side` columns, (groups, rows, columns).

    With e U = w over the unit's columns, e^2 adds up to the joint cost w (U'U)^-1 w'.
    """
    groups, rows, count = columns.shape
    units = count // side
    # (groups, columns, columns) -> (groups, units, side, side): the blocks on the diagonal.
    blocks = factor.reshape(groups, units, side, units, side).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    weights = columns.view(groups, rows, units, side).transpose(1, 2)
    errors: Tensor = torch.linalg.solve_triangular(blocks, weights, upper=True, left=False)
    return errors.square().transpose(1, 2).reshape(groups, rows, count)


def _settle(columns: Tensor, keep: Tensor, factor: Tensor, begin: int, end: int) -> None:
    """Zero what `keep` drops in columns `begin` to `end`, and update all columns behind, in place."""
    weights = columns[:, :, begin:end].clone()
    errors = torch.zeros_like(weights)
    for place in range(end - begin):
        row = factor[:, begin + place, begin + place : end]  # (groups, columns left in the slice)
        gone = weights[:, :, place].masked_fill(keep[:, :, place], 0.0) / row[:, :1]
        weights[:, :, place:] -= gone.unsqueeze(2) * row.unsqueeze(1)
        errors[:, :, place] = gone
    columns[:, :, begin:end] = weights * keep
    columns[:, :, end:] -= errors @ factor[:, begin:end, end:]
