"""Channels physically removed, across every layer that must shrink with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.layers import WeightedLayer, weighted_layers
from edgeprune.errors import ToolError, UserError
from edgeprune.models.attention import is_attention
from edgeprune.models.cost import count_macs
from edgeprune.pruning.calibration import (
    Batch,
    Calibration,
    Loss,
    beside,
    evaluating,
    read_batches,
    run_model,
)
from edgeprune.pruning.channels.groups import Axis, Group, find_groups
from edgeprune.pruning.channels.removal import Cut, Trials, reasons_or, unless_it_fails
from edgeprune.pruning.channels.resting import take_out_at_rest
from edgeprune.pruning.channels.transformers import shrink_transformer
from edgeprune.pruning.criteria import fpgm

CHANNEL_CRITERIA = ("squared_magnitude", "magnitude", "bn_scale", "fpgm", "taylor", "random")
SEARCH_SECONDS = 30.0  # Twice at the most: for finding groups, and for trying cuts.

# Importance of each unit of a group, (units,); None where a criterion says nothing about it.
Rank = Callable[[Group], Tensor | None]


class Shrunk(dict[str, tuple[int, int]]):
    """Output channels (before, after) of each layer that shrank.

    Attributes:
        left: layers with channels that could not go, and why; not those that were asked to stay.
    """

    def __init__(self, widths: Mapping[str, tuple[int, int]], left: Mapping[str, str]) -> None:
        super().__init__(widths)
        self.left = dict(left)


def shrink(
    model: nn.Module,
    example: Tensor,
    fraction: float,
    *,
    round_to: int = 8,
    keep: Sequence[str] = (),
    criterion: str = "squared_magnitude",
    calibration: Calibration | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    seconds: float = SEARCH_SECONDS,
) -> Shrunk:
    """Remove the `fraction` of each layer's output channels that matters least, in place.

    Channels that depend on each other (residuals, depthwise, squeeze-and-excite) go together; a unit's
    importance is the mean over all layers that make, carry or read it (DepGraph, Fang et al., CVPR 2023).
    Layers that give the model's answers keep their width. Each removal is tried before it is done: a group
    of layers without which the model fails, or whose zeroed channels cannot go without moving the answers,
    is left, and the result's `left` says why. A vision transformer of timm's loses that fraction of its
    attention heads and of its MLPs' width: see `shrink_transformer`; other attention is left whole.

    Args:
        model: any module; it is run in eval mode, and keeps its own.
        example: (1, 3, h, w), what the model is run on to see how its layers depend on each other.
        fraction: of channels to remove, above 0 and below 1; widths are then rounded to `round_to`.
        round_to: odd widths run slowly on every runtime measured; 8 suits them all.
        keep: names of further layers, or of modules around them, whose outputs stay as they are.
        criterion: "squared_magnitude" or "magnitude", the weights that make and read a channel; "bn_scale",
            of channels with a batch norm, the others stay; "fpgm", distance to the layer's other filters;
            "taylor", from gradients; "random".
        calibration: batches of (images, labels), for "taylor".
        loss: from (outputs, labels), for "taylor".
        seed: for "random".
        seconds: for finding what goes together, and again for trying it; what was not tried by then is left.

    Returns:
        Output channels (before, after) of each convolution and linear layer that shrank, and what was left.

    Raises:
        UserError: a fraction out of range, an unknown layer in `keep` or criterion, a scripted module, an
            example that the model does not take, missing calibration images or labels.
        ToolError: nothing could be removed. The model is then as it was.
    """
    modules = dict(model.named_modules())
    problems = [f"no layer {name!r} to keep" for name in keep if name not in modules]
    if not 0 < fraction < 1:
        problems.insert(0, f"channel fraction {fraction:g} is not between 0 and 1: 0.5 removes half of them")
    transformer = any(is_attention(module) for module in modules.values())
    if criterion not in CHANNEL_CRITERIA and not transformer:
        problems.append(
            f"unknown criterion {criterion!r} for channels: choose from {', '.join(CHANNEL_CRITERIA)}"
        )
    if problems:
        raise UserError(problems)
    if transformer:
        with unless_it_fails(model):
            widths = shrink_transformer(
                model,
                example,
                heads=fraction,
                width=fraction,
                round_to=round_to,
                keep=keep,
                criterion=criterion,
                calibration=calibration,
                loss=loss,
                seed=seed,
            )
        return Shrunk(widths, {})
    found = find_groups(model, example, keep=keep, seconds=seconds)
    rank = _ranking(model, criterion, calibration, loss, seed)
    cuts = [cut for group in found.groups for cut in _least(group, rank, fraction, round_to)]
    possible, moving = Trials(model, example, seconds=seconds).possible(cuts)
    left = {**found.left, **moving}
    if not possible:
        raise reasons_or(
            f"no channel could be removed at fraction {fraction:g}: widths are rounded to {round_to}; "
            "ask for a larger fraction or a smaller rounding",
            left,
        )
    with unless_it_fails(model), evaluating(model):
        before = weighted_layers(model, example)
        take_out_at_rest(model, example, possible)
        widths = narrowed(before, weighted_layers(model, example))
    return Shrunk(widths, left)


def _least(group: Group, rank: Rank, fraction: float, round_to: int) -> Iterator[Cut]:
    """The units of a group that matter least, as many as leave a rounded width."""
    step = unit_step(group, round_to)
    stays = max(round(len(group) * (1 - fraction) / step), 1) * step
    if stays >= len(group):
        return
    importance = rank(group)
    if importance is not None:
        yield group, sorted(importance.argsort(stable=True)[: len(group) - stays].tolist())


def unit_step(group: Group, round_to: int) -> int:
    """The units that must stay or go together so that every layer's width is a multiple of `round_to`."""
    return math.lcm(*(round_to // math.gcd(round_to, group.places[axis].shape[1]) for axis in group.makers))


def narrowed(before: Sequence[WeightedLayer], after: Sequence[WeightedLayer]) -> dict[str, tuple[int, int]]:
    """Output channels (before, after) of the layers that have fewer than they had."""
    left = {layer.name: layer.shape[0] for layer in after}
    return {
        layer.name: (layer.shape[0], left[layer.name])
        for layer in before
        if left[layer.name] < layer.shape[0]
    }


def fraction_for_macs(
    model: nn.Module, example: Tensor, macs_fraction: float, *, tolerance: float = 0.01, **settings: Any
) -> float:
    """Find the fraction of channels for `shrink` that leaves `macs_fraction` of the multiply-accumulates.

    Halves an interval on copies; `model` itself is not touched. Widths are rounded, so that not every
    target can be met: the fraction whose result is nearest is given.

    Args:
        model: a module in eval mode.
        example: (1, 3, h, w).
        macs_fraction: to be left, above 0 and below 1.
        tolerance: how near is near enough, as a fraction of the dense model's.
        settings: further arguments of `shrink`.

    Raises:
        UserError: a fraction out of range; see `shrink`.
    """
    if not 0 < macs_fraction < 1:
        raise UserError(f"fraction of multiply-accumulates {macs_fraction:g} is not between 0 and 1")
    dense = count_macs(model, example)
    low, high = 0.0, 1.0
    tried: dict[float, float] = {}
    while high - low > 1 / 256 and min(tried.values(), default=1.0) > tolerance:
        fraction = (low + high) / 2
        left = _macs_left(copy.deepcopy(model), example, fraction, settings) / dense
        tried[fraction] = abs(left - macs_fraction)
        low, high = (fraction, high) if left > macs_fraction else (low, fraction)
    return min(tried, key=lambda fraction: tried[fraction])


def _macs_left(model: nn.Module, example: Tensor, fraction: float, settings: Mapping[str, Any]) -> int:
    with suppress(ToolError):  # So small a fraction that rounding leaves everything.
        shrink(model, example, fraction, **settings)
    return count_macs(model, example)


def _ranking(
    model: nn.Module, criterion: str, calibration: Calibration | None, loss: Loss, seed: int
) -> Rank:
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda group: torch.rand(len(group), generator=generator)
    weights = {name: p.detach().float().cpu() for name, p in model.named_parameters()}
    if criterion == "bn_scale":
        scales = _batch_norm_scales(model)
        return lambda group: _mean_over(group, {n: w.abs() for n, w in weights.items() if n in scales})
    if criterion == "fpgm":
        return lambda group: _fpgm_of(group, weights)
    if criterion == "taylor":
        gradients = _gradients(model, read_batches(calibration, criterion), loss)
        values = {name: (weights[name] * gradients[name]).abs() for name in weights}
    else:
        values = {n: w.abs() if criterion == "magnitude" else w.square() for n, w in weights.items()}
    ranked = {n: v for n, v in values.items() if v.dim() > 1 or n in _batch_norm_scales(model)}
    return lambda group: _mean_over(group, ranked)


def _batch_norm_scales(model: nn.Module) -> set[str]:
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
    }


def _mean_over(group: Group, values: Mapping[str, Tensor]) -> Tensor | None:
    """What the values add up to for each unit, the mean over the weights that have any: (units,)."""
    sums = [_of_units(values[axis.tensor], axis, group) for axis in group.places if axis.tensor in values]
    return torch.stack(sums).mean(0) if sums else None


def _of_units(values: Tensor, axis: Axis, group: Group) -> Tensor:
    along = values.movedim(axis.dim, 0).flatten(1).sum(1) if values.dim() > 1 else values
    return along[torch.from_numpy(group.places[axis])].sum(1)


def _fpgm_of(group: Group, weights: Mapping[str, Tensor]) -> Tensor | None:
    """FPGM of each layer that makes the group's channels, added up (He et al., CVPR 2019)."""
    total = torch.zeros(len(group))
    for axis in group.makers:
        weight = weights.get(axis.tensor)
        if weight is None:
            return None
        distances = fpgm(weight.movedim(axis.dim, 0)).flatten(1).sum(1)
        # Layers of many inputs have larger distances: each counts alike.
        shares = distances / distances.mean().clamp_min(torch.finfo(torch.float32).tiny)
        total += shares[torch.from_numpy(group.places[axis])].sum(1)
    return total if bool(total.any()) else None


def _gradients(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> dict[str, Tensor]:
    """Gradient of the loss, added up over all batches, by parameter; nothing is left in `.grad`."""
    if any(labels is None for _, labels in batches):
        raise UserError("criterion 'taylor' needs the loss: give calibration as (images, labels) pairs")
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    totals = {name: torch.zeros(p.shape) for name, p in parameters.items()}
    with evaluating(model), all_learning(parameters.values()), torch.enable_grad():
        for images, labels in batches:
            outputs = run_model(model, images)
            value = loss(outputs, beside(labels, outputs))
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    totals[name] += gradient.detach().float().cpu()
    infinite = [name for name, gradient in totals.items() if not bool(gradient.isfinite().all())]
    if infinite:
        raise UserError([f"weight {name!r} has a NaN or infinite gradient" for name in infinite])
    return totals


@contextmanager
def all_learning(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Frozen weights have gradients too, inside."""
    frozen = [p for p in parameters if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
