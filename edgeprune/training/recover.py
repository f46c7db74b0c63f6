"""What makes accuracy recover: learning from a teacher, running averages of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DISTILL_TEMPERATURE = 2.0


def running_average(model: nn.Module, decay: float) -> Any:
    """A running average of the weights; None where none is wanted."""
    if not decay:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]


@torch.no_grad()
def copy_parameters(source: nn.Module, model: nn.Module) -> None:
    for parameter, value in zip(model.parameters(), source.parameters(), strict=True):
        parameter.copy_(value)


def distillation(outputs: Tensor, teacher: nn.Module, images: Tensor) -> Tensor:
    """How far the outputs are from the teacher's, both softened."""
    with torch.no_grad():
        taught = teacher(images)
    # A map is as many answers as it has pixels: (n, classes, h, w) -> (n * h * w, classes).
    given, taught = (part.movedim(1, -1).flatten(0, -2) / DISTILL_TEMPERATURE for part in (outputs, taught))
    # Scaled by the square of the temperature so that gradients keep their size.
    return DISTILL_TEMPERATURE**2 * F.kl_div(
        F.log_softmax(given, dim=1),
        F.log_softmax(taught, dim=1),
        log_target=True,
        reduction="batchmean",
    )
