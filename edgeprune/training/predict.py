"""Running torch models on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune.data.dataset import Split

EVALUATION_BATCH = 250


@torch.no_grad()
def predict(model: nn.Module, split: Split, normalization: Normalization) -> Tensor:
    """Outputs (n, classes, ...) of a torch model in eval mode, float32, for all images of `split`."""
    model.eval()
    device = next(model.parameters()).device
    parts = torch.split(split.images, EVALUATION_BATCH)
    return torch.cat([model(normalized(part.to(device), normalization)).float().cpu() for part in parts])


def score(outputs: Tensor, split: Split) -> float:
    """What outputs (n, classes, ...) are worth by the metric of the split's task, 0 to 1."""
    return split.task.score(outputs, split.labels)


def normalized(images: Tensor, normalization: Normalization) -> Tensor:
    """Turn uint8 pixels (n, 3, h, w) into what the torch model takes, float32."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1)
        for v in (normalization.mean, normalization.std)
    )
    return (images.float() / 255 - mean) / std
