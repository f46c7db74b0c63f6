"""The head of MobileNetV3 as 1x1 convolutions on a 4-D tensor, exactly what it was.

In float16 Apple's Neural Engine gets a 2-D linear layer followed by hard-swish wrong, by 0.2 in MobileNetV3
(apple/coreai-torch#51); the same weights as a 1x1 convolution are right. Layers keep their names.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

# What may stand between the linear layers of a head: it treats each value on its own.
ELEMENTWISE = (
    nn.Dropout,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
)


class PointwiseHead(nn.Sequential):
    """A head of 1x1 convolutions: (n, channels) in, (n, classes) out, one pixel in between."""

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels) -> (n, classes)."""
        values = features[:, :, None, None]
        for layer in self:
            values = layer(values)
        return values[:, :, 0, 0]


def with_pointwise_head(model: nn.Module) -> nn.Module:
    """The model with each `nn.Sequential` of linear layers and a hard-swish as 1x1 convolutions.

    Returns:
        A copy, with the same weights under the same names; the model itself where there is nothing to change.
    """
    if not any(_is_head(module) for module in model.modules()):
        return model
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if _is_head(module):
            head = _pointwise(module)
            if not name:
                return head
            parent, _, child = name.rpartition(".")
            setattr(changed.get_submodule(parent), child, head)
    return changed


def _is_head(module: nn.Module) -> bool:
    children = list(module.children())
    return (
        type(module) is nn.Sequential
        and bool(children)
        and isinstance(children[0], nn.Linear)
        and all(isinstance(child, (nn.Linear, *ELEMENTWISE)) for child in children)
        and any(
            isinstance(layer, nn.Linear) and isinstance(after, nn.Hardswish)
            for layer, after in pairwise(children)
        )
    )


def _pointwise(head: nn.Module) -> PointwiseHead:
    changed = PointwiseHead()
    for name, child in head.named_children():
        changed.add_module(name, _convolution(child) if isinstance(child, nn.Linear) else child)
    return changed.train(head.training)


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    has_bias = linear.bias is not None
    layer = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=has_bias)
    with torch.no_grad():
        layer.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
        if has_bias:
            layer.bias = nn.Parameter(linear.bias.detach().clone())
    return layer.train(linear.training)
