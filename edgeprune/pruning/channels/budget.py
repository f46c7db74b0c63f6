"""Channels removed wherever they matter least for what they cost, until a budget is met.

`shrink` takes the same share of every layer. Here all channels of the network compete: what removing one
adds to the loss, to first order, is divided by what it saves, and the cheapest to lose go first (Molchanov et
al., CVPR 2019, for the importance; Shen et al., NeurIPS 2022, for the importance by cost).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.layers import kind_of, weighted_layers
from edgeprune.errors import UserError
from edgeprune.models.attention import attention_blocks, is_attention
from edgeprune.models.cost import count_macs, count_parameters
from edgeprune.pruning.calibration import (
    Batch,
    Calibration,
    Layer,
    Loss,
    evaluating,
    read_batches,
    run,
)
from edgeprune.pruning.channels.shrink import narrowed

COUNTS: dict[str, Callable[[nn.Module, Tensor], int]] = {
    "macs": count_macs,
    "parameters": lambda model, example: count_parameters(model),
}
# What is left of a layer, at the least: a network that is cut through somewhere does not recover.
LEAST_LEFT = 0.1
TOLERANCE = 0.03  # By which more may be left, where nothing smaller can be had.


@dataclass(frozen=True)
class _Group:
    """Channels that can only go together with those of the same number in other layers.

    Attributes:
        layer: name of the layer that stands for them.
        importance: (channels,) float64, what the loss changes by without each, squared.
        saved: multiplications or weights that go with each.
    """

    layer: str
    importance: Tensor
    saved: float


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
) -> dict[str, tuple[int, int]]:
    """Remove channels, in place, until `left` of the model's multiplications or weights remain.

    Args:
        model: a convolutional network in eval mode.
        example: (1, 3, h, w), for tracing; its size decides how often a weight is used.
        left: fraction that stays, above 0 and below 1; met as closely as rounded widths allow.
        of: "macs", multiply-accumulates, for speed; "parameters", for bytes.
        calibration: batches of (images, labels); many small ones tell more than few large ones, and a
            thousand images are plenty.
        loss: from (outputs, labels).
        round_to: remaining widths are multiples of this.
        keep: names of further layers whose outputs stay as they are.

    Returns:
        Output channels (before, after) of each convolution and linear layer that shrank.

    Raises:
        UserError: a fraction out of range or out of reach, an unknown count or layer in `keep`, attention,
            missing labels, NaN or infinity.
    """
    cut = least_channels(
        model, example, left, of=of, calibration=calibration, loss=loss, round_to=round_to, keep=keep
    )
    before = weighted_layers(model, example)
    remove(model, example, cut)
    return narrowed(before, weighted_layers(model, example))


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
) -> dict[str, list[int]]:
    """The channels that `shrink_to` removes, by the layer that stands for them; `model` stays as it is."""
    _refuse(model, left, of, keep)
    batches = read_batches(calibration, "taylor")
    with evaluating(model):
        groups = list(_groups(model, example, of, batches, loss, keep))
        found = _searched(model, example, groups, left, of, round_to)
    if min(found) > left + TOLERANCE:
        raise UserError(
            f"{left:g} of the {of} cannot be left: {min(found):.2f} is the least; every layer keeps "
            f"{LEAST_LEFT:.0%} of its channels or more, and widths are rounded to {round_to}"
        )
    nearest = found[min(found, key=lambda share: abs(share - left))]
    return {layer: channels for layer, channels in nearest.items() if channels}


def _searched(
    model: nn.Module, example: Tensor, groups: Sequence[_Group], left: float, of: str, round_to: int
) -> dict[float, dict[str, list[int]]]:
    """What was tried on copies on the way to `left`: by the share that stays, the channels that go.

    How many channels go is halved, not the threshold: scores span many decades.
    """
    dense = COUNTS[of](model, example)
    scores = torch.cat([group.importance / group.saved for group in groups]).sort().values
    tried = {}
    low, high = 0, len(scores)
    while low < high:
        middle = (low + high) // 2
        cut = {group.layer: _least(group, float(scores[middle]), round_to) for group in groups}
        trial = copy.deepcopy(model)
        remove(trial, example, cut)
        share = COUNTS[of](trial, example) / dense
        tried[share] = cut
        low, high = (middle + 1, high) if share > left else (low, middle)
    return tried


def remove(model: nn.Module, example: Tensor, cut: Mapping[str, Sequence[int]]) -> None:
    """Remove channels by the layer that stands for them, in place, wherever they are read or made."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, example)
    for name, channels in cut.items():
        if channels:
            layer = model.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, list(channels)).prune()


