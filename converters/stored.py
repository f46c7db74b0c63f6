"""A torch model that holds the weights as a file stores them: what the file must compute, rounding included.

Files keep a convolution and the batch norm behind it as one weight, may round it, and may hold it mirrored.
Put back into the model they came from, their weights leave only the arithmetic to differ.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.layers import batch_norms, weighted_layers

# Largest difference, root mean square over the layer's, that a way to store weights brings about.
ROUNDING = {"float32": 1e-4, "float16": 1e-3, "int8": 0.05, "6-bit": 0.15, "4-bit": 0.5}
SPATIAL = (2, 3)


@dataclass(frozen=True)
class DecodedWeight:
    """A layer's weight, as a file holds it.

    Attributes:
        name: of the torch module.
        value: (out, in / groups, height, width) or (out, in), float32.
        encoding: see `LayerFacts`.
    """

    name: str
    value: np.ndarray
    encoding: str


@dataclass(frozen=True)
class Holding:
    """A model that holds a file's weights.

    Attributes:
        model: the copy that holds them.
        missing: its layers of which the file has no weight by that name and shape; they keep the model's own.
        wrong: layers whose stored weight is further from the model's than rounding explains, a line each.
    """

    model: nn.Module
    missing: tuple[str, ...]
    wrong: tuple[str, ...]


def with_stored_weights(model: nn.Module, example: Tensor, stored: Sequence[DecodedWeight]) -> Holding:
    """Copy a model and give its layers the weights of a file.

    Args:
        model: in eval mode; it is not modified.
        example: (1, channels, height, width), what it takes.
        stored: the weights of the file, by the names of the model's layers.
    """
    scales = folded_scales(model, example)
    copied = copy.deepcopy(model)
    modules: dict[str, Any] = dict(copied.named_modules())
    by_name = {entry.name: entry for entry in stored}
    missing, wrong = [], []
    for layer in weighted_layers(model, example):
        match = by_name.get(layer.name)
        if match is None or match.value.size != modules[layer.name].weight.numel():
            missing.append(layer.name)
            continue
        difference = _replace_weight(modules[layer.name], match, scales.get(layer.name))
        if difference > _rounding(match.encoding):
            wrong.append(
                f"{layer.name}: stored as {match.encoding}, {difference:.1%} from the model's; "
                f"rounding explains {_rounding(match.encoding):.1%}"
            )
    return Holding(copied, tuple(missing), tuple(wrong))


def folded_scales(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """What the batch norm behind a convolution multiplies each of its channels with, (out,), by layer."""
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    norms = batch_norms(model, convolutions, example)
    return {name: _scale(norm) for name, norm in norms.items() if norm.running_var is not None}


def _scale(norm: Any) -> Tensor:
    gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    scale: Tensor = gain.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale


def _replace_weight(module: Any, stored: DecodedWeight, scale: Tensor | None) -> float:
    """Give a layer a stored weight, the way round it fits best; returns the relative difference it makes."""
    own = module.weight.detach()
    value = torch.from_numpy(np.array(stored.value, np.float32)).reshape(own.shape)
    ways = [value, value.flip(SPATIAL)] if value.ndim == 4 else [value]
    factors = [torch.ones(len(own))] + ([scale] if scale is not None else [])
    candidates = [(way, factor.reshape(-1, *[1] * (own.ndim - 1))) for way in ways for factor in factors]
    differences = [_relative(way, own * factor) for way, factor in candidates]
    best = int(np.argmin(differences))
    way, factor = candidates[best]
    with torch.no_grad():
        # A channel that its batch norm multiplies with zero has no weight to find out.
        module.weight.copy_(torch.where(factor == 0, own, way / torch.where(factor == 0, 1, factor)))
    return differences[best]


def _relative(value: Tensor, wanted: Tensor) -> float:
    norm = float(wanted.double().norm())
    difference = float((value.double() - wanted.double()).norm())
    return difference / norm if norm else float(difference > 0)


def _rounding(encoding: str) -> float:
    return next((limit for name, limit in ROUNDING.items() if name in encoding), max(ROUNDING.values()))


def is_exact(stored: Sequence[DecodedWeight]) -> bool:
    """Whether no weight was rounded."""
    return all("float32" in entry.encoding for entry in stored)
