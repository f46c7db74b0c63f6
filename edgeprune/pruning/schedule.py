"""How sparsity grows during training: pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.errors import UserError


@dataclass(frozen=True)
class OneShot:
    """The whole sparsity at the first step."""

    def progress(self, step: int) -> float:
        """Share of the final sparsity due at `step`: always 1."""
        return 1.0

    def updates_at(self, step: int) -> bool:
        """Whether masks are chosen anew at `step`."""
        return step == 0


@dataclass(frozen=True)
class Cubic:
    """Fast first, slow at the end: `1 - (1 - step / steps)^3` of the final sparsity (Zhu & Gupta, 2017).

    Attributes:
        steps: optimizer steps until the final sparsity is reached, 1 or more.
        every: masks are chosen anew every so many steps, 1 or more.

    >>> [round(Cubic(steps=4).progress(step), 3) for step in range(6)]
    [0.0, 0.578, 0.875, 0.984, 1.0, 1.0]
    """

    steps: int
    every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.every < 1:
            raise UserError(
                f"cubic schedule over {self.steps} steps, every {self.every}: both must be 1 or more"
            )

    def progress(self, step: int) -> float:
        """Share of the final sparsity due at `step`, 0 to 1."""
        return 1 - (1 - min(step, self.steps) / self.steps) ** 3

    def updates_at(self, step: int) -> bool:
        """Whether masks are chosen anew at `step`."""
        return step == self.steps or (step < self.steps and step % self.every == 0)


Schedule = OneShot | Cubic
