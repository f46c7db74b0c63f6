"""Channels physically removed, across every layer that must shrink with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.layers import WeightedLayer, weighted_layers
from edgeprune.errors import ToolError, UserError
from edgeprune.models.attention import attention_blocks, is_attention
from edgeprune.models.cost import count_macs
from edgeprune.pruning.calibration import Batch, Calibration, Loss, evaluating, read_batches, run
from edgeprune.pruning.channels.transformers import shrink_transformer
from edgeprune.pruning.criteria import fpgm

CHANNEL_CRITERIA = ("squared_magnitude", "magnitude", "bn_scale", "fpgm", "taylor", "random")


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
) -> dict[str, tuple[int, int]]:
    """Remove the `fraction` of each layer's output channels that matters least, in place.

    Layers that share channels (residuals, depthwise, squeeze-and-excite) shrink together; a group's
    importance is the mean over all of its layers (DepGraph, Fang et al., CVPR 2023; the groups come from
    torch-pruning). The layer that gives the classes keeps its width. A vision transformer of timm's loses
    that fraction of its attention heads and of its MLPs' width: see `shrink_transformer`.

    Args:
        model: a module in eval mode.
        example: (1, 3, h, w), for tracing.
        fraction: of channels to remove, above 0 and below 1; widths are then rounded to `round_to`.
        round_to: odd widths run slowly on every runtime measured; 8 suits them all.
        keep: names of further layers whose outputs stay as they are.
        criterion: "squared_magnitude" or "magnitude", the weights that make and read a channel; "bn_scale",
            of channels with a batch norm, the others stay; "fpgm", distance to the layer's other filters;
            "taylor", from gradients; "random".
        calibration: batches of (images, labels), for "taylor".
        loss: from (outputs, labels), for "taylor".
        seed: for "random".

    Returns:
        Output channels (before, after) of each convolution and linear layer that shrank.

    Raises:
        UserError: a fraction out of range, an unknown layer in `keep` or criterion, attention that cannot
            shrink, missing calibration images or labels.
        ToolError: nothing could be removed, or the model no longer runs.
    """
    import torch_pruning as tp

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
        return shrink_transformer(
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
    _refuse_attention(model)
    layers = weighted_layers(model, example)
    classes_layer = layers[-1].name
    if criterion == "taylor":
        _set_gradients(model, read_batches(calibration, criterion), loss)
    # Module instances and a fresh importance: torch-pruning ignores types here and shares its defaults.
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=_group_importance(criterion, seed),
        pruning_ratio=fraction,
        round_to=round_to,
        ignored_layers=[modules[name] for name in (classes_layer, *keep)],
        root_module_types=[nn.Conv2d, nn.Linear],
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    shrunk = narrowed(layers, weighted_layers(model, example))
    if not shrunk:
        raise ToolError(
            f"no channel could be removed at fraction {fraction:g}: widths are rounded to {round_to}; "
            "ask for a larger fraction or a smaller rounding"
        )
    return shrunk


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


def _group_importance(criterion: str, seed: int) -> Callable[[Any], Tensor | None]:
    """From a group of torch-pruning's to an importance of each of its channels."""
    import torch_pruning as tp

    if criterion == "bn_scale":
        return tp.importance.BNScaleImportance()  # type: ignore[no-any-return]
    if criterion == "taylor":
        return tp.importance.GroupTaylorImportance()  # type: ignore[no-any-return]
    if criterion == "fpgm":
        return _fpgm_of_group
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return lambda group: torch.rand(len(group[0].idxs), generator=generator)
    p = 1 if criterion == "magnitude" else 2
    return tp.importance.GroupMagnitudeImportance(p=p)  # type: ignore[no-any-return]


def _fpgm_of_group(group: Any) -> Tensor | None:
    """FPGM of each layer that makes the group's channels, added up.

    torch-pruning has its own, which measures distances between squared weights; the paper's are between
    the filters themselves.
    """
    import torch_pruning as tp

    makers = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
    total = torch.zeros(len(group[0].idxs))
    for item in group:
        layer = item.dep.target.module
        if item.dep.handler not in makers or None in item.root_idxs:
            continue
        distances = fpgm(layer.weight).flatten(1).sum(1).cpu()
        # Layers of many inputs have larger distances: each counts alike.
        shares = distances / distances.mean().clamp_min(torch.finfo(torch.float32).tiny)
        total.index_add_(0, torch.tensor(item.root_idxs), shares[item.idxs])
    return total if bool(total.any()) else None


def _set_gradients(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> None:
    """Leave the gradient of the loss over all batches in every parameter's `.grad`."""
    if any(labels is None for _, labels in batches):
        raise UserError("criterion 'taylor' needs the loss: give calibration as (images, labels) pairs")
    model.zero_grad(set_to_none=True)
    with evaluating(model), torch.enable_grad():
        for images, labels in batches:
            outputs = run(model, images)
            loss(outputs, torch.as_tensor(labels, device=outputs.device)).backward()  # type: ignore[no-untyped-call]
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    infinite = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    problems = [f"weight {name!r} is frozen or takes no part in the loss: no gradient" for name in without]
    problems += [f"weight {name!r} has a NaN or infinite gradient" for name in infinite]
    if problems:
        raise UserError(problems)


def _refuse_attention(model: nn.Module) -> None:
    """Heads that are not taken out whole would leave a model that computes something else."""
    others = attention_blocks(model)
    if others:
        kind = type(model.get_submodule(others[0])).__name__
        raise UserError(
            f"layer {others[0]!r} is a {kind}: channels around attention can be removed only from timm's "
            "plain kind, e.g. timm/vit_tiny_patch16_224"
        )
