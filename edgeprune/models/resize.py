"""A model built at full width, given the widths of a pruned one's weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from edgeprune.errors import UserError
from edgeprune.models.attention import is_attention, set_heads


def resize(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a freshly built `model` the widths that `state` was saved with, in place; then load it.

    A state dict holds all there is to know: the shapes say each layer's width.

    Raises:
        UserError: `state` is not of this architecture.
    """
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear, nn.BatchNorm2d)) and _has_weight(module):
            _refuse_missing(state, f"{name}.weight" if name else "weight")
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        if name in state and state[name].shape != tensor.shape:
            # The same object, so that weights which are tied stay so.
            tensor.data = torch.empty_like(state[name], device=tensor.device, dtype=tensor.dtype)
    fit_widths(model)
    # Some models read the version of their own layout from what torch keeps beside a state dict.
    complete = OrderedDict(state)
    complete._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    try:
        missing, unknown = model.load_state_dict(complete, strict=False)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the saved weights do not fit this model: {error}") from error
    problems = [
        f"the saved weights {fault}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)}"
        for fault, keys in (("lack", missing), ("hold what the model has not", unknown))
        if keys
    ]
    if problems:
        raise UserError(problems)


def fit_widths(model: nn.Module) -> None:
    """Make what layers say of their widths agree with the shapes of their weights, in place."""
    for module in model.modules():
        if isinstance(module, _ConvNd) and _has_weight(module):
            _fit_convolution(module)
        elif isinstance(module, nn.Linear) and _has_weight(module):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase):
            sized = module.weight if module.weight is not None else module.running_mean
            module.num_features = module.num_features if sized is None else len(sized)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            module.normalized_shape = tuple(module.weight.shape)
        elif isinstance(module, nn.GroupNorm) and module.weight is not None:
            module.num_channels = len(module.weight)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = len(module.weight)
    for module in model.modules():
        if is_attention(module):
            set_heads(module)


def _fit_convolution(module: _ConvNd) -> None:
    first, second = module.weight.shape[:2]
    depthwise = module.groups > 1 and module.groups == module.in_channels
    if isinstance(module, _ConvTransposeNd):
        # (in, out / groups, ...)
        module.groups = first if depthwise else module.groups
        module.in_channels, module.out_channels = first, second * module.groups
        return
    # A depthwise layer may give several outputs for each input: their number stays.
    module.groups = first // (module.out_channels // module.in_channels) if depthwise else module.groups
    module.out_channels, module.in_channels = first, second * module.groups


def _has_weight(module: nn.Module) -> bool:
    """Whether its weight is its own, not computed from others."""
    return isinstance(module._parameters.get("weight"), Tensor)


def _refuse_missing(state: Mapping[str, Tensor], key: str) -> None:
    if key not in state:
        raise UserError(f"the saved weights hold no {key!r}: they are of another architecture")
