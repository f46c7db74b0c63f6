"""Which layers are pruned, to which pattern and sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from converters.layers import kind_of
from edgeprune.errors import UserError
from edgeprune.models.computed import keeps_zeros
from edgeprune.pruning.patterns import Channels, NofM, Pattern

PRUNABLE_KINDS = ("conv1x1", "linear")
NAMED = 3  # Of layers with the same fault.


@dataclass(frozen=True)
class Rule:
    """A pattern and a sparsity for some layers.

    Attributes:
        pattern: where zeros may be.
        sparsity: fraction of zeros, 0 (leave dense, whatever the layer) to below 1. For N of M, the pattern's
            own or 0.
        layers: shell-style glob over `model.named_modules()` names, e.g. "features.*" or "classifier.3".
            None: the default rule, every 1x1 convolution and linear layer that no other rule names.
    """

    pattern: Pattern
    sparsity: float
    layers: str | None = None

    def problems(self) -> list[str]:
        """What is wrong with the numbers, one line each."""
        where = f" for layers {self.layers!r}" if self.layers else ""
        if not 0 <= self.sparsity < 1:
            return [f"sparsity {self.sparsity:g}{where} is not in [0, 1): 0.8 means 80 % zeros"]
        if (
            isinstance(self.pattern, NofM)
            and self.sparsity
            and not math.isclose(self.sparsity, self.pattern.sparsity)
        ):
            keep, of = self.pattern.keep, self.pattern.of
            return [
                f"sparsity {self.sparsity:g}{where} does not fit {keep} of {of}: "
                f"it must be {self.pattern.sparsity:g}"
            ]
        return []


@dataclass(frozen=True)
class Selected:
    """One layer and what will be done to it. A `reason` says why it is left dense."""

    name: str
    layer: nn.Conv2d | nn.Linear
    rule: Rule
    reason: str | None = None


def select(model: nn.Module, rules: Sequence[Rule]) -> list[Selected]:
    """Resolve `rules` on `model`.

    Layers that the default rule's pattern does not divide come back with a reason and stay dense; so do
    the model's last layer where the default rule would zero whole channels of it, and the joint projection
    of `nn.MultiheadAttention`, which is no layer. Of layers that share one weight, the first stands for all.

    Raises:
        UserError: all faults together: a sparsity out of range, a rule that matches no layer, two rules
            that match the same one or the same weight, a pattern that does not divide a layer named by a
            rule, a NaN or infinite weight, a weight that is computed from others (parametrizations, weight
            and spectral norm, masks of `torch.nn.utils.prune`, standardised in forward): what is pruned would
            come back.
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    problems = [problem for rule in rules for problem in rule.problems()]
    chosen: dict[str, Rule] = {}
    for rule in (r for r in rules if r.layers is not None):
        names = [name for name in layers if fnmatchcase(name, str(rule.layers))]
        if not names:
            problems.append(_no_match(str(rule.layers), list(layers)))
        for name in names:
            if name in chosen:
                problems.append(
                    f"layer {name!r} is matched by two rules: {chosen[name].layers!r} and {rule.layers!r}"
                )
            chosen[name] = rule
    for rule in (r for r in rules if r.layers is None):
        for name, layer in layers.items():
            if name not in chosen and kind_of(layer) in PRUNABLE_KINDS:
                chosen[name] = rule

    chosen, shared = _without_shared(chosen, layers)
    problems += shared
    problems += [_computed(name) for name, rule in chosen.items() if rule.sparsity and computed(layers[name])]
    problems += _refilled({name: layers[name] for name in chosen}, chosen)
    if problems:
        raise UserError(problems)
    selected = [
        _selected(name, layers[name], chosen[name], last=name == list(layers)[-1])
        for name in layers
        if name in chosen
    ]
    problems += [
        f"rule {s.rule.layers!r}: layer {s.name!r} {tuple(s.layer.weight.shape)}: {s.reason}"
        for s in selected
        if s.reason and s.rule.layers is not None and s.rule.sparsity
    ]
    problems += [
        f"layer {s.name!r} has NaN or infinite weights: it cannot be ranked"
        for s in selected
        if not all(bool(bound.isfinite()) for bound in s.layer.weight.detach().aminmax())
    ]
    if problems:
        raise UserError(problems)
    return selected + _joint_projections(model, rules)


