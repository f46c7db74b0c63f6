"""A model built at full width, given the widths of a pruned one's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.models.attention import is_attention, set_heads


def resize(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a freshly built `model` the widths that `state` was saved with, in place; then load it.

    A state dict holds all there is to know: the shapes say each layer's width.

    Raises:
        UserError: `state` is not of this architecture.
    """
    for name, module in model.named_modules():
        shape = _shape(state, f"{name}.weight", module)
        if isinstance(module, nn.Conv2d):
            depthwise = module.groups > 1 and module.groups == module.in_channels
            module.out_channels = shape[0]
            module.groups = shape[0] if depthwise else module.groups
            module.in_channels = shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = shape[0]
    for module in model.modules():
        if is_attention(module):
            set_heads(module)
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if name in state and state[name].shape != tensor.shape:
            fresh: Tensor = torch.empty_like(state[name], device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(fresh) if is_parameter else fresh)
    try:
        missing, unknown = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise UserError(f"the saved weights do not fit this model: {error}") from error
    problems = [
        f"the saved weights {fault}: {', '.join(keys[:3])}{f' and {len(keys) - 3} more' * (len(keys) > 3)}"
        for fault, keys in (("lack", missing), ("hold what the model has not", unknown))
        if keys
    ]
    if problems:
        raise UserError(problems)


def _shape(state: Mapping[str, Tensor], key: str, module: nn.Module) -> tuple[int, ...]:
    if not isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
        return ()
    if key not in state:
        raise UserError(f"the saved weights hold no {key!r}: they are of another architecture")
    return tuple(state[key].shape)
