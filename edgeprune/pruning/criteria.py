"""How much a weight matters. A criterion turns a weight into an importance of the same shape, float32."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Criterion = Callable[[Tensor], Tensor]


def magnitude(weight: Tensor) -> Tensor:
    """Absolute value; a block's importance is the sum, its L1 norm (Han et al., 2015)."""
    return weight.detach().float().abs()


def squared_magnitude(weight: Tensor) -> Tensor:
    """Square; a block's importance is the sum, its squared L2 norm."""
    return weight.detach().float().square()


CRITERIA: dict[str, Criterion] = {"magnitude": magnitude, "squared_magnitude": squared_magnitude}
