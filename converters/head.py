"""The head of MobileNetV3, and any linear layer of one vector an image, as 1x1 convolutions: what it was.

In float16 Apple's Neural Engine gets a 2-D linear layer followed by hard-swish wrong, by 0.2 in MobileNetV3
(apple/coreai-torch#51); the same weights as a 1x1 convolution are right. On Linux Apple's kernels take the
sums of a float16 matrix product in float16 and are 10 times further off than in a convolution. Layers keep
their names.
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


class PointwiseLinear(nn.Conv2d):
    """A linear layer as a 1x1 convolution: (n, channels) in, (n, classes) out, one pixel in between."""

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels) -> (n, classes)."""
        return super().forward(features[:, :, None, None])[:, :, 0, 0]


def with_pointwise_layers(model: nn.Module, example: Tensor) -> nn.Module:
    """`with_pointwise_head`, and each linear layer that is given one vector an image as a 1x1 convolution.

    Args:
        model: in eval mode.
        example: what it takes. A layer that is given anything but (n, channels), as in a transformer, stays.

    Returns:
        A copy, with the same weights under the same names; the model itself where there is nothing to change.
    """
    changed = with_pointwise_head(model)
    alone = _of_vectors(changed, example)
    if not alone:
        return changed
    if changed is model:
        changed = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(changed.named_modules(remove_duplicate=False)):
        if name in alone:
            layer = made.setdefault(module, _convolution(module, PointwiseLinear))
            if not name:
                return layer
            parent, _, child = name.rpartition(".")
            setattr(changed.get_submodule(parent), child, layer)
    return changed


def _of_vectors(model: nn.Module, example: Tensor) -> set[str]:
    """Names of the linear layers that are given (n, channels), whenever they are used."""
    linear = [(n, m) for n, m in model.named_modules(remove_duplicate=False) if _is_linear(m)]
    given: dict[nn.Module, set[int]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.setdefault(module, set()).add(inputs[0].dim())

    hooks = [module.register_forward_pre_hook(note) for module in {m for _, m in linear}]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, module in linear if given.get(module) == {2}}


def _is_linear(module: nn.Module) -> bool:
    """Whether it computes what torch's linear layer does: timm's own, which only casts when scripted, too."""
    kind = type(module)
    return kind is nn.Linear or f"{kind.__module__}.{kind.__qualname__}" == "timm.layers.linear.Linear"


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
        changed.add_module(name, _convolution(child, nn.Conv2d) if isinstance(child, nn.Linear) else child)
    return changed.train(head.training)


def _convolution(linear: nn.Module, kind: type[nn.Conv2d]) -> nn.Conv2d:
    assert isinstance(linear, nn.Linear)
    has_bias = linear.bias is not None
    layer = kind(linear.in_features, linear.out_features, 1, bias=has_bias)
    with torch.no_grad():
        layer.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone())
        if has_bias:
            layer.bias = nn.Parameter(linear.bias.detach().clone())
    return layer.train(linear.training)