def _refuse(model: nn.Module, left: float, of: str, keep: Sequence[str]) -> None:
    modules = dict(model.named_modules())
    problems = [f"no layer {name!r} to keep" for name in keep if name not in modules]
    if not 0 < left < 1:
        problems.append(f"fraction left {left:g} is not between 0 and 1: 0.5 halves the model")
    if of not in COUNTS:
        problems.append(f"unknown count {of!r}: choose from {', '.join(COUNTS)}")
    attention = attention_blocks(model) + [name for name, module in modules.items() if is_attention(module)]
    if attention:
        problems.append(f"layer {attention[0]!r} is attention: use shrink_transformer, or shrink")
    if problems:
        raise UserError(problems)


def _least(group: _Group, threshold: float, round_to: int) -> list[int]:
    """Channels of the group at or below the threshold, fewer where widths are rounded; ties by index."""
    width = len(group.importance)
    wanted = int((group.importance / group.saved > threshold).sum())
    least = max(wanted, math.ceil(LEAST_LEFT * width), 1)
    stays = min(math.ceil(least / round_to) * round_to, width)
    order = group.importance.argsort(stable=True)
    return sorted(order[: width - stays].tolist())


def _groups(
    model: nn.Module, example: Tensor, of: str, batches: Sequence[Batch], loss: Loss, keep: Sequence[str]
) -> Iterator[_Group]:
    """Every group of channels that can go, but for the classes and `keep`."""
    import torch_pruning as tp

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    names = {module: name for name, module in layers.items()}
    running = weighted_layers(model, example)
    uses = {layer.name: layer.uses if of == "macs" else 1 for layer in running}
    effects = _effects(model, layers, batches, loss)
    kept = [layers[running[-1].name], *(model.get_submodule(name) for name in keep)]
    graph = tp.DependencyGraph().build_dependency(model, example)
    found = graph.get_all_groups(ignored_layers=kept, root_module_types=[nn.Conv2d, nn.Linear])
    for items in found:
        parts = [item for item in items if item.dep.target.module in names]
        if any(_grouped(item.dep.target.module) or None in item.root_idxs for item in parts):
            continue  # Channels of grouped convolutions cannot go one at a time.
        width = len(items[0].idxs)
        changes = torch.zeros(len(batches), width, dtype=torch.float64)
        saved = 0.0
        for item in parts:
            layer, name = item.dep.target.module, names[item.dep.target.module]
            reads = _reads(item)
            weights = layer.weight[:, 0].numel() if reads else layer.weight[0].numel()
            saved += weights * uses.get(name, 0) * len(item.idxs) / width
            if reads:
                changes.index_add_(1, torch.tensor(item.root_idxs), effects[name][:, item.idxs])
        yield _Group(names[items[0].dep.target.module], changes.square().mean(0), saved)


def _grouped(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and kind_of(layer) != "depthwise"


def _reads(item: Any) -> bool:
    """Whether a layer of a group reads its channels and mixes them; a depthwise one hands them on."""
    import torch_pruning as tp

    return item.dep.handler in (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


def _effects(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    """What the loss changes by, to first order, when a layer no longer reads an input: (batches, inputs).

    The change by a weight that goes is minus weight times gradient; an input takes all of its weights along.
    """
    if any(labels is None for _, labels in batches):
        raise UserError("channels are ranked by the loss: give calibration as (images, labels) pairs")
    weights = {name: layer.weight for name, layer in layers.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    with evaluating(model), torch.enable_grad():
        for images, labels in batches:
            outputs = run(model, images)
            total = loss(outputs, torch.as_tensor(labels, device=outputs.device))
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                change = torch.zeros_like(weight) if gradient is None else weight.detach() * gradient
                found[name].append(change.transpose(0, 1).flatten(1).sum(1).double().cpu())
    stacked = {name: torch.stack(changes) for name, changes in found.items()}
    infinite = [name for name, changes in stacked.items() if not bool(changes.isfinite().all())]
    if infinite:
        raise UserError([f"layer {name!r} has a NaN or infinite weight or gradient" for name in infinite])
    return stacked
