"""How many zeros each layer gets. Every way ends in one `Rule` a layer, for a `Sparsifier`.

    uniform             every layer alike
    erdos_renyi         small layers keep more: density by (out + in + kernel) / (out x in x kernel)
    by_multiplications  most zeros where a weight is used for the most pixels: for speed
    by_importance       one threshold for the whole model: what matters least goes ("global")
    by_sensitivity      measured or estimated loss of each layer decides, at a given overall sparsity
    to_budget           the same, until the file has the bytes that it may have

Sparsity here is the share of zeros among the weights of the layers that take part. A layer that the pattern
does not divide takes no part and stays dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from converters.layers import weighted_layers
from converters.sizes import SizeModel
from edgeprune.errors import UserError
from edgeprune.pruning.allocation.result import Allocation, Curves, Numbers
from edgeprune.pruning.criteria import CRITERIA, Criterion, Need
from edgeprune.pruning.patterns import Block, NofM, Pattern, Unstructured, smallest
from edgeprune.pruning.select import Rule, Selected, select

# Above this a layer of a small network is all but cut through; what it costs is no longer on any curve.
MAXIMUM_SPARSITY = 0.95
# The size model is exact to 1 % of the file: aim below the budget by as much.
SIZE_MARGIN = 0.01
# Steps of the curves that are searched.
GRID = 0.01
BISECTIONS = 60


def uniform(
    model: nn.Module, pattern: Pattern, sparsity: float, *, layers: Sequence[str] | None = None
) -> Allocation:
    """Every layer to the same sparsity.

    Args:
        model: any module.
        pattern: where zeros may be.
        sparsity: fraction of zeros, 0 to below 1.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.

    Raises:
        UserError: see `select`.
    """
    chosen, left_dense = _fitting(model, pattern, sparsity, layers)
    units = {s.name: _unit_count(s, pattern) for s in chosen}
    whole = {
        name: sparsity if isinstance(pattern, NofM) else round(sparsity * count) / count
        for name, count in units.items()
    }
    return Allocation(pattern, whole, _weights(chosen), left_dense)


def erdos_renyi(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """Densities in proportion to (out + in + kernel height + width) / (out * in * kernel height * width).

    Mocanu et al., 2018; with the kernel's sides, Evci et al., 2020. Layers that would be more than dense
    are dense, and the others give up the difference.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: see `select`; a sparsity above the maximum.

    >>> model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 64))
    >>> from edgeprune.pruning import Unstructured
    >>> erdos_renyi(model, Unstructured(), 0.75).sparsities
    {'0': 0.64453125, '1': 0.7763671875}
    """
    chosen, left_dense = _fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    shapes = [tuple(s.layer.weight.shape) for s in chosen]
    share = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    counts = np.array([float(np.prod(shape)) for shape in shapes])

    def sparsities(scale: float) -> Numbers:
        return 1 - np.clip(scale * share, 1 - maximum, 1)

    # Zeros fall as the scale grows, from the maximum everywhere to none.
    low, high = 0.0, 1 / share.min()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = float((sparsities(middle) * counts).sum()) >= sparsity * counts.sum()
        low, high = (middle, high) if enough else (low, middle)
    return _allocation(pattern, chosen, left_dense, sparsities(low), sparsity, maximum)


def by_multiplications(
    model: nn.Module,
    example: torch.Tensor,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    spread: float = 0.1,
) -> Allocation:
    """Zeros where they save most: in the layers whose every weight multiplies the most pixels.

    For speed, not for accuracy: early layers have few weights and large maps. As many zeros in all, each
    layer within `spread` of the overall sparsity; among those, the fewest multiplications are left (a
    continuous knapsack: layers are filled in the order of their pixels).

    Args:
        model: in eval mode.
        example: (1, 3, h, w); the image size decides how often a weight is used.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to below 1.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        spread: how far a layer may be from the overall sparsity, 0 to 1.

    Raises:
        UserError: see `select`; a sparsity and a spread that leave [0, 1).
    """
    chosen, left_dense = _fitting(model, pattern, sparsity, layers)
    low, high = sparsity - spread, sparsity + spread
    if spread < 0 or low < 0:
        raise UserError(f"sparsity {sparsity:g} and spread {spread:g}: layers would have {low:g} to {high:g}")
    _refuse_above(high, high, pattern)
    counts = np.array([float(s.layer.weight.numel()) for s in chosen])
    used = {layer.name: layer.uses for layer in weighted_layers(model, example)}
    uses = np.array([float(used.get(s.name, 0)) for s in chosen])
    wanted = np.full(len(chosen), low)
    spare = (sparsity - low) * counts.sum()
    for index in np.argsort(-uses, kind="stable"):
        given = min(spare, (high - low) * counts[index])
        wanted[index] += given / counts[index]
        spare -= given
    return _allocation(pattern, chosen, left_dense, wanted, sparsity, high)


def by_importance(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
    criterion: str = "magnitude",
) -> Allocation:
    """One threshold for the whole model: the blocks that matter least go, wherever they lie ("global").

    Weights of different layers are on one scale here; a criterion that allows for that, such as LAMP
    (Lee et al., 2021), is the better choice.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.
        criterion: a name in `CRITERIA`.

    Raises:
        UserError: see `select`; a sparsity above the maximum, an unknown criterion.
    """
    importance = _of_weights(criterion)
    chosen, left_dense = _fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    scores = [pattern.units(importance(s.layer.weight)).flatten().clone() for s in chosen]
    for layer in scores:  # What the maximum protects is out of reach.
        protected = len(layer) - _most_units(len(layer), maximum)
        layer[layer.topk(protected).indices] = torch.inf
    units = [len(layer) for layer in scores]
    drop = smallest(torch.cat(scores), _total_units(sparsity, units, maximum))
    dropped = [int(part.sum()) for part in torch.split(drop, units)]
    sparsities = {s.name: d / u for s, d, u in zip(chosen, dropped, units, strict=True)}
    return Allocation(pattern, sparsities, _weights(chosen), left_dense)


def by_sensitivity(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    curves: Curves | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss at an overall sparsity.

    Losses of layers are added up, and a Lagrange multiplier, the loss that one more zero may cost, is
    bisected: at a given multiplier each layer decides for itself.

    Args:
        model: any module.
        pattern: where zeros may be; not N of M, which has one sparsity.
        sparsity: overall, 0 to `maximum`.
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: see `select`; a sparsity above the maximum, a layer without a curve.
    """
    chosen, left_dense = _fitting(model, pattern, sparsity, layers)
    _refuse_above(sparsity, maximum, pattern)
    curves = _curves_of(chosen, pattern, curves)
    counts = np.array([float(s.layer.weight.numel()) for s in chosen])
    search = _Search(
        [s.name for s in chosen], curves, maximum, lambda grid: (1 - grid)[None, :] * counts[:, None]
    )
    found = search.within(
        lambda sparsities: float(((1 - sparsities) * counts).sum() / max(counts.sum(), 1) / (1 - sparsity))
    )
    allocation = _allocation(pattern, chosen, left_dense, found, sparsity, maximum)
    return _with_loss(allocation, curves)


