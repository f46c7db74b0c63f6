"""Attention heads and MLP width of vision transformers, physically removed.

timm's `Attention` and `Mlp` blocks, as in its ViT, DeiT and the like. What runs between the blocks, the
embedding, keeps its width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.errors import ToolError, UserError
from edgeprune.models.attention import attention_blocks, is_attention, is_mlp, set_heads
from edgeprune.pruning.calibration import Calibration, Loss, evaluating
from edgeprune.pruning.criteria import criterion_named
from edgeprune.pruning.oneshot import gather_statistics, importance_of
from edgeprune.pruning.patterns import Unstructured, smallest
from edgeprune.pruning.select import Rule, Selected

# Importance (weight's shape) of a linear layer of the model.
Rank = Callable[[nn.Linear], Tensor]


def shrink_transformer(
    model: nn.Module,
    example: Tensor,
    *,
    heads: float,
    width: float,
    round_to: int = 8,
    keep: Sequence[str] = (),
    criterion: str = "squared_magnitude",
    calibration: Calibration | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
) -> dict[str, tuple[int, int]]:
    """Remove attention heads and hidden MLP features that matter least, in place.

    A head's importance is the sum over the weights that make its queries, keys and values and over those
    that read it; a hidden feature's, the sum over its row of the first layer and its column of the second
    (Michel et al., 2019, remove heads; the MLP's width as in Fang et al., 2023).

    Args:
        model: with timm's `Attention` or `Mlp` blocks.
        example: (1, 3, h, w), to see that the model still runs.
        heads: fraction of each block's heads to remove, 0 to below 1; rounded down.
        width: fraction of each MLP's hidden features to remove, 0 to below 1.
        round_to: remaining MLP widths are multiples of this.
        keep: names of attention or MLP blocks, or of their `qkv` or `fc1`, left as they are.
        criterion: a name in `CRITERIA` that ranks single weights.
        calibration: images for it, or (images, labels); see `prune`.
        loss: from (outputs, labels), for criteria that need gradients.
        seed: for "random".

    Returns:
        Output features (before, after) of each layer that shrank: "...qkv" for heads, "...fc1" for MLPs.

    Raises:
        UserError: fractions out of range, nothing of this kind in the model, or blocks of another.
        ToolError: nothing could be removed, or the model no longer runs.
    """
    modules = dict(model.named_modules())
    attentions = {n: m for n, m in modules.items() if is_attention(m) and not {n, f"{n}.qkv"} & set(keep)}
    mlps = {n: m for n, m in modules.items() if is_mlp(m) and not {n, f"{n}.fc1"} & set(keep)}
    _refuse(model, {"heads": heads, "width": width}, keep, bool(attentions or mlps))
    rank = _ranking(model, attentions, mlps, criterion, calibration, loss, seed)

    shrunk: dict[str, tuple[int, int]] = {}
    for name, attention in attentions.items():
        before = int(attention.qkv.out_features)
        _remove_heads(attention, int(heads * attention.num_heads), rank)
        shrunk[f"{name}.qkv"] = before, int(attention.qkv.out_features)
    for name, mlp in mlps.items():
        before = int(mlp.fc1.out_features)
        _remove_width(mlp, _rounded(before, width, round_to), rank)
        shrunk[f"{name}.fc1"] = before, int(mlp.fc1.out_features)
    shrunk = {name: (before, after) for name, (before, after) in shrunk.items() if after < before}
    if not shrunk:
        raise ToolError(
            f"no head or MLP feature could be removed at fractions {heads:g} and {width:g}: heads are "
            f"rounded down and widths to {round_to}; ask for larger fractions"
        )
    with evaluating(model), torch.no_grad():
        model(example)
    return shrunk


def _refuse(model: nn.Module, fractions: dict[str, float], keep: Sequence[str], found: bool) -> None:
    problems = [
        f"fraction of {word} {fraction:g} is not in [0, 1): 0.5 removes half of them"
        for word, fraction in fractions.items()
        if not 0 <= fraction < 1
    ]
    names = dict(model.named_modules())
    problems += [f"no block {name!r} to keep" for name in keep if name not in names]
    if not found:
        others = attention_blocks(model)
        having = f"; {others[0]!r} is a {type(model.get_submodule(others[0])).__name__}" if others else ""
        problems.append(f"the model has no attention or MLP blocks of timm's plain kind{having}")
    if problems:
        raise UserError(problems)


def _ranking(
    model: nn.Module,
    attentions: dict[str, nn.Module],
    mlps: dict[str, nn.Module],
    criterion: str,
    calibration: Calibration | None,
    loss: Loss,
    seed: int,
) -> Rank:
    if criterion_named(criterion).whole_channels:
        raise UserError(f"criterion {criterion!r} ranks single channels: heads are several together")
    names = [f"{name}.{part}" for name in attentions for part in ("qkv", "proj")]
    names += [f"{name}.{part}" for name in mlps for part in ("fc1", "fc2")]
    rule = Rule(Unstructured(), 0.0)
    selected = [Selected(name, _linear(model.get_submodule(name)), rule) for name in names]
    statistics = gather_statistics(model, selected, criterion, calibration=calibration, loss=loss, seed=seed)
    ranked = {s.layer: importance_of(s, criterion, statistics.get(s.name)) for s in selected}
    return lambda layer: ranked[layer]


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise UserError(f"a {type(module).__name__} where a linear layer was expected")
    return module


def _rounded(count: int, fraction: float, round_to: int) -> int:
    """Features to remove of `count`, so that a multiple of `round_to` stays, at least one."""
    if fraction == 0:
        return 0
    stay = max(round(count * (1 - fraction) / round_to), 1) * round_to
    return max(count - stay, 0)


def _remove_heads(attention: nn.Module, count: int, rank: Rank) -> None:
    if not count:
        return
    qkv, proj = _linear(attention.get_submodule("qkv")), _linear(attention.get_submodule("proj"))
    heads = int(attention.num_heads)  # type: ignore[arg-type]
    # qkv's rows are (3, heads, features of a head); proj's columns (heads, features of a head).
    scores = rank(qkv).reshape(3, heads, -1).sum((0, 2)) + rank(proj).sum(0).reshape(heads, -1).sum(1)
    stay = ~smallest(scores, count)
    features = stay.repeat_interleave(proj.in_features // heads)
    _keep_rows(qkv, features.repeat(3))
    _keep_columns(proj, features)
    set_heads(attention)


def _remove_width(mlp: nn.Module, count: int, rank: Rank) -> None:
    if not count:
        return
    first, second = _linear(mlp.get_submodule("fc1")), _linear(mlp.get_submodule("fc2"))
    stay = ~smallest(rank(first).sum(1) + rank(second).sum(0), count)
    _keep_rows(first, stay)
    _keep_columns(second, stay)


def _keep_rows(layer: nn.Linear, stay: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[stay], layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[stay], layer.bias.requires_grad)
    layer.out_features = len(layer.weight)


def _keep_columns(layer: nn.Linear, stay: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[:, stay], layer.weight.requires_grad)
    layer.in_features = layer.weight.shape[1]
