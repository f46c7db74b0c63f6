"""Exact Optimal Brain Compression (Frantar & Alistarh, NeurIPS 2022), and least squares for what stays.

A layer is a matrix of rows (outputs) by columns (inputs: input channel, kernel position), and all that
counts is how far its outputs move on calibration images: (w - w') H (w - w')' summed over its rows, H the
second moments of the inputs. Row by row the unit that costs least is dropped, the others make up for it
exactly, and the next is chosen among them. How many of each row go is settled over the whole layer, by what
the steps cost.

With A the inverse of H over the columns that are left, dropping the columns b costs w_b (A_bb)^-1 w_b', and
the rest moves by -w_b (A_bb)^-1 A_b. A itself is never written: it is the inverse of all H less the outer
products of the steps so far, of which a row keeps one vector a column. That is a fifth of the arithmetic of
the paper's form and fits the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeprune.errors import ToolError, UserError
from edgeprune.pruning.columns import from_columns, joint_channels, to_columns
from edgeprune.pruning.patterns import Block, Channels, NofM, Pattern, smallest

LEAST_DAMPING = 0.01  # Of the mean second moment, added to all: inputs hardly ever seen would be trusted.
MOST_SHRINKAGE = 0.9
# A row may lose this much more than the whole layer does; going further costs time and is hardly ever chosen.
SPREAD = 0.15
_TINY = torch.finfo(torch.float64).tiny
# Rows with more units than this lose several at each step, one more for each time so many: all that the next
# choice does not see is how those few change each other's costs, and the arithmetic is that of matrices.
ONE_BY_ONE = 160
STEP_BYTES = 1 << 26  # Vectors of steps held at a time.


@dataclass(frozen=True)
class Problem:
    """The best that a layer's rows can do on calibration images, and what moving away from it costs.

    Attributes:
        weight: (groups, rows, columns) float64, the best without any zero.
        moments: (groups, columns, columns) float64, damped second moments of the inputs.
        side: neighbouring columns that go together.
        together: neighbouring rows whose zeros are at the same places.
        shape: of the layer's weight.
    """

    weight: Tensor
    moments: Tensor
    side: int
    together: int
    shape: torch.Size

    def wanted(self) -> Tensor:
        """What the outputs should be, seen through the inputs: (groups, rows, columns)."""
        return self.weight @ self.moments


def shrinkage(moments: Tensor, samples: float) -> float:
    """How far second moments of few samples are best pulled towards the same for every input: 0 to 1.

    Oracle approximating shrinkage (Chen et al., 2010). With few images and many columns least squares makes
    up for zeros by what happens to agree on those images, and not on others.

    Args:
        moments: (groups, columns, columns) float64.
        samples: independent ones that they are the mean of.

    >>> shrinkage(torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64), 10)  # doctest: +ELLIPSIS
    0.2...
    """
    columns = moments.shape[1]
    trace = moments.diagonal(dim1=1, dim2=2).sum(1)
    squares = moments.square().sum((1, 2))
    spread = squares - trace.square() / columns
    wanted = ((1 - 2 / columns) * squares + trace.square()) / (
        (samples + 1 - 2 / columns) * spread.clamp_min(_TINY)
    )
    return min(float(wanted.median()), 1.0)


def problem_of(
    weight: Tensor,
    moments: Tensor,
    pattern: Pattern,
    *,
    cross: Tensor | None = None,
    samples: float = math.inf,
) -> Problem:
    """Set up a layer.

    Args:
        weight: (out, in / groups, ...), finite.
        moments: (groups, columns, columns), mean over places of inputs times inputs.
        pattern: one that divides the weight.
        cross: (groups, out / groups, columns), mean over places of the outputs that are wanted times inputs;
            None: those of `weight` itself.
        samples: independent ones that the moments are the mean of; see `shrinkage`.

    Raises:
        UserError: blocks that lie across two groups of a convolution.
        ToolError: the second moments cannot be inverted.
    """
    groups = len(moments)
    if isinstance(pattern, Block) and weight.shape[0] // groups % pattern.out:
        raise UserError(
            f"{weight.shape[0]} outputs in {groups} groups: blocks of {pattern.out} would lie across two"
        )
    side = joint_channels(pattern, weight.shape[1])
    order = to_columns(torch.arange(moments.shape[1]).view(1, *weight.shape[1:]), side, 1).flatten()
    own = to_columns(weight.double(), side, groups)
    moments = moments.double()[:, order][:, :, order]
    share = min(shrinkage(moments, samples), MOST_SHRINKAGE)
    damping = max(share / (1 - share), LEAST_DAMPING) * moments.diagonal(dim1=1, dim2=2).mean(dim=1)
    # Inputs that were never anything but zero: any damping will do.
    damping = torch.where(damping > 0, damping, torch.ones_like(damping)).view(-1, 1, 1)
    damped = moments + damping * torch.eye(moments.shape[1], dtype=torch.float64, device=moments.device)
    if cross is not None:
        # The damping pulls towards the weights as they are, not towards zero.
        wanted = cross.double()[:, :, order] + damping * own
        own = torch.cholesky_solve(wanted.transpose(1, 2), _cholesky(damped)).transpose(1, 2)
    together = pattern.out if isinstance(pattern, Block) else 1
    return Problem(own, damped, side, together, weight.shape)


def compress(problem: Problem, pattern: Pattern, sparsity: float) -> Tensor:
    """Choose the zeros of a layer and the best of what stays: (out, in / groups, ...), float64.

    Two inputs that always agree: the weight that stays takes over all that the other did (1 + 3 = 4).

    >>> from edgeprune.pruning import Unstructured
    >>> agree = torch.ones(1, 2, 2, dtype=torch.float64)
    >>> weight = torch.tensor([[1.0, 3.0]])
    >>> compress(problem_of(weight, agree, Unstructured()), Unstructured(), 0.5).round(decimals=1)
    tensor([[0., 4.]], dtype=torch.float64)

    Raises:
        ToolError: the second moments cannot be inverted.
    """
    return refit(problem, choose(problem, pattern, sparsity))


def choose(problem: Problem, pattern: Pattern, sparsity: float) -> Tensor:
    """What exact OBC keeps of a layer: a mask (out, in / groups, ...), True where kept."""
    if isinstance(pattern, Channels):
        costs = (problem.wanted() * problem.weight).clamp_min(0).float()
        return pattern.mask(from_columns(costs, problem.shape, problem.side), sparsity)
    if isinstance(pattern, NofM) and not math.isclose(sparsity, pattern.sparsity):
        raise UserError(f"exact OBC gives {pattern.keep} of {pattern.of} its own zeros, {pattern.sparsity:g}")
    steps = descend(problem, pattern, min(sparsity + SPREAD, 1.0))
    if isinstance(pattern, NofM):
        gone = torch.ones_like(steps.costs, dtype=torch.bool)
    else:
        units = problem.weight.numel() // (problem.together * problem.side)
        gone = smallest(steps.order, round(sparsity * units))
    return from_columns(_kept(problem, steps.places, gone), problem.shape, problem.side)


@dataclass(frozen=True)
class Steps:
    """The way down of each set of rows that share their zeros.

    Attributes:
        places: (groups, sets, steps), the unit of columns that goes at each step.
        costs: (groups, sets, steps) float32, what it adds to the error.
    """

    places: Tensor
    costs: Tensor

    @property
    def order(self) -> Tensor:
        """The costs, never falling along a way: whoever goes by them takes no step before an earlier one."""
        return self.costs.cummax(dim=2).values if self.costs.numel() else self.costs


def descend(problem: Problem, pattern: Pattern, sparsity: float) -> Steps:
    """Drop units one by one from every set of rows, up to a sparsity of each."""
    units = problem.weight.shape[2] // problem.side
    count = units // pattern.of * (pattern.of - pattern.keep) if isinstance(pattern, NofM) else None
    count = min(math.ceil(sparsity * units), units) if count is None else count
    places, costs = [], []
    for weight, moments in zip(problem.weight, problem.moments, strict=True):
        inverse = torch.cholesky_inverse(_cholesky(moments)).float()
        # (rows, columns) -> (sets, rows of each, columns)
        rows = weight.float().reshape(-1, problem.together, weight.shape[1])
        at_once = max(STEP_BYTES // (4 * max(count, 1) * problem.side * weight.shape[1]), 4)
        found = [_way_down(part, inverse, problem, pattern, count) for part in torch.split(rows, at_once)]
        places.append(torch.cat([place for place, _ in found]))
        costs.append(torch.cat([cost for _, cost in found]))
    return Steps(torch.stack(places), torch.stack(costs))


def _way_down(
    rows: Tensor, inverse: Tensor, problem: Problem, pattern: Pattern, count: int
) -> tuple[Tensor, Tensor]:
    """(sets, rows of each, columns) -> the units that go and what each costs, both (sets, count)."""
    sets, side = len(rows), problem.side
    columns = rows.shape[2]
    rows = rows.clone()
    vectors = rows.new_zeros(sets, count * side, columns)
    # Lower triangle of the diagonal blocks of A: (sets, units) for each pair of a unit's columns.
    own = inverse.view(columns // side, side, columns // side, side).diagonal(dim1=0, dim2=2)
    blocks = {(a, b): own[a, b].repeat(sets, 1) for a in range(side) for b in range(a + 1)}
    closed = torch.zeros(sets, columns // side, dtype=torch.bool, device=rows.device)
    dropped = torch.zeros_like(closed)
    places = torch.zeros(sets, count, dtype=torch.int64, device=rows.device)
    costs = rows.new_zeros(sets, count)
    at_a_time = max(columns // side // ONE_BY_ONE, 1)
    done = 0
    while done < count:
        score = _cost(_factor(blocks, side), rows, side).masked_fill_(closed, torch.inf)
        chosen = _cheapest(score, min(at_a_time, count - done), pattern, problem.shape)
        now = slice(done, done + chosen.shape[1])
        places[:, now] = chosen
        dropped.scatter_(1, chosen, True)
        closed = _closed(dropped, pattern, problem.shape)
        # (sets, units * side): the columns that go.
        at = (chosen.unsqueeze(2) * side + torch.arange(side, device=rows.device)).flatten(1)
        before = vectors[:, : done * side]
        # The rows of A that belong to them, of what is left after the steps so far.
        lines = torch.baddbmm(inverse[at], _columns(before, at).transpose(1, 2), before, alpha=-1)
        factor = _small_cholesky(_columns(lines, at))
        new = torch.linalg.solve_triangular(factor, lines, upper=False)
        moves = torch.linalg.solve_triangular(factor, _columns(rows, at).transpose(1, 2), upper=False)
        costs[:, now] = moves.square().unflatten(1, (-1, side)).sum((2, 3))
        rows.baddbmm_(moves.transpose(1, 2), new, alpha=-1)
        rows.scatter_(2, at.unsqueeze(1).expand(-1, rows.shape[1], -1), 0.0)
        vectors[:, done * side : now.stop * side] = new
        parts = new.unflatten(2, (-1, side))
        for (a, b), block in blocks.items():
            block -= (parts[..., a] * parts[..., b]).sum(1)
        done = now.stop
    return places, costs


def _cheapest(score: Tensor, many: int, pattern: Pattern, shape: torch.Size) -> Tensor:
    """(sets, units) -> the units that cost least, (sets, many or fewer), the cheapest first.

    Of N of M no more than one of each group: the next may have to stay.
    """
    if not isinstance(pattern, NofM):
        return _lowest(score, many)
    # (sets, groups, of, kernel positions)
    groups = score.view(len(score), shape[1] // pattern.of, pattern.of, -1)
    kernel = groups.shape[3]
    least, which = groups.min(dim=2)
    chosen = _lowest(least.flatten(1), many)
    return (chosen // kernel * pattern.of + which.flatten(1).gather(1, chosen)) * kernel + chosen % kernel


def _lowest(score: Tensor, many: int) -> Tensor:
    """Where the lowest are, (sets, many or as many as are finite in every set), the lowest first."""
    many = min(many, int(score.isfinite().sum(1).min()))
    return score.topk(many, dim=1, largest=False).indices


def _columns(values: Tensor, at: Tensor) -> Tensor:
    """(sets, any, columns) at (sets, some) of them -> (sets, any, some)."""
    return values.gather(2, at.unsqueeze(1).expand(-1, values.shape[1], -1))


def _small_cholesky(squares: Tensor) -> Tensor:
    """Of blocks of A, whose diagonal float32 may have rounded a little too small."""
    rounding = torch.finfo(squares.dtype).eps * squares.diagonal(dim1=1, dim2=2)
    factor: Tensor = torch.linalg.cholesky_ex(squares + torch.diag_embed(rounding)).L
    return factor


def _factor(blocks: dict[tuple[int, int], Tensor], side: int) -> dict[tuple[int, int], Tensor]:
    """Cholesky factors of many small blocks at once, written out; the diagonal holds its inverse."""
    factor: dict[tuple[int, int], Tensor] = {}
    for a in range(side):
        for b in range(a + 1):
            value = blocks[a, b]
            for c in range(b):
                value = value - factor[a, c] * factor[b, c]
            # What is dropped already leaves a block of zeros.
            factor[a, b] = value * factor[b, b] if a != b else value.clamp_min(1e-20).rsqrt()
    return factor


def _cost(factor: dict[tuple[int, int], Tensor], rows: Tensor, side: int) -> Tensor:
    """What each unit costs now, summed over the rows of a set: (sets, units)."""
    # (sets, rows, columns) -> side times (sets, rows, units)
    weights = rows.view(*rows.shape[:2], -1, side).unbind(3)
    solved: list[Tensor] = []
    for a in range(side):
        value = weights[a]
        for b in range(a):
            value = value - factor[a, b].unsqueeze(1) * solved[b]
        solved.append(value * factor[a, a].unsqueeze(1))
    total = solved[0].square()
    for part in solved[1:]:
        total = total + part.square()
    return total.sum(1)


def _closed(dropped: Tensor, pattern: Pattern, shape: torch.Size) -> Tensor:
    """Units that may not go any more: (sets, units)."""
    if not isinstance(pattern, NofM):
        return dropped
    # (sets, columns) -> (sets, channels / of, of, kernel positions)
    groups = dropped.view(len(dropped), shape[1] // pattern.of, pattern.of, -1)
    full = groups.sum(2, keepdim=True) >= pattern.of - pattern.keep
    return dropped | full.expand_as(groups).reshape(dropped.shape)


def _kept(problem: Problem, places: Tensor, gone: Tensor) -> Tensor:
    """(groups, sets, steps) of units -> (groups, rows, columns), True where kept."""
    groups, rows, columns = problem.weight.shape
    dropped = torch.zeros(groups, rows // problem.together, columns // problem.side, dtype=torch.bool)
    dropped = dropped.to(places.device).scatter(2, places, gone)
    return ~dropped.repeat_interleave(problem.together, 1).repeat_interleave(problem.side, 2)


def refit(problem: Problem, kept: Tensor) -> Tensor:
    """The best weights with zeros where a mask has them: (out, in / groups, ...), float64.

    Exact least squares, one system a row; rows with the same zeros share theirs. AdaPrune (Hubara et al.,
    NeurIPS 2021) finds the same by gradients.

    Args:
        problem: the layer.
        kept: (out, in / groups, ...), True where a weight stays.

    Raises:
        ToolError: the second moments cannot be inverted.
    """
    masks = to_columns(kept, problem.side, len(problem.moments))
    wanted = problem.wanted()
    best = torch.zeros_like(problem.weight)
    for group, moments in enumerate(problem.moments):
        alike, which = torch.unique(masks[group], dim=0, return_inverse=True)
        rows_of = _members(which, len(alike))
        for mask, rows in zip(alike, rows_of, strict=True):
            stays = mask.nonzero().flatten()
            if len(stays):
                factor = _cholesky(moments[stays][:, stays])
                solved = torch.cholesky_solve(wanted[group, rows][:, stays].t(), factor)
                best[group, rows.unsqueeze(1), stays] = solved.t()
    return from_columns(best, problem.shape, problem.side)


def _members(which: Tensor, count: int) -> list[Tensor]:
    order = which.argsort(stable=True)
    return list(torch.split(order, torch.bincount(which, minlength=count).tolist()))


def error(problem: Problem, weight: Tensor) -> float:
    """How far the outputs move over how large they are, both as mean squares; 0 for the best weights."""
    rows = to_columns(weight.double(), problem.side, len(problem.moments)) - problem.weight
    size = float((problem.wanted() * problem.weight).sum())
    return float(((rows @ problem.moments) * rows).sum()) / max(size, _TINY)


def error_curve(
    problem: Problem, pattern: Pattern, sparsities: Sequence[float], *, sets: int = 64
) -> list[float]:
    """The error that exact OBC leaves at each sparsity, seen on about `sets` sets of rows."""
    every = max(problem.weight.shape[1] // (sets * problem.together), 1)
    # (groups, rows, columns) -> every so many sets of rows
    groups, _, columns = problem.weight.shape
    rows = problem.weight.view(groups, -1, problem.together, columns)[:, ::every].flatten(1, 2)
    seen = replace(problem, weight=rows)
    steps = descend(seen, pattern, min(max(sparsities) + SPREAD, 1.0))
    size = float((seen.wanted() * rows).sum())
    order = steps.order.flatten().argsort(stable=True)
    added = steps.costs.double().flatten()[order].cumsum(0).tolist()
    units = rows.numel() // (problem.side * problem.together)
    counts = [min(round(sparsity * units), len(added)) for sparsity in sparsities]
    return [added[count - 1] / max(size, _TINY) if count else 0.0 for count in counts]


def _cholesky(moments: Tensor) -> Tensor:
    try:
        factor: Tensor = torch.linalg.cholesky(moments)
    except RuntimeError as error:  # torch's own LinAlgError is one.
        raise ToolError(f"the second moments of its inputs cannot be inverted: {error}") from error
    return factor