def to_budget(
    model: nn.Module,
    pattern: Pattern,
    budgets: Mapping[str, int],
    sizes: Mapping[str, SizeModel],
    *,
    curves: Curves | None = None,
    most_loss: float | None = None,
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Allocation:
    """The sparsities with the smallest expected loss whose files have at most so many bytes.

    The same search as `by_sensitivity`, on the bytes that zeros save rather than on their number: the first
    zeros of a layer save nothing where a mask or indices must be stored for them. With several targets, bytes
    count as shares of each one's budget, and all must be met. The files come out between 97 and 100 % of the
    budget that is hardest to meet; where the dense file is smaller than that, nothing is pruned.

    Args:
        model: the model that `sizes` was calibrated with, dense.
        pattern: where zeros may be; not N of M, which has one sparsity.
        budgets: bytes by target.
        sizes: the size model of each of these targets (`converters.sizes.calibrated`).
        curves: of all layers that take part, as `edgeprune sensitivity` measures them; None: `error_curves`.
        most_loss: expected loss that is accepted, in the unit of the curves; None: any.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: of any layer.

    Raises:
        UserError: a budget that cannot be met, with the smallest that can; see `select`; a layer without a
            curve; a target without a size model.
    """
    _refuse_bounds(maximum, pattern)
    _refuse_budgets(budgets, sizes)
    chosen, left_dense = _fitting(model, pattern, maximum, layers)
    curves = _curves_of(chosen, pattern, curves)
    files = [_File(sizes[target], chosen, pattern, wanted) for target, wanted in budgets.items()]
    search = _Search(
        [s.name for s in chosen],
        curves,
        maximum,
        lambda grid: np.sum([file.shares(grid) for file in files], axis=0),
    )

    def fullness(sparsities: Numbers) -> float:
        return max(file.bytes(sparsities) / (file.budget * (1 - SIZE_MARGIN)) for file in files)

    _refuse_impossible(files, search.maximal(), f"with {maximum:.0%} zeros in every layer")
    found = search.within(fullness)
    loss = search.loss(found)
    if most_loss is not None and loss > most_loss:
        smallest_allowed = search.least_cost(most_loss)
        _refuse_impossible(
            files, smallest_allowed, f"at an expected loss of at most {most_loss:g}", force=True
        )
    units = np.array([_unit_count(s, pattern) for s in chosen])
    # Upwards: a file may be smaller than its budget, not larger.
    counts = np.minimum(np.ceil(found * units - 1e-9), [_most_units(u, maximum) for u in units])
    whole = np.maximum(counts, 0) / units
    sparsities = {s.name: float(f) for s, f in zip(chosen, whole, strict=True)}
    predicted = {file.model.target.name: file.bytes(whole) for file in files}
    return _with_loss(Allocation(pattern, sparsities, _weights(chosen), left_dense, predicted), curves)


@torch.no_grad()
def error_curves(
    model: nn.Module,
    pattern: Pattern,
    *,
    criterion: str = "magnitude",
    layers: Sequence[str] | None = None,
    maximum: float = MAXIMUM_SPARSITY,
) -> Curves:
    """What zeros cost without measuring accuracy: the noise they make over the signal that stays.

    Of each layer, the sum of squares of the weights that go over that of those that stay. It rises slowly
    where small weights go and without end where a layer is emptied, which no sum over layers should hide.

    Args:
        model: any module.
        pattern: where zeros may be.
        criterion: a name in `CRITERIA`; it decides which weights go.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        maximum: the last sparsity.

    Raises:
        UserError: see `select`.
    """
    _refuse_bounds(maximum, pattern)
    chosen, _ = _fitting(model, pattern, maximum, layers)
    return _errors(chosen, pattern, criterion, maximum)


def _errors(chosen: Sequence[Selected], pattern: Pattern, criterion: str, maximum: float) -> Curves:
    score = _of_weights(criterion)
    sparsities = np.append(np.arange(0, maximum - 1e-9, 0.05), maximum)
    loss = np.zeros((len(chosen), len(sparsities)))
    for row, selected in enumerate(chosen):
        weight = selected.layer.weight.detach().float()
        order = pattern.units(score(weight)).flatten().argsort()
        squares = pattern.units(weight.square()).flatten()[order].double()
        # The sum of squares of the units that go, for any number of them.
        gone = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0).cpu()]).numpy()
        lost = gone[np.rint(sparsities * len(order)).astype(int)]
        loss[row] = lost / np.maximum(gone[-1] - lost, max(1e-6 * gone[-1], 1e-30))
    return Curves(tuple(s.name for s in chosen), tuple(float(s) for s in sparsities), loss)


