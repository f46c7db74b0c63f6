"""What a model pruned in one shot learns from the dense one, on calibration images, without labels.

The last thing that calibration images can give: layer by layer they have set the weights that stay
(`prune(criterion="obc")`, `refit=True`); together the layers now learn to give the dense model's answers
(distillation, Hinton et al., 2015). A few hundred images are soon learnt by heart: steps are short, and few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.allocator import keeping_freed_memory
from edgeprune.errors import UserError
from edgeprune.pruning import calibration as calibrating
from edgeprune.pruning.calibration import Calibration, evaluating, unchanged_on_error

LEARNING_RATE = 2e-5
BATCH = 20
SMALLEST_CROP = 0.62  # Of both sides of an image.
WARM_UP = 0.1  # Share of the steps in which the learning rate grows.


@keeping_freed_memory()
def distill(
    model: nn.Module,
    dense: nn.Module,
    calibration: Calibration,
    *,
    epochs: int = 3,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> tuple[float, ...]:
    """Train a pruned classifier to give the dense model's answers, in place; zeros stay zeros.

    AdamW without weight decay, batches of 20 random crops and mirror images; the learning rate falls to zero
    along half a cosine. Batch norms keep their statistics.

    Args:
        model: pruned; it gives (n, classes).
        dense: what it was made from; it stays as it is.
        calibration: batches of what both take, (n, channels, height, width), all of one size; labels beside
            them are not looked at. All are held in memory.
        epochs: how often it goes through them, 1 or more.
        learning_rate: its peak, above 0.
        seed: of order, crops and mirroring.

    Returns:
        The mean divergence of each epoch, in nats, as the training saw it.

    Raises:
        UserError: no images, epochs or rates out of range, answers that are NaN or infinite. The model is
            then as it was.
    """
    if epochs < 1 or not 0 < learning_rate < math.inf:
        raise UserError(f"distill: epochs {epochs} and learning_rate {learning_rate:g} must be above 0")
    images = torch.cat([batch for batch, _ in calibrating.read_batches(calibration, "distill")])
    zeros = [(p, p != 0) for p in model.parameters() if p.ndim > 1 and not bool(p.all())]
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(steps, 2), pct_start=WARM_UP
    )
    found = []
    with unchanged_on_error(model), evaluating(model), evaluating(dense):
        for _ in range(epochs):
            total = 0.0
            for part in torch.split(torch.randperm(len(images), generator=generator), BATCH):
                missed = _missed(model, dense, cropped(images[part], generator))
                if not math.isfinite(missed.item()):
                    raise UserError(
                        "distill: answers are NaN or infinite; are all images and weights finite?"
                    )
                optimizer.zero_grad(set_to_none=True)
                missed.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                _put_back(zeros)
                total += missed.item() * len(part)
            found.append(total / len(images))
    model.zero_grad(set_to_none=True)
    return tuple(found)


def _missed(model: nn.Module, dense: nn.Module, images: Tensor) -> Tensor:
    """How far answers are from the dense model's, mean over images."""
    with torch.no_grad():
        wanted = calibrating.run_model(dense, images)
    return divergence(calibrating.run_model(model, images), wanted)


def divergence(outputs: Tensor, others: Tensor) -> Tensor:
    """Kullback-Leibler divergence of answers (n, classes, ...) from others, in nats, summed over an image."""
    return F.kl_div(outputs.log_softmax(1), others.log_softmax(1), log_target=True, reduction="batchmean")


@torch.no_grad()
def _put_back(zeros: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, kept in zeros:
        parameter.mul_(kept)


def cropped(images: Tensor, generator: torch.Generator) -> Tensor:
    """One random part of a batch, brought back to the images' size, mirrored half the time.

    Args:
        images: (n, channels, height, width).
        generator: what it is drawn from.

    Returns:
        Of the same shape.
    """
    size = images.shape[-2:]
    share, top, left, mirrored = torch.rand(4, generator=generator).tolist()
    share = SMALLEST_CROP + (1 - SMALLEST_CROP) * share
    height, width = (max(round(share * side), 1) for side in size)
    row, column = round(top * (size[0] - height)), round(left * (size[1] - width))
    part = images[:, :, row : row + height, column : column + width]
    resized = F.interpolate(part, size=tuple(size), mode="bicubic", align_corners=False)
    return resized.flip(3) if mirrored < 0.5 else resized
