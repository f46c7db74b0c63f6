"""Pruning in one shot, without training: by weights alone, or calibrated on images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.allocator import keeping_freed_memory
from edgeprune.errors import ToolError, UserError
from edgeprune.pruning import calibration as calibrating
from edgeprune.pruning import sequential, sparsegpt
from edgeprune.pruning.calibration import Batch, Calibration, Layer, Loss
from edgeprune.pruning.criteria import Criterion, Need, criterion_named, lamp_of_units
from edgeprune.pruning.patterns import Channels, NofM, Pattern, smallest
from edgeprune.pruning.select import Rule, Selected, select
from edgeprune.pruning.walk import inputs_in_order


class Pruned(dict[str, float]):
    """The achieved fraction of zeros of each pruned layer.

    Attributes:
        left: layers that the rules cannot reach and that stay dense, and why.
    """

    def __init__(self, zeros: Mapping[str, float], left: Mapping[str, str]) -> None:
        super().__init__(zeros)
        self.left = dict(left)


def prune(
    model: nn.Module,
    pattern: Pattern,
    sparsity: float,
    *,
    criterion: str = "magnitude",
    layers: Sequence[str] | None = None,
    calibration: Calibration | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    refit: bool = False,
) -> Pruned:
    """Prune in one shot, in place.

    Args:
        model: any module.
        pattern: `Unstructured`, `Block`, `NofM` or `Channels`.
        sparsity: fraction of zeros, 0 to below 1.
        criterion: a name in `CRITERIA`. "wanda", "sparsegpt" and "obc" look at calibration images; "taylor"
            and "snip" at their labels too; "bn_scale" and "fpgm" rank whole channels only. "obc" is the best
            of them and the slowest.
        layers: globs over layer names; None for every 1x1 convolution and linear layer.
        calibration: batches of what the model takes, or of (images, labels). Some hundred images are enough;
            they are all held in memory.
        loss: from (outputs, labels), for criteria that need gradients.
        seed: for "random".
        refit: whether the weights that stay are then set by exact least squares, layer by layer, to give what
            the dense model's layers gave on the calibration images. "obc" does so by itself.

    Returns:
        The achieved fraction of zeros of each pruned layer; with "lamp" the sparsity is that of all layers
        together. Its `left` names layers that stay dense.

    Raises:
        UserError: see `select`; an unknown criterion, or one that lacks its data or does not fit the
            pattern; NaN or infinite statistics, by layer.
        ToolError: second moments that cannot be inverted, by layer.

    Examples:
        >>> from edgeprune.pruning import Unstructured
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]))
        >>> prune(nn.Sequential(layer), Unstructured(), 0.25)
        {'0': 0.25}
    """
    names: Sequence[str | None] = [None] if layers is None else layers
    rules = [Rule(pattern, sparsity, name) for name in names]
    return prune_by_rules(
        model, rules, criterion=criterion, calibration=calibration, loss=loss, seed=seed, refit=refit
    )


@keeping_freed_memory()
def prune_by_rules(
    model: nn.Module,
    rules: Sequence[Rule],
    *,
    criterion: str = "magnitude",
    calibration: Calibration | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
    refit: bool = False,
) -> Pruned:
    """Prune in one shot, in place, each layer by its own rule; see `prune`."""
    found = select(model, rules)
    selected = [s for s in found if not s.reason]
    if not selected:
        raise UserError(
            ["nothing to prune: no layer fits the rules", *(f"  {s.name!r}: {s.reason}" for s in found)]
        )
    if criterion == "obc":
        sequential.prune_in_order(model, selected, calibrating.read_batches(calibration, criterion))
    elif refit:
        batches = calibrating.read_batches(calibration, "refit")
        dense = copy.deepcopy(model)
        prune_by_rules(
            model, rules, criterion=criterion, calibration=_as_given(batches), loss=loss, seed=seed
        )
        sequential.refit_in_order(model, dense, selected, batches)
    elif criterion == "sparsegpt":
        _prune_in_order(model, selected, calibrating.read_batches(calibration, criterion))
    else:
        statistics = gather_statistics(
            model, selected, criterion, calibration=calibration, loss=loss, seed=seed
        )
        # All masks before the first zero: an error leaves the model as it was.
        importances = [importance_of(s, criterion, statistics.get(s.name)) for s in selected]
        masks = masks_of(selected, criterion, importances)
        for s, mask in zip(selected, masks, strict=True):
            s.layer.weight.data.mul_(mask)
    left = {s.name: s.reason for s in found if s.reason}
    return Pruned({s.name: zero_fraction(s.layer.weight) for s in selected}, left)


def masks_of(
    selected: Sequence[Selected], criterion: str, importances: Sequence[Tensor], progress: float = 1.0
) -> list[Tensor]:
    """What each layer keeps, at `progress` of its rule's sparsity; True where kept.

    A criterion that compares layers gives all layers of one rule their zeros together: LAMP (Lee et al.,
    ICLR 2021) is such a one; ranked layer by layer it would be magnitude.
    """
    if not criterion_named(criterion).across_layers:
        pairs = zip(selected, importances, strict=True)
        return [s.rule.pattern.mask(importance, s.rule.sparsity * progress) for s, importance in pairs]
    masks: dict[str, Tensor] = {}
    for rule in dict.fromkeys((s.rule.pattern, s.rule.sparsity) for s in selected):
        layers = [
            (s, importance)
            for s, importance in zip(selected, importances, strict=True)
            if (s.rule.pattern, s.rule.sparsity) == rule
        ]
        masks |= _masks_together(layers, rule[1] * progress)
    return [masks[s.name] for s in selected]


def _masks_together(layers: Sequence[tuple[Selected, Tensor]], sparsity: float) -> dict[str, Tensor]:
    pattern = layers[0][0].rule.pattern
    if isinstance(pattern, NofM):  # It has the same zeros everywhere.
        return {s.name: pattern.mask(importance, sparsity) for s, importance in layers}
    units = [pattern.units(importance) for _, importance in layers]
    scores = torch.cat([u.flatten().cpu() for u in units])
    drop = torch.split(smallest(scores, round(sparsity * len(scores))), [u.numel() for u in units])
    return {
        s.name: pattern.spread(~gone.view(u.shape), importance.shape).to(importance.device)
        for (s, importance), u, gone in zip(layers, units, drop, strict=True)
    }


def gather_statistics(
    model: nn.Module,
    selected: Sequence[Selected],
    criterion: str,
    *,
    calibration: Calibration | None = None,
    loss: Loss = F.cross_entropy,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What `criterion` must know of each layer beside its weight, in one pass over the images.

    Raises:
        UserError: see `prune`.
    """
    chosen = criterion_named(criterion)
    refuse_unfit(selected, criterion)
    layers: dict[str, Layer] = {s.name: s.layer for s in selected}
    if chosen.needs is Need.NOTHING:
        return {}
    if chosen.needs is Need.NOISE:
        return noise(layers, seed)
    if chosen.needs is Need.MOVEMENT:
        raise UserError(
            f"criterion {criterion!r} is measured while training: "
            f"Sparsifier(model, rules, schedule, criterion={criterion!r})"
        )
    return _from_images(model, layers, criterion, calibrating.read_batches(calibration, criterion), loss)