class _Search:
    """Sparsities by layer that trade expected loss against cost, one multiplier for all layers."""

    def __init__(
        self,
        names: Sequence[str],
        curves: Curves,
        maximum: float,
        cost: Callable[[Numbers], Numbers],
    ) -> None:
        self._grid = np.append(np.arange(0, maximum - 1e-9, GRID), maximum)
        self._curves, self._names = curves, names
        # Both (layers, grid).
        self._loss = np.stack([curves.at(name, self._grid) for name in names])
        self._cost = cost(self._grid)

    def within(self, fullness: Callable[[Numbers], float]) -> Numbers:
        """The least loss at which `fullness` is at most 1, and close to it; it falls as zeros grow."""
        if fullness(self._at(0.0)) <= 1:
            return self._at(0.0)
        return self._border(lambda sparsities: fullness(sparsities) <= 1)

    def least_cost(self, most_loss: float) -> Numbers:
        """The smallest cost at an expected loss of at most `most_loss`."""
        if self.loss(self.maximal()) <= most_loss:
            return self.maximal()
        return self._border(lambda sparsities: self.loss(sparsities) > most_loss, before=True)

    def maximal(self) -> Numbers:
        """As many zeros as are allowed."""
        return np.full(len(self._names), self._grid[-1])

    def loss(self, sparsities: Numbers) -> float:
        """Expected, of all layers."""
        pairs = zip(self._names, sparsities, strict=True)
        return float(sum(self._curves.at(name, np.array([s]))[0] for name, s in pairs))

    def _at(self, multiplier: float) -> Numbers:
        """Each layer's best sparsity at a price of cost; the lowest of several equally good."""
        return np.asarray(self._grid[np.argmin(self._loss + multiplier * self._cost, axis=1)])

    def _border(self, beyond: Callable[[Numbers], bool], before: bool = False) -> Numbers:
        """Where `beyond` turns true as zeros grow: just after, or just before.

        Between two neighbouring multipliers only a few layers jump from one sparsity to another; they are
        moved together along the way.
        """
        low, high = -30.0, 30.0  # Powers of ten: from "cost does not matter" to "only cost does".
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if beyond(self._at(10.0**middle)) else (middle, high)
        start, end = self._at(10.0**low), self._at(10.0**high)
        if not beyond(end):  # A cost that is level up to the end: not even the highest price reaches it.
            end = self.maximal()
        near, far = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            near, far = (near, middle) if beyond(start + middle * (end - start)) else (middle, far)
        return np.asarray(start + (near if before else far) * (end - start))


