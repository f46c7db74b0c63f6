"""How much a weight matters. A criterion turns a weight, and what it needs to know besides, into an
importance of the weight's shape, float32.

Weights are (out, in) for a linear layer and (out, in / groups, kernel height, kernel width) for a
convolution. `docs/methods.md` names the papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import Pattern, Unstructured


class Need(Enum):
    """What a criterion must know beside the weight: its `statistic`."""

    NOTHING = "the weight alone"
    NOISE = "random numbers of the weight's shape, from a seed"
    GRADIENTS = "gradients of the loss, from calibration images with labels or while training"
    MOVEMENT = "gradients of the loss while training"
    BATCH_NORM = "the scale of the batch norm behind the layer, (out,); a calibration image finds it"
    INPUT_NORMS = "L2 norms of the layer's inputs over calibration images, of the weight's shape"
    SECOND_MOMENTS = "second moments of the layer's inputs over calibration images"


@dataclass(frozen=True)
class Criterion:
    """How importances are found.

    Attributes:
        score: from (weight, statistic) to an importance of the weight's shape, float32.
        needs: what the statistic is.
        gather: for gradients, from (weight, gradient) to what is averaged over batches as the statistic.
        whole_channels: whether all weights of an output channel matter alike, so that nothing but
            `Channels` can be ranked with it.
        across_layers: whether importances of different layers are made to be compared, so that one sparsity
            for several layers is theirs together.
    """

    score: Callable[..., Tensor]
    needs: Need = Need.NOTHING
    gather: Callable[[Tensor, Tensor], Tensor] | None = None
    whole_channels: bool = False
    across_layers: bool = False

    def __call__(self, weight: Tensor, statistic: Tensor | None = None) -> Tensor:
        """Importance of each weight.

        Raises:
            UserError: the statistic is missing.
        """
        if self.needs is Need.NOTHING:
            return self.score(weight)
        if statistic is None:
            raise UserError(f"this criterion needs {self.needs.value}")
        return self.score(weight, statistic)


def magnitude(weight: Tensor) -> Tensor:
    """Absolute value; a block's importance is the sum, its L1 norm (Han et al., 2015).

    >>> magnitude(torch.tensor([[1.0, -2.0], [-3.0, 0.0]]))
    tensor([[1., 2.],
            [3., 0.]])
    """
    return weight.detach().float().abs()


def squared_magnitude(weight: Tensor) -> Tensor:
    """Square; a block's importance is the sum, its squared L2 norm.

    Three equal weights and a single large one: L1 keeps the three (3 > 2), L2 the one (4 > 3).

    >>> squared_magnitude(torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0]])).sum(dim=1)
    tensor([3., 4.])
    """
    return weight.detach().float().square()


def lamp(weight: Tensor) -> Tensor:
    """Square over the sum of all squares not smaller: ranks layers together (LAMP, Lee et al., 2021).

    Within a layer the order is that of magnitude. The largest weight of every layer scores 1, so no layer
    is emptied. Of equal weights, the one of the lower index counts as the smaller. Of blocks, the scores
    are of their norms: `lamp_of_units`.

    >>> lamp(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([[0.0714, 0.3077],
            [1.0000, 0.0000]])
    """
    squares = weight.detach().double().square().flatten()
    ascending, order = squares.sort(stable=True)
    not_smaller = ascending.flip(0).cumsum(0).flip(0)
    # A layer of zeros divides by zero otherwise.
    scores = ascending / not_smaller.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(squares).scatter_(0, order, scores).view(weight.shape).float()


def lamp_of_units(weight: Tensor, pattern: Pattern) -> Tensor:
    """LAMP of the units of a pattern, each in equal parts over its weights: (out, in, ...).

    What goes together counts as one, by its norm: a block of 0.6 four times (1.44) before one of a single 1.

    >>> from edgeprune.pruning.patterns import Block
    >>> lamp_of_units(torch.tensor([[1.0, 0, 0, 0, 0.6, 0.6, 0.6, 0.6]]), Block(1, 4)).round(decimals=3)
    tensor([[0.1020, 0.1020, 0.1020, 0.1020, 0.2500, 0.2500, 0.2500, 0.2500]])
    """
    scores = lamp(pattern.units(weight.detach().double().square()).sqrt())
    return pattern.spread(scores * (scores.numel() / weight.numel()), weight.shape)


def random(weight: Tensor, noise: Tensor) -> Tensor:
    """Random scores: the baseline for every other criterion."""
    return noise


def taylor(weight: Tensor, squares: Tensor) -> Tensor:
    """Square of what the loss changes by without the weight, to first order (Molchanov et al., 2019).

    Args:
        weight: any shape.
        squares: (weight * gradient)^2, averaged over batches.
    """
    return squares


def snip(weight: Tensor, products: Tensor) -> Tensor:
    """How much the loss reacts to the weight's connection, either way (Lee et al., 2019).

    Args:
        weight: any shape.
        products: weight * gradient, averaged over batches.
    """
    return products.abs()


def movement(weight: Tensor, movements: Tensor) -> Tensor:
    """How far training moved the weight away from zero (Sanh et al., 2020). May be negative.

    Args:
        weight: any shape.
        movements: -weight * gradient, averaged over the steps of the training.
    """
    return movements


def fpgm(weight: Tensor) -> Tensor:
    """Sum of distances to all other filters; the ones near the middle can be replaced (He et al., 2019).

    The middle one of three filters goes first, although it is not the smallest:

    >>> fpgm(torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]]))
    tensor([[2.0000, 2.0000],
            [1.5000, 1.5000],
            [2.5000, 2.5000]])
    """
    filters = weight.detach().float().flatten(1)
    # Given to each of the filter's weights in equal parts: a channel's importance is the sum.
    distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    return _alike(distances / filters.shape[1], weight)


def bn_scale(weight: Tensor, scale: Tensor) -> Tensor:
    """Size of the batch norm's scale behind each channel (network slimming, Liu et al., 2017).

    >>> bn_scale(torch.ones(2, 2), torch.tensor([-0.5, 0.1])).sum(dim=1)
    tensor([0.5000, 0.1000])
    """
    return _alike(scale.detach().float().abs() / weight[0].numel(), weight)


def wanda(weight: Tensor, input_norms: Tensor) -> Tensor:
    """Absolute value times the norm of the input it multiplies (Sun et al., 2023).

    A weight of 1 that sees inputs of 9 matters more than a weight of 2 that sees inputs of 4:

    >>> wanda(torch.tensor([[1.0, -2.0]]), torch.tensor([[9.0, 4.0]]))
    tensor([[9., 8.]])
    """
    return magnitude(weight) * input_norms


def _alike(channels: Tensor, weight: Tensor) -> Tensor:
    """Spread one value an output channel (out,) over the weights of that channel."""
    return channels.view(-1, *(1 for _ in weight.shape[1:])).expand(weight.shape).contiguous()


def _obc(weight: Tensor, second_moments: Tensor) -> Tensor:
    from edgeprune.pruning.sparsegpt import saliency

    return saliency(weight, second_moments, Unstructured())


def _sparsegpt(weight: Tensor, second_moments: Tensor) -> Tensor:
    from edgeprune.pruning.sparsegpt import saliency

    return saliency(weight, second_moments, Unstructured())


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(magnitude),
    "squared_magnitude": Criterion(squared_magnitude),
    "lamp": Criterion(lamp, across_layers=True),
    "random": Criterion(random, Need.NOISE),
    "taylor": Criterion(taylor, Need.GRADIENTS, lambda weight, gradient: (weight * gradient).square()),
    "snip": Criterion(snip, Need.GRADIENTS, lambda weight, gradient: weight * gradient),
    "movement": Criterion(movement, Need.MOVEMENT, lambda weight, gradient: -weight * gradient),
    "bn_scale": Criterion(bn_scale, Need.BATCH_NORM, whole_channels=True),
    "fpgm": Criterion(fpgm, whole_channels=True),
    "wanda": Criterion(wanda, Need.INPUT_NORMS),
    "sparsegpt": Criterion(_sparsegpt, Need.SECOND_MOMENTS),
    "obc": Criterion(_obc, Need.SECOND_MOMENTS),
}


def criterion_named(name: str) -> Criterion:
    """Look up a criterion.

    Raises:
        UserError: no such criterion.
    """
    if name not in CRITERIA:
        raise UserError(f"unknown criterion {name!r}: choose from {', '.join(CRITERIA)}")
    return CRITERIA[name]
