"""What makes accuracy recover: learning from a teacher, running averages of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.facts import Normalization
from edgeprune.allocator import giving_back
from edgeprune.data.dataset import Split
from edgeprune.training.batches import generator_of, whole_batches
from edgeprune.training.predict import normalized

DISTILL_TEMPERATURE = 2.0
RECALIBRATION_IMAGES = 4096


def running_average(model: nn.Module, decay: float) -> Any:
    """A running average of the weights; None where none is wanted."""
    if not decay:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


@torch.no_grad()
def copy_parameters(source: nn.Module, model: nn.Module) -> None:
    """Give `model` the parameters of `source`, in place."""
    for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
        parameter.copy_(value)


def soft_divergence(outputs: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softened answers from the teacher's (Hinton et al., 2015).

    Args:
        outputs: (n, classes, ...) of the student.
        taught: (n, classes, ...) of the teacher.
    """
    # A map is as many answers as it has pixels: (n, classes, h, w) -> (n * h * w, classes).
    given, taught = (part.movedim(1, -1).flatten(0, -2) / DISTILL_TEMPERATURE for part in (outputs, taught))
    # Scaled by the square of the temperature so that gradients keep their size.
    return DISTILL_TEMPERATURE**2 * F.kl_div(
        F.log_softmax(given, dim=1),
        F.log_softmax(taught, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def recalibrate(
    model: nn.Module, train: Split, normalization: Normalization, seed: int, batch_size: int
) -> None:
    """Estimate batch-norm statistics again, in place, on training images without augmentation.

    Batches are made when they are needed: all of them as float32 would take gigabytes.
    """
    from torch.optim.swa_utils import update_bn

    order = torch.randperm(len(train), generator=generator_of(seed, -1))[:RECALIBRATION_IMAGES]
    device = next(model.parameters()).device
    with torch.no_grad():
        update_bn(
            (
                normalized(images.to(device), normalization)
                for images, _ in giving_back(train.batches(whole_batches(order, batch_size)))
            ),
            model,
        )