class _File:
    """The size of one target's file for sparsities of the layers that take part."""

    def __init__(self, model: SizeModel, chosen: Sequence[Selected], pattern: Pattern, budget: int) -> None:
        places = {layer.name: index for index, layer in enumerate(model.layers)}
        counts = {layer.name: int(np.prod(layer.shape)) for layer in model.layers}
        missing = [s.name for s in chosen if counts.get(s.name) != s.layer.weight.numel()]
        if missing:
            raise UserError(
                f"the size model of {model.target.name} knows no layer {missing[0]!r} of this size: "
                "calibrate it with a conversion of this very model"
            )
        self.model, self.budget = model, budget
        self._places = [places[s.name] for s in chosen]
        self._block = (pattern.out, pattern.in_) if isinstance(pattern, Block) else (1, 1)

    def bytes(self, sparsities: Numbers) -> int:
        """Of the file."""
        return int(self.model.bytes(self._kept(sparsities), self._block))

    def shares(self, grid: Numbers) -> Numbers:
        """Bytes of each layer's weight as shares of the budget, (layers, grid)."""
        sparsities = np.broadcast_to(grid[:, None], (len(grid), len(self._places)))
        stored = self.model.layer_bytes(self._kept(sparsities), self._block)
        return np.asarray(stored[:, self._places].T / self.budget)

    def _kept(self, sparsities: Numbers) -> Numbers:
        kept = np.broadcast_to(self.model.counts, (*sparsities.shape[:-1], len(self.model.layers))).copy()
        kept[..., self._places] *= 1 - sparsities
        return kept


def _fitting(
    model: nn.Module, pattern: Pattern, sparsity: float, layers: Sequence[str] | None
) -> tuple[list[Selected], dict[str, str]]:
    """The layers that take part, and those that the pattern does not fit."""
    level = pattern.sparsity if isinstance(pattern, NofM) else sparsity
    names: Sequence[str | None] = [None] if layers is None else layers
    selected = select(model, [Rule(pattern, level, name) for name in names])
    fitting = [s for s in selected if not s.reason]
    if not fitting:
        raise UserError(f"no layer takes part: {pattern} fits none of {len(selected)}")
    return fitting, {s.name: s.reason for s in selected if s.reason}


def _of_weights(name: str) -> Criterion:
    """A criterion that needs nothing but the weights.

    Raises:
        UserError: there is none of this name, or it needs more.
    """
    alone = [
        key
        for key, criterion in CRITERIA.items()
        if criterion.needs is Need.NOTHING and not criterion.whole_channels
    ]
    if name not in alone:
        raise UserError(
            f"criterion {name!r} does not rank weights by themselves: choose from {', '.join(alone)}"
        )
    return CRITERIA[name]


