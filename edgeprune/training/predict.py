"""Running torch models on images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune.allocator import giving_back, keeping_freed_memory
from edgeprune.data.dataset import Split, batches

EVALUATION_BATCH = 250


@keeping_freed_memory()
@torch.no_grad()
def predict(model: nn.Module, split: Split, normalization: Normalization) -> Tensor:
    """Outputs (n, classes, ...) of a torch model in eval mode, float32, for all images of `split`."""
    model.eval()
    device = next(model.parameters()).device
    return torch.cat(
        [
            model(normalized(images.to(device), normalization)).float().cpu()
            for images, _ in giving_back(batches(split, EVALUATION_BATCH))
        ]
    )


def normalized(images: Tensor, normalization: Normalization) -> Tensor:
    """Turn uint8 pixels (n, 3, h, w) into what the torch model takes, float32."""
    mean, std = (
        torch.tensor(v, device=images.device).view(1, 3, 1, 1)
        for v in (normalization.mean, normalization.std)
    )
    return (images.float() / 255 - mean) / std
