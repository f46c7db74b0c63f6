"""Layers that compute the weight they use from their parameter, each time they run.

Weight standardisation (Qiao et al., 2019, arXiv:1903.10520; Brock et al., 2021, arXiv:2101.08692) is how
timm's BiT, NFNet and NF-RegNet do without batch norm. Zeros in such a parameter are moved before they are
used. There is no list of classes here: a layer is run on random numbers, and what it hands to torch is looked
at.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Layer = nn.Conv2d | nn.Linear
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
# Even and odd sides: where padding depends on the size, it differs.
SPARE_PX = (4, 5, 6, 7)
SAME = 1e-5


def keeps_zeros(layer: Layer, kept: Tensor) -> bool:
    """Whether weights that are zero where `kept` is False are zero there in what the layer computes with.

    True where its forward cannot be run by itself, or hands no one weight of that shape to torch.
    """
    if type(layer) in (nn.Conv2d, nn.Linear):
        return True
    probe = copy.copy(layer)  # Its parameters and hooks stay as they are.
    generator = torch.Generator().manual_seed(0)
    # Not its own values: weights that are all alike are zero once they are standardised.
    values = torch.rand(layer.weight.shape, generator=generator) + 0.5
    weight = (values * kept.cpu()).to(layer.weight)
    probe._parameters = {**layer._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    given = _given(probe, 0)
    if given is None or given["weight"].shape != weight.shape:
        return True
    return not bool(given["weight"][weight == 0].any())


def made_plain(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Replace, in place, layers that compute their weight by plain ones that hold what they compute.

    Returns:
        The model, another one only where it is such a layer itself; and the names of these layers.
    """
    plain: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or _is_plain(module):
            continue
        if id(module) not in plain:
            found = _plain(module)
            if found is None:
                continue
            plain[id(module)] = found
        names.append(name)
        if not name:
            return plain[id(module)], names
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain[id(module)])
    return model, names


def _is_plain(layer: Layer) -> bool:
    if layer._parameters.get("weight") is None:  # Parametrised: torch's own functions undo that.
        return True
    generator = torch.Generator().manual_seed(1)
    return keeps_zeros(layer, torch.rand(layer.weight.shape, generator=generator) < 0.5)


def _plain(layer: Layer) -> Layer | None:
    """The plain layer with the computed weight; None where none gives what this one gives."""
    given = _given(layer, 0)
    if given is None:
        return None
    for candidate in _candidates(layer, given):
        candidate.weight = nn.Parameter(given["weight"].detach().clone(), layer.weight.requires_grad)
        if given["bias"] is not None:
            candidate.bias = nn.Parameter(given["bias"].detach().clone(), layer.weight.requires_grad)
        if all(_same(layer, candidate, spare_px) for spare_px in SPARE_PX):
            return candidate.train(layer.training)
    return None


def _candidates(layer: Layer, given: dict[str, Any]) -> Sequence[Layer]:
    from timm.layers import Conv2dSame

    facts: dict[str, Any] = {"bias": given["bias"] is not None, "device": "meta", "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        out, in_ = given["weight"].shape
        return [nn.Linear(in_, out, **facts)]
    facts |= {name: given[name] for name in ("stride", "dilation", "groups")}
    out, in_, *kernel = given["weight"].shape
    shape = (in_ * given["groups"], out, tuple(kernel))
    return [nn.Conv2d(*shape, padding=given["padding"], **facts), Conv2dSame(*shape, **facts)]


def _same(layer: Layer, other: Layer, spare_px: int) -> bool:
    images = _images(layer, spare_px)
    with torch.no_grad():
        wanted, found = _run(layer, images), other(images)
    return found.shape == wanted.shape and torch.allclose(found, wanted, SAME, SAME)


def _given(layer: Layer, spare_px: int) -> dict[str, Any] | None:
    """What a layer hands to torch's convolution or matrix product; None where that is not one call."""
    with torch.no_grad(), _Calls() as calls:
        try:
            _run(layer, _images(layer, spare_px))
        except Exception:  # Whatever a forward raises that wants something else.
            return None
    return calls.seen[0] if len(calls.seen) == 1 else None


def _run(layer: Layer, images: Tensor) -> Tensor:
    """The layer's class alone: without hooks, which may belong to somebody."""
    forward: Any = type(layer).forward
    result: Tensor = forward(layer, images)
    return result


def _images(layer: Layer, spare_px: int) -> Tensor:
    """Random numbers that a layer takes, by so much larger than its kernel."""
    generator = torch.Generator().manual_seed(spare_px)
    if isinstance(layer, nn.Linear):
        return torch.randn(2, layer.weight.shape[1], generator=generator).to(layer.weight)
    pairs = zip(layer.weight.shape[2:], layer.dilation, strict=True)
    sides = [(kernel - 1) * dilation + 1 + spare_px for kernel, dilation in pairs]
    channels = layer.weight.shape[1] * layer.groups
    return torch.randn(1, channels, *sides, generator=generator).to(layer.weight)


class _Calls(TorchFunctionMode):
    """Keeps the arguments of convolutions and matrix products of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, and keep what it was given."""
        if getattr(func, "__name__", "") in ("conv2d", "linear"):
            given = dict(zip(ARGUMENTS, args, strict=False)) | (kwargs or {})
            self.seen.append({"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1} | given)
        return func(*args, **(kwargs or {}))
