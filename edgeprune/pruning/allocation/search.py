"""The search for the sparsities that trade expected loss against a cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgeprune.pruning.allocation.result import Curves, Numbers

# Steps of the curves that are searched.
GRID = 0.01
BISECTIONS = 60


class Search:
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
