"""Channels physically removed, across every layer that must shrink with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from converters.layers import weighted_layers
from edgeprune.errors import ToolError, UserError


def shrink(
    model: nn.Module,
    example: Tensor,
    fraction: float,
    *,
    round_to: int = 8,
    keep: Sequence[str] = (),
) -> dict[str, tuple[int, int]]:
    """Remove the `fraction` of each layer's output channels that weighs least, in place.

    Layers that share channels (residuals, depthwise, squeeze-and-excite) shrink together; a group's
    importance is the L2 norm over all of its weights (DepGraph, Fang et al., CVPR 2023; the groups come
    from torch-pruning). The layer that gives the classes keeps its width.

    Args:
        model: a module in eval mode.
        example: (1, 3, h, w), for tracing.
        fraction: of channels to remove, above 0 and below 1; widths are then rounded to `round_to`.
        round_to: odd widths run slowly on every runtime measured; 8 suits them all.
        keep: names of further layers whose outputs stay as they are.

    Returns:
        Output channels (before, after) of each convolution and linear layer that shrank.

    Raises:
        UserError: a fraction out of range, an unknown layer in `keep`.
        ToolError: nothing could be removed, or the model no longer runs.
    """
    import torch_pruning as tp

    modules = dict(model.named_modules())
    problems = [f"no layer {name!r} to keep" for name in keep if name not in modules]
    if not 0 < fraction < 1:
        problems.insert(0, f"channel fraction {fraction:g} is not between 0 and 1: 0.5 removes half of them")
    if problems:
        raise UserError(problems)
    layers = weighted_layers(model, example)
    before = {layer.name: layer.shape[0] for layer in layers}
    classes_layer = layers[-1].name
    # Module instances and a fresh importance: torch-pruning ignores types here and shares its defaults.
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=fraction,
        round_to=round_to,
        ignored_layers=[modules[name] for name in (classes_layer, *keep)],
        root_module_types=[nn.Conv2d, nn.Linear],
    )
    pruner.step()
    model.zero_grad(set_to_none=True)
    after = {layer.name: layer.shape[0] for layer in weighted_layers(model, example)}
    shrunk = {name: (before[name], after[name]) for name in before if after[name] < before[name]}
    if not shrunk:
        raise ToolError(
            f"no channel could be removed at fraction {fraction:g}: widths are rounded to {round_to}; "
            "ask for a larger fraction or a smaller rounding"
        )
    return shrunk


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
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if name in state and state[name].shape != tensor.shape:
            fresh: Tensor = torch.empty_like(state[name], device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(fresh) if is_parameter else fresh)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"the saved weights do not fit this model: {error}") from error


def _shape(state: Mapping[str, Tensor], key: str, module: nn.Module) -> tuple[int, ...]:
    if not isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
        return ()
    if key not in state:
        raise UserError(f"the saved weights hold no {key!r}: they are of another architecture")
    return tuple(state[key].shape)
