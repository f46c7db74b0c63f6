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
        """Whether masks are chosen again at `step`."""
        return step == 0


@dataclass(frozen=True)
class Cubic:
    """Fast first, slow at the end: `1 - (1 - step / steps)^3` of the final sparsity (Zhu & Gupta, 2017).

    Attributes:
        steps: optimizer steps until the final sparsity is reached, 1 or more.
        every: masks are chosen again every so many steps, 1 or more.

    Examples:
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
        """Whether masks are chosen again at `step`."""
        return step == self.steps or (step < self.steps and step % self.every == 0)


@dataclass(frozen=True)
class Stepwise:
    """In rounds with training in between (Han et al., 2015): each begins with an equal part of the zeros.

    Attributes:
        rounds: 1 or more.
        steps: optimizer steps from one round to the next, 1 or more.

    Examples:
        >>> [round(Stepwise(rounds=4, steps=2).progress(step), 3) for step in range(8)]
        [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    """

    rounds: int
    steps: int

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise UserError(f"{self.rounds} rounds of {self.steps} steps: both must be 1 or more")

    def progress(self, step: int) -> float:
        """Share of the final sparsity due at `step`, 0 to 1."""
        return min(step // self.steps + 1, self.rounds) / self.rounds

    def updates_at(self, step: int) -> bool:
        """Whether masks are chosen again at `step`."""
        return step % self.steps == 0 and step < self.rounds * self.steps


Schedule = OneShot | Cubic | Stepwise