def _from_images(
    model: nn.Module, layers: Mapping[str, Layer], name: str, batches: Sequence[Batch], loss: Loss
) -> dict[str, Tensor]:
    criterion = criterion_named(name)
    if criterion.gather is not None:
        return calibrating.gradients(model, layers, batches, criterion.gather, loss, name)
    if criterion.needs is Need.INPUT_NORMS:
        return calibrating.input_norms(model, layers, batches)
    if criterion.needs is Need.SECOND_MOMENTS:
        walked = inputs_in_order((model,), layers, batches)
        return {name: _moments(layers[name], inputs) for name, inputs in walked}
    scales = calibrating.batch_norm_scales(model, layers, batches)
    missing = [n for n in layers if n not in scales]
    if missing:
        raise UserError(
            [
                f"layer {n!r} has no batch norm with a scale right behind it, which criterion {name!r} "
                "needs: name the layers to prune without it"
                for n in missing
            ]
        )
    return scales


def importance_of(selected: Selected, criterion: str, statistic: Tensor | None) -> Tensor:
    """Importance of each weight of a layer, finite, what is already pruned the least of all.

    Raises:
        UserError: NaN or infinite, naming the layer.
    """
    chosen: Criterion = criterion_named(criterion)
    if chosen.across_layers:
        importance = lamp_of_units(selected.layer.weight, selected.rule.pattern)
    else:
        importance = chosen(selected.layer.weight.detach(), statistic)
    low, high = importance.aminmax()
    if not bool(low.isfinite() & high.isfinite()):
        raise UserError(
            f"layer {selected.name!r}: criterion {criterion!r} gives NaN or infinite importance; "
            "are all images, weights and gradients finite?"
        )
    if chosen.needs is Need.NOTHING and not chosen.whole_channels:
        return importance  # Zero weights have importance zero: there is none below.
    pattern = selected.rule.pattern
    gone = pattern.spread(pattern.units(selected.layer.weight.detach().abs()) == 0, importance.shape)
    return importance.masked_fill(gone, 2 * min(float(low), 0.0) - 1)