def _refuse_bounds(maximum: float, pattern: Pattern) -> None:
    problems = []
    if not 0 < maximum < 1:
        problems.append(f"maximum sparsity {maximum:g} is not between 0 and 1: 0.95 means 95 % zeros")
    if not isinstance(pattern, (Unstructured, Block)):
        problems.append(f"{pattern}: only blocks and single weights can be allocated; the rest is uniform")
    if problems:
        raise UserError(problems)


def _refuse_above(sparsity: float, maximum: float, pattern: Pattern) -> None:
    _refuse_bounds(maximum, pattern)
    if sparsity > maximum:
        raise UserError(f"sparsity {sparsity:g} is above the maximum of any layer, {maximum:g}")


def _refuse_budgets(budgets: Mapping[str, int], sizes: Mapping[str, SizeModel]) -> None:
    problems = [] if budgets else ["no budget: give bytes for one target or more"]
    problems += [
        f"budget for {target}: {wanted:,} bytes" for target, wanted in budgets.items() if wanted <= 0
    ]
    problems += [f"budget for {target}: no size model for it" for target in budgets if target not in sizes]
    if problems:
        raise UserError(problems)


def _refuse_impossible(
    files: Sequence[_File], sparsities: Numbers, condition: str, *, force: bool = False
) -> None:
    sizes = [(file, file.bytes(sparsities)) for file in files]
    problems = [
        f"{file.model.target.name}: {file.budget:,} bytes cannot be met: the smallest file is about "
        f"{size / (1 - SIZE_MARGIN):,.0f} bytes, {condition}"
        for file, size in sizes
        if force or size > file.budget * (1 - SIZE_MARGIN)
    ]
    if problems:
        raise UserError(problems)


def _curves_of(chosen: Sequence[Selected], pattern: Pattern, curves: Curves | None) -> Curves:
    if curves is None:
        return _errors(chosen, pattern, "magnitude", 0.99)
    missing = [s.name for s in chosen if s.name not in curves.layers]
    if missing:
        raise UserError(f"no sensitivity was measured for {', '.join(missing[:3])}: measure every layer")
    return curves


def _allocation(
    pattern: Pattern,
    chosen: Sequence[Selected],
    left_dense: Mapping[str, str],
    wanted: Numbers,
    sparsity: float,
    maximum: float,
) -> Allocation:
    """Whole blocks near the wanted sparsities, whose sum is that of the overall sparsity to one block."""
    units = [_unit_count(s, pattern) for s in chosen]
    counts = _whole(np.array([w * u for w, u in zip(wanted, units, strict=True)]), units, sparsity, maximum)
    sparsities = {s.name: c / u for s, c, u in zip(chosen, counts, units, strict=True)}
    return Allocation(pattern, sparsities, _weights(chosen), left_dense)


def _whole(wanted: Numbers, units: Sequence[int], sparsity: float, maximum: float) -> list[int]:
    """Round so that the sum is right: the largest remainders are rounded up first."""
    most = np.array([_most_units(u, maximum) for u in units])
    counts = np.minimum(np.floor(wanted + 1e-9).astype(np.int64), most)
    missing = _total_units(sparsity, units, maximum) - int(counts.sum())
    while missing:
        step = 1 if missing > 0 else -1
        room = (counts < most) if step > 0 else (counts > 0)
        order = [i for i in np.argsort(-step * (wanted - counts), kind="stable") if room[i]]
        for index in order[: abs(missing)]:
            counts[index] += step
        missing -= step * min(len(order), abs(missing))
    return [int(count) for count in counts]


def _total_units(sparsity: float, units: Sequence[int], maximum: float) -> int:
    return min(round(sparsity * sum(units)), sum(_most_units(u, maximum) for u in units))


def _most_units(units: int, maximum: float) -> int:
    return int(maximum * units + 1e-9)


def _unit_count(selected: Selected, pattern: Pattern) -> int:
    return int(pattern.units(selected.layer.weight.detach()).numel())


def _weights(chosen: Sequence[Selected]) -> dict[str, int]:
    return {s.name: s.layer.weight.numel() for s in chosen}


def _with_loss(allocation: Allocation, curves: Curves) -> Allocation:
    pairs = allocation.sparsities.items()
    loss = float(sum(curves.at(name, np.array([sparsity]))[0] for name, sparsity in pairs))
    return Allocation(
        allocation.pattern,
        allocation.sparsities,
        allocation.weights,
        allocation.left_dense,
        allocation.bytes,
        loss,
    )
