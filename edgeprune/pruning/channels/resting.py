"""What a channel still gives when all that makes it is zero, kept when the channel goes.

A shift that all channels share (StarReLU's, that of a learnable affine block) is no channel's own: it makes
something out of nothing. What reads such channels gets the same number from each, whatever the image, and a
bias, or a batch norm behind, can hold it. Where neither is there, or a convolution reads zeros around its
map besides, the channel goes as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from converters.layers import batch_norms
from edgeprune.pruning.calibration import Layer, evaluating, watching
from edgeprune.pruning.channels.groups import Axis
from edgeprune.pruning.channels.removal import Cut, places_of, take_out, undone, zero_makers


def take_out_at_rest(model: nn.Module, example: Tensor, cuts: Sequence[Cut]) -> list[Axis]:
    """Remove units, in place, as `take_out` does, and keep what they give when all that makes them is zero.

    Returns:
        Axes along which such channels were read where nothing could hold what they gave.
    """
    readers = _readers(model, cuts)
    with undone(model):
        zero_makers(model, cuts)
        shares = _shares(model, example, readers)
    lost = []
    with torch.no_grad():
        norms = _norms(model, example, shares, readers)
        for axis, (share, exact) in shares.items():
            if not (_held(readers[axis][0], norms.get(axis.layer), share) and exact):
                lost.append(axis)
    take_out(model, cuts)
    return lost


def _readers(model: nn.Module, cuts: Sequence[Cut]) -> dict[Axis, tuple[Layer, Tensor]]:
    """Layers that mix channels about to go, and which."""
    reading = {axis for group, _ in cuts for axis in group.readers}
    found: dict[Axis, tuple[Layer, Tensor]] = {}
    for axis, places in places_of(cuts).items():
        module = model.get_submodule(axis.layer)
        if axis in reading and isinstance(module, (nn.Conv2d, nn.Linear)):
            found[axis] = module, places
    return found


def _shares(
    model: nn.Module, example: Tensor, readers: Mapping[Axis, tuple[Layer, Tensor]]
) -> dict[Axis, tuple[Tensor, bool]]:
    """What each reader makes of channels at rest, where that is not zero, and whether it is so everywhere."""
    seen: dict[Axis, tuple[Tensor, bool]] = {}
    by_layer = {axis.layer: axis for axis in readers}

    def note(name: str, given: Tensor) -> None:
        axis = by_layer[name]
        module, places = readers[axis]
        # A grouped convolution reads the same places of each of its groups.
        if module.weight.shape[1] != given.shape[1 if isinstance(module, nn.Conv2d) else -1]:
            return
        maps = given.movedim(1, -1) if isinstance(module, nn.Conv2d) else given
        values = maps[..., places.to(given.device)].flatten(0, -2)
        if not values.any():
            return
        same = bool((values == values[0]).all())
        columns = module.weight.flatten(2).sum(2) if module.weight.dim() > 2 else module.weight
        share = columns[:, places.to(given.device)] @ (values[0] if same else values.mean(0))
        seen[axis] = share, same and not _is_padded(module)

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(example.shape, generator=generator).to(example.device, example.dtype)
    with watching(model, note, {axis.layer: module for axis, (module, _) in readers.items()}):
        model(images)
    return seen


def _is_padded(module: Layer) -> bool:
    return isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or any(module.padding))


def _norms(
    model: nn.Module,
    example: Tensor,
    shares: Mapping[Axis, object],
    readers: Mapping[Axis, tuple[Layer, Tensor]],
) -> Mapping[str, _BatchNorm]:
    """The batch norms behind readers that have no bias."""
    bare = {axis.layer: readers[axis][0] for axis in shares if readers[axis][0].bias is None}
    if not bare:
        return {}
    with evaluating(model):
        return batch_norms(model, bare, example)


def _held(module: Layer, norm: _BatchNorm | None, share: Tensor) -> bool:
    """Add a share to what a layer gives, and say whether there is something that holds it."""
    if module.bias is not None:
        module.bias.data = module.bias.data + share
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean.data = norm.running_mean.data - share
    else:
        return False
    return True