def refuse_unfit(selected: Sequence[Selected], criterion: str) -> None:
    """Refuse to rank with `criterion` what it cannot tell apart.

    Raises:
        UserError: it ranks whole channels, and a rule's pattern is another.
    """
    others = {type(s.rule.pattern).__name__ for s in selected} - {Channels.__name__}
    if criterion_named(criterion).whole_channels and others:
        raise UserError(
            f"criterion {criterion!r} ranks whole channels: it fits the pattern Channels(), "
            f"not {', '.join(sorted(others))}"
        )


def noise(layers: Mapping[str, Layer], seed: int) -> dict[str, Tensor]:
    """Random numbers for each weight, the same for the same seed on any machine."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(layer.weight.shape, generator=generator).to(layer.weight.device)
        for name, layer in layers.items()
    }


def zero_fraction(weight: Tensor) -> float:
    """Share of exact zeros, 0 to 1."""
    return 1 - int(weight.count_nonzero()) / weight.numel()


def _prune_in_order(model: nn.Module, selected: Sequence[Selected], batches: Sequence[Batch]) -> None:
    """SparseGPT: each layer sees the inputs that the pruned layers before it give."""
    by_name = {s.name: s for s in selected}
    layers = {name: s.layer for name, s in by_name.items()}
    with calibrating.unchanged_on_error(model):
        for name, inputs in inputs_in_order((model,), layers, batches):
            _prune_layer(by_name[name], _moments(layers[name], inputs))


def _moments(layer: Layer, inputs: Iterable[tuple[Tensor, ...]]) -> Tensor:
    return calibrating.second_moments(layer, (own for (own,) in inputs))


def _prune_layer(selected: Selected, moments: Tensor) -> None:
    name, rule, weight = selected.name, selected.rule, selected.layer.weight
    if not bool(moments.isfinite().all()):
        raise UserError(f"layer {name!r}: its inputs are NaN or infinite on the calibration images")
    try:
        pruned = sparsegpt.compress(weight.detach(), moments, rule.pattern, rule.sparsity)
    except ToolError as error:
        raise ToolError(f"layer {name!r}: {error}") from error
    if not bool(pruned.isfinite().all()):
        raise UserError(f"layer {name!r}: its new weights do not fit {weight.dtype}; use float32")
    weight.data.copy_(pruned)


def _as_given(batches: Sequence[Batch]) -> list[Tensor | tuple[Tensor, Tensor]]:
    return [images if labels is None else (images, labels) for images, labels in batches]
