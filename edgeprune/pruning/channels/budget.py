"""Channels removed wherever they matter least for what they cost, until a budget is met.

`shrink` takes the same share of every layer. Here all channels of the network compete: what removing one
adds to the loss, to first order, is divided by what it saves, and the cheapest to lose go first (Molchanov et
al., CVPR 2019, for the importance; Shen et al., NeurIPS 2022, for the importance by cost).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.layers import weighted_layers
from edgeprune.allocator import keeping_freed_memory
from edgeprune.errors import UserError
from edgeprune.models.attention import is_attention
from edgeprune.models.cost import count_macs, count_parameters
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
from edgeprune.pruning.channels.removal import Cut, Trials, reasons_or, take_out, undone, unless_it_fails
from edgeprune.pruning.channels.resting import take_out_at_rest
from edgeprune.pruning.channels.shrink import SEARCH_SECONDS, Shrunk, all_learning, narrowed, unit_step

COUNTS: dict[str, Callable[[nn.Module, Tensor], int]] = {
    "macs": count_macs,
    "parameters": lambda model, example: count_parameters(model),
}
# What is left of a layer, at the least: a network that is cut through somewhere does not recover.
LEAST_LEFT = 0.1
TOLERANCE = 0.03  # By which more may be left, where nothing smaller can be had.


@dataclass(frozen=True)
class _Ranked:
    """Channels that can only go together with those of the same number in other layers.

    Attributes:
        group: which.
        importance: (units,) float64, what the loss changes by without each, squared.
        saved: multiplications or weights that go with each.
    """

    group: Group
    importance: Tensor
    saved: float


@keeping_freed_memory()
def shrink_to(
    model: nn.Module,
    example: Tensor,
    left: float,
    *,
    of: str = "macs",
    calibration: Calibration | None,
    loss: Loss = F.cross_entropy,
    round_to: int = 8,
    keep: Sequence[str] = (),
    seconds: float = SEARCH_SECONDS,
) -> Shrunk:
    """Remove channels, in place, until `left` of the model's multiplications or weights remain.

    What cannot go is left, as `shrink` leaves it.

    Args:
        model: a convolutional network; it is run in eval mode, and keeps its own.
        example: (1, 3, h, w), for tracing; its size decides how often a weight is used.
        left: fraction that stays, above 0 and below 1; met as closely as rounded widths allow.
        of: "macs", multiply-accumulates, for speed; "parameters", for bytes.
        calibration: batches of (images, labels); many small ones tell more than few large ones, and a
            thousand images are plenty.
        loss: from (outputs, labels).
        round_to: remaining widths are multiples of this.
        keep: names of further layers, or of modules around them, whose outputs stay as they are.
        seconds: see `shrink`.

    Returns:
        Output channels (before, after) of each convolution and linear layer that shrank, and what was left.

    Raises:
        UserError: a fraction out of range or out of reach, an unknown count or layer in `keep`, attention,
            missing labels, NaN or infinity. The model is then as it was.
        ToolError: nothing could be removed.
    """
    cut, kept = _least_channels(
        model, example, left, of, calibration, loss, round_to=round_to, keep=keep, seconds=seconds
    )
    with unless_it_fails(model), evaluating(model):
        before = weighted_layers(model, example)
        take_out_at_rest(model, example, cut)
        widths = narrowed(before, weighted_layers(model, example))
    return Shrunk(widths, kept)


def least_channels(
    model: nn.Module,
    example: Tensor,
    left: float,
    *,
    of: str = "macs",
    calibration: Calibration | None,
    loss: Loss = F.cross_entropy,
    round_to: int = 8,
    keep: Sequence[str] = (),
    seconds: float = SEARCH_SECONDS,
) -> dict[str, list[int]]:
    """The channels that `shrink_to` removes, by the layer that stands for them; `model` stays as it is.

    Of a group whose units have several channels of that layer (grouped convolutions), all of them.
    """
    cut, _ = _least_channels(
        model, example, left, of, calibration, loss, round_to=round_to, keep=keep, seconds=seconds
    )
    channels: dict[str, list[int]] = {}
    for group, units in cut:
        places = group.places[group.makers[0]][list(units)]
        channels[group.layer] = sorted(channels.get(group.layer, []) + places.ravel().tolist())
    return channels


def _least_channels(
    model: nn.Module,
    example: Tensor,
    left: float,
    of: str,
    calibration: Calibration | None,
    loss: Loss,
    *,
    round_to: int,
    keep: Sequence[str],
    seconds: float,
) -> tuple[list[Cut], dict[str, str]]:
    _refuse(model, left, of, keep)
    batches = read_batches(calibration, "taylor")
    found = find_groups(model, example, keep=keep, seconds=seconds)
    with evaluating(model):
        ranked = _rank(model, example, found.groups, of, batches, loss)
        # As much as may ever go, to know which groups can.
        most = [(r.group, units) for r in ranked if (units := _least(r, math.inf, round_to))]
        possible, moving = Trials(model, example, seconds=seconds).possible(most)
        able = {id(group) for group, _ in possible}
        ranked = [r for r in ranked if id(r.group) in able]
        kept = {**found.left, **moving}
        if not ranked:
            raise reasons_or(f"no channel can be removed; widths are rounded to {round_to}", kept)
        tried = _searched(model, example, ranked, left, of, round_to)
    if min(tried) > left + TOLERANCE:
        raise UserError(
            [
                f"{left:g} of the {of} cannot be left: {min(tried):.2f} is the least; every layer keeps "
                f"{LEAST_LEFT:.0%} of its channels or more, and widths are rounded to {round_to}",
                *(f"  {name!r} stays: {reason}" for name, reason in list(kept.items())[:5]),
            ]
        )
    return tried[min(tried, key=lambda share: abs(share - left))], kept


def _searched(
    model: nn.Module, example: Tensor, ranked: Sequence[_Ranked], left: float, of: str, round_to: int
) -> dict[float, list[Cut]]:
    """What was tried on the way to `left`: by the share that stays, what goes.

    How many units go is halved, not the threshold: scores span many decades.
    """
    dense = COUNTS[of](model, example)
    scores = torch.cat([r.importance / r.saved for r in ranked]).sort().values
    tried: dict[float, list[Cut]] = {}
    low, high = 0, len(scores)
    while low < high:
        middle = (low + high) // 2
        least = [(r.group, _least(r, float(scores[middle]), round_to)) for r in ranked]
        cut: list[Cut] = [(group, units) for group, units in least if units]
        with undone(model):
            take_out(model, cut)
            share = COUNTS[of](model, example) / dense
        tried[share] = cut
        low, high = (middle + 1, high) if share > left else (low, middle)
    return tried


def remove(
    model: nn.Module, example: Tensor, cut: Mapping[str, Sequence[int]], *, seconds: float = SEARCH_SECONDS
) -> None:
    """Remove channels by a layer that makes them, in place, wherever they are carried or read.

    Args:
        model: any module; it is run in eval mode, and keeps its own.
        example: (1, 3, h, w).
        cut: channels by layer, as `least_channels` gives them.
        seconds: see `shrink`.

    Raises:
        UserError: a channel that cannot go, or not alone. The model is then as it was.
    """
    found = find_groups(model, example, seconds=seconds)
    cuts: list[Cut] = []
    problems: list[str] = []
    for layer, channels in cut.items():
        wanted = set(channels)
        for group in found.groups:
            for axis in (axis for axis in group.makers if axis.layer == layer):
                units = [u for u, places in enumerate(group.places[axis].tolist()) if wanted & set(places)]
                together = {place for unit in units for place in group.places[axis][unit].tolist()}
                problems += [f"layer {layer!r}: channels {sorted(together)[:8]} go together"] * (
                    not together <= wanted
                )
                wanted -= together
                cuts += [(group, units)] * bool(units)
        if wanted:
            reason = found.left.get(layer, "they are not its channels, or nothing reads them")
            problems.append(f"layer {layer!r}: channels {sorted(wanted)[:8]} cannot go: {reason}")
    possible, moving = Trials(model, example, seconds=seconds).possible(cuts)
    problems += [f"layer {layer!r}: {reason}" for layer, reason in moving.items()]
    if problems:
        raise UserError(problems)
    take_out_at_rest(model, example, possible)


def _refuse(model: nn.Module, left: float, of: str, keep: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    problems = [f"no layer {name!r} to keep" for name in keep if name not in modules]
    if not 0 < left < 1:
        problems.append(f"fraction left {left:g} is not between 0 and 1: 0.5 halves the model")
    if of not in COUNTS:
        problems.append(f"unknown count {of!r}: choose from {', '.join(COUNTS)}")
    attention = [name for name, module in modules.items() if is_attention(module)]
    if attention:
        problems.append(f"layer {attention[0]!r} is attention: use shrink_transformer, or shrink")
    if problems:
        raise UserError(problems)


def _least(ranked: _Ranked, threshold: float, round_to: int) -> list[int]:
    """Units of the group at or below the threshold, fewer where widths are rounded; ties by index."""
    width = len(ranked.importance)
    wanted = int((ranked.importance / ranked.saved > threshold).sum())
    least = max(wanted, math.ceil(LEAST_LEFT * width), 1)
    step = unit_step(ranked.group, round_to)
    stays = min(math.ceil(least / step) * step, width)
    order = ranked.importance.argsort(stable=True)
    return sorted(order[: width - stays].tolist())


def _rank(
    model: nn.Module, example: Tensor, groups: Sequence[Group], of: str, batches: Sequence[Batch], loss: Loss
) -> list[_Ranked]:
    uses = {layer.name: layer.uses if of == "macs" else 1 for layer in weighted_layers(model, example)}
    axes = {axis for group in groups for axis in group.readers}
    effects = _effects(model, axes, batches, loss)
    weights = dict(model.named_parameters())
    ranked = []
    for group in groups:
        changes = torch.zeros(len(batches), len(group), dtype=torch.float64)
        for axis in group.readers:
            changes += effects[axis][:, torch.from_numpy(group.places[axis])].sum(2)
        saved = sum(
            weights[axis.tensor].numel()
            / weights[axis.tensor].shape[axis.dim]
            * places.shape[1]
            * uses.get(axis.layer, 0)
            for axis, places in group.places.items()
            if axis.tensor in weights and weights[axis.tensor].dim() > 1
        )
        ranked.append(_Ranked(group, changes.square().mean(0), max(saved, 1.0)))
    return ranked


def _effects(model: nn.Module, axes: set[Axis], batches: Sequence[Batch], loss: Loss) -> dict[Axis, Tensor]:
    """What the loss changes by, to first order, when a layer no longer reads an input: (batches, inputs).

    The change by a weight that goes is minus weight times gradient; an input takes all of its weights along.
    """
    if any(labels is None for _, labels in batches):
        raise UserError("channels are ranked by the loss: give calibration as (images, labels) pairs")
    named = dict(model.named_parameters())
    weights = {axis: named[axis.tensor] for axis in axes}
    found: dict[Axis, list[Tensor]] = {axis: [] for axis in axes}
    with evaluating(model), all_learning(weights.values()), torch.enable_grad():
        for images, labels in batches:
            outputs = run_model(model, images)
            total = loss(outputs, beside(labels, outputs))
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
            for (axis, weight), gradient in zip(weights.items(), gradients, strict=True):
                change = torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
                found[axis].append(change.movedim(axis.dim, 0).flatten(1).sum(1).double().cpu())
    stacked = {axis: torch.stack(changes) for axis, changes in found.items()}
    infinite = [axis.layer for axis, changes in stacked.items() if not bool(changes.isfinite().all())]
    if infinite:
        raise UserError([f"layer {name!r} has a NaN or infinite weight or gradient" for name in infinite])
    return stacked