def prunable(model: nn.Module, pattern: Pattern) -> list[Selected]:
    """The layers that the default rule would put zeros of a pattern into, in the model's order.

    >>> from edgeprune.pruning.patterns import Block
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))
    >>> [selected.name for selected in prunable(model, Block(1, 4))]  # 3 inputs are no blocks of 4.
    ['2']

    Raises:
        UserError: see `select`.
    """
    sparsity = pattern.sparsity if isinstance(pattern, NofM) else 0.5  # Any: it decides nothing here.
    return [selected for selected in select(model, [Rule(pattern, sparsity)]) if not selected.reason]


def computed(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a layer's weight is computed from others, again whenever it is read or the layer runs."""
    return layer._parameters.get("weight") is None


def _computed(name: str) -> str:
    return (
        f"layer {name!r}: its weight is computed from others, so that zeros would not stay: make it plain "
        "first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm or "
        "torch.nn.utils.prune.remove)"
    )


def _refilled(layers: Mapping[str, nn.Conv2d | nn.Linear], rules: Mapping[str, Rule]) -> list[str]:
    """One line for all layers whose forward would fill what is pruned; none without such."""
    names = [
        name
        for name, layer in layers.items()
        if rules[name].sparsity and not computed(layer) and _refills(layer, rules[name])
    ]
    if not names:
        return []
    some = ", ".join(map(repr, names[:NAMED])) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)
    return [
        f"{'layers' if len(names) > 1 else 'layer'} {some}: the weight is computed whenever it runs "
        "(standardised), so that zeros would not stay: merge first (merge_branches in a recipe, "
        "--merge-branches, or edgeprune.models.branches.merged), then prune"
    ]


def _refills(layer: nn.Conv2d | nn.Linear, rule: Rule) -> bool:
    shape = layer.weight.shape
    if type(layer) in (nn.Conv2d, nn.Linear) or rule.pattern.misfit(shape):
        return False
    importance = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return not keeps_zeros(layer, rule.pattern.mask(importance, rule.sparsity))


def _without_shared(
    chosen: Mapping[str, Rule], layers: Mapping[str, nn.Conv2d | nn.Linear]
) -> tuple[dict[str, Rule], list[str]]:
    """The first of the layers that share a weight; and what is wrong where their rules differ."""
    first: dict[int, str] = {}
    kept: dict[str, Rule] = {}
    problems = []
    for name in (name for name in layers if name in chosen):
        if computed(layers[name]):
            kept[name] = chosen[name]
            continue
        other = first.setdefault(id(layers[name].weight), name)
        if other == name:
            kept[name] = chosen[name]
        elif (kept[other].pattern, kept[other].sparsity) != (chosen[name].pattern, chosen[name].sparsity):
            problems.append(f"layers {other!r} and {name!r} share one weight, and their rules differ")
    return kept, problems


def _joint_projections(model: nn.Module, rules: Sequence[Rule]) -> list[Selected]:
    """What the default rule cannot reach, so that nobody takes it for pruned."""
    default = [rule for rule in rules if rule.layers is None and rule.sparsity]
    reason = "the joint projection of nn.MultiheadAttention is no layer and is not pruned"
    return [
        Selected(f"{name}.in_proj_weight", module.out_proj, default[0], reason)
        for name, module in model.named_modules()
        if default and isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    ]


def _selected(name: str, layer: nn.Conv2d | nn.Linear, rule: Rule, *, last: bool) -> Selected:
    reason = rule.pattern.misfit(layer.weight.shape) if not computed(layer) else "its weight is computed"
    if reason and not rule.sparsity:
        reason = "its rule leaves it dense"
    if last and rule.layers is None and isinstance(rule.pattern, Channels):
        reason = "the last layer's channels are the model's answers"
    return Selected(name, layer, rule, reason)


def _no_match(pattern: str, names: Sequence[str]) -> str:
    some = ", ".join([*names[:3], *names[3:][-2:]])
    return (
        f"layer rule {pattern!r} matches no convolution or linear layer: "
        f"the model has {len(names)}, e.g. {some}"
    )
