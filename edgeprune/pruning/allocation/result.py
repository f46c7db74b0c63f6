"""How many zeros each layer gets, and what zeros cost layer by layer."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import Pattern
from edgeprune.pruning.select import Rule

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Allocation:
    """The zeros of each layer.

    Attributes:
        pattern: where they may be.
        sparsities: fraction of zeros by layer, each a whole number of blocks, 0 where it stays dense.
        weights: number of weights of those layers.
        left_dense: layers that the pattern does not fit, and why.
        bytes: predicted size of the file by target, where a budget was given.
        time_fractions: predicted time by runtime, as a share of the dense file's, where a time was given.
        macs_fraction: multiplications left, as a share of the dense model's; None where not asked for.
        loss: expected of the whole, in the unit of the curves that were followed; None where none were.
    """

    pattern: Pattern
    sparsities: Mapping[str, float]
    weights: Mapping[str, int]
    left_dense: Mapping[str, str] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    loss: float | None = None
    time_fractions: Mapping[str, float] = field(default_factory=dict)
    macs_fraction: float | None = None

    @property
    def rules(self) -> list[Rule]:
        """One rule for each layer that gets zeros."""
        return [Rule(self.pattern, s, glob.escape(name)) for name, s in self.sparsities.items() if s > 0]

    @property
    def sparsity(self) -> float:
        """Overall fraction of zeros in these layers."""
        zeros = sum(self.sparsities[name] * count for name, count in self.weights.items())
        return zeros / max(sum(self.weights.values()), 1)


@dataclass(frozen=True)
class Curves:
    """What zeros cost, layer by layer.

    Attributes:
        layers: names.
        sparsities: rising from 0, (points,).
        loss: of each layer at each of them, (layers, points): points of accuracy, or any other unit.
    """

    layers: tuple[str, ...]
    sparsities: tuple[float, ...]
    loss: Numbers

    def __post_init__(self) -> None:
        rising = len(self.sparsities) > 1 and bool((np.diff(self.sparsities) > 0).all())
        problems = []
        if not rising or self.sparsities[0] != 0 or self.sparsities[-1] >= 1:
            problems.append(f"sparsities {list(self.sparsities)}: they must rise from 0 to below 1")
        if self.loss.shape != (len(self.layers), len(self.sparsities)):
            problems.append(
                f"losses of shape {self.loss.shape} for {len(self.layers)} layers at "
                f"{len(self.sparsities)} sparsities"
            )
        if not bool(np.isfinite(self.loss).all()):
            problems.append("a loss is NaN or infinite")
        if problems:
            raise UserError(problems)

    def at(self, layer: str, sparsities: Numbers) -> Numbers:
        """Loss of a layer at any sparsities: straight lines between points, never falling.

        Measured curves are noisy: one that falls is held level, so that no gain is expected of chance.
        """
        points = np.maximum.accumulate(self.loss[self.layers.index(layer)])
        return np.asarray(np.interp(sparsities, self.sparsities, points - points[0]))
