"""Which layers are pruned, to which pattern and sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from converters.layers import kind_of
from edgeprune.errors import UserError
from edgeprune.pruning.patterns import Channels, NofM, Pattern

PRUNABLE_KINDS = ("conv1x1", "linear")


@dataclass(frozen=True)
class Rule:
    """A pattern and a sparsity for some layers.

    Attributes:
        pattern: where zeros may be.
        sparsity: fraction of zeros, 0 (leave dense) to below 1. For N of M, the pattern's own.
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
        if isinstance(self.pattern, NofM) and not math.isclose(self.sparsity, self.pattern.sparsity):
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

    Layers that the default rule's pattern does not divide come back with a reason and stay dense; so does
    the model's last layer where the default rule would zero whole channels of it.

    Raises:
        UserError: all faults together: a sparsity out of range, a rule that matches no layer, two rules
            that match the same one, a pattern that does not divide a layer named by a rule, a NaN or
            infinite weight.
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

    selected = [
        _selected(name, layers[name], chosen[name], last=name == list(layers)[-1])
        for name in layers
        if name in chosen
    ]
    problems += [
        f"rule {s.rule.layers!r}: layer {s.name!r} {tuple(s.layer.weight.shape)}: {s.reason}"
        for s in selected
        if s.reason and s.rule.layers is not None
    ]
    problems += [
        f"layer {s.name!r} has NaN or infinite weights: it cannot be ranked"
        for s in selected
        if not all(bool(bound.isfinite()) for bound in s.layer.weight.detach().aminmax())
    ]
    if problems:
        raise UserError(problems)
    return selected


def _selected(name: str, layer: nn.Conv2d | nn.Linear, rule: Rule, *, last: bool) -> Selected:
    reason = rule.pattern.misfit(layer.weight.shape)
    if last and rule.layers is None and isinstance(rule.pattern, Channels):
        reason = "the last layer's channels are the model's answers"
    return Selected(name, layer, rule, reason)


def _no_match(pattern: str, names: Sequence[str]) -> str:
    some = ", ".join([*names[:3], *names[3:][-2:]])
    return (
        f"layer rule {pattern!r} matches no convolution or linear layer: "
        f"the model has {len(names)}, e.g. {some}"
    )
