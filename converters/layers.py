"""The weighted layers of a torch module in the order they run, to name what a file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or linear layer.

    Attributes:
        name: as `named_modules()` gives it.
        kind: see `kind_of`.
        shape: of its weight.
        uses: how many times each weight is used for an example: the pixels of what the layer gives; 0 where
            none was run.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    uses: int = 0


def kind_of(module: nn.Conv2d | nn.Linear) -> str:
    """Return "linear", "conv1x1", "depthwise" or "conv".

    >>> kind_of(nn.Conv2d(8, 8, 3, groups=8)), kind_of(nn.Conv2d(8, 4, 1))
    ('depthwise', 'conv1x1')
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    return "conv1x1" if module.groups == 1 and module.kernel_size == (1, 1) else "conv"


def weighted_layers(model: nn.Module, example: torch.Tensor) -> list[WeightedLayer]:
    """Run `model` once on `example` and list its convolution and linear layers in execution order.

    A layer that runs twice is listed once, where it ran first, with the uses of both.
    """
    seen: dict[str, WeightedLayer] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Conv2d | nn.Linear, _: object, output: torch.Tensor) -> None:
            before = seen[name].uses if name in seen else 0
            uses = output[0].numel() // output.shape[1 if output.ndim == 4 else -1]
            seen[name] = WeightedLayer(name, kind_of(module), tuple(module.weight.shape), before + uses)

        return note

    handles = [
        module.register_forward_hook(noting(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        with torch.no_grad():
            model(example.clone())  # Some models change their input.
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())
