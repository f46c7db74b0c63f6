"""A Core AI model run by Apple's runtime, and compared with what it should compute."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters import rounding
from converters.agreement import difference
from converters.coreai.apart import SECONDS_PER_IMAGE, facts_of, tensors_of
from converters.coreai.evaluation import load
from converters.coreai.inspection import name_layers
from converters.coreai.package import read_asset
from converters.coreai.program import StoredWeight
from converters.errors import UserError
from converters.facts import Normalization
from converters.head import with_pointwise_layers
from converters.layers import batch_norms, weighted_layers
from converters.reference import (
    MAX_PIXEL,
    Expected,
    Reference,
    Verification,
    as_values,
    check_images,
    checked,
    normalized,
    torch_outputs,
    unexplained,
    verification,
)

# In float32 only the order of sums differs from torch's. As the file is, every operation rounds to float16,
# sums among them, which the kernels of Linux also take in float16.
TOLERANCE, FLOAT16_TOLERANCE = 1e-4, 5e-2
# A file whose weights are within this is not asked what rounding explains; images that decide if it does.
FLOOR = 2e-3
JUDGED_IMAGES = 2
RUNTIME, AS_IT_IS = "core-ai", "core-ai-float16"
# Of the images, how many the file is given as it is: a tenth of a second each, but half a minute and more of
# a transformer, which is then given fewer, or none where even one takes longer than the runtime's limit.
IMAGES_AS_IT_IS, SECONDS_AS_IT_IS = 16, 60.0


def verify(
    path: Path,
    images: np.ndarray,
    model: nn.Module | None,
    normalization: Normalization,
    runtimes: Sequence[str] | None,
    emulated_images: int,
    say: Callable[[str], None],
) -> Verification:
    """See `converters.verify.verify`."""
    if runtimes is not None:
        raise UserError(f"{path}: Apple's runtime runs it: name no runtime")
    if model is None:
        raise UserError(f"{path}: needs the torch model to be compared with")
    asset = read_asset(path)
    loaded = load(path)
    check_images(path, images, loaded.input)
    folded = loaded.input.range is not None
    inputs = normalized(images, normalization)
    fed = images if folded else inputs
    say(f"{RUNTIME}: {len(images)} images")
    here = as_values(loaded.predict(fed))
    outputs = torch_outputs(path, model, inputs, here)
    example = torch.from_numpy(inputs[:1])
    weights = decoded_weights(path, model, example)
    half = any(weight.encoding != "float32" for weight in weights.values())
    exact_inputs = normalized_in_float16(images, normalization) if folded and half else inputs

    def holding_them(values: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        twin = holding(model, example, values, half=half)
        return torch_outputs(path, twin, exact_inputs[:count], here[:count])

    exact = holding_them({name: weight.value for name, weight in weights.items()}, len(images))
    off = _Off(path, asset.program, inputs[:1], fed[:1])
    problems = _problems(model, weights, holding_them, exact, outputs, off)
    release = f"coreai-core {version('coreai-core')}"
    reason = _reason(model, example, weights)
    expected = Expected(exact, Reference.STORED, reason, TOLERANCE, outputs, problems)
    checks = [checked(RUNTIME, release, here, expected, None)]
    count = _images_as_it_is(loaded.seconds_as_it_is)
    if not count:
        say(f"{AS_IT_IS}: left out, an image takes {loaded.seconds_as_it_is:.0f} s here")
        return verification(path, expected, here, checks)
    say(f"{AS_IT_IS}: {min(len(images), count)} images")
    as_it_is = as_values(load(path, activations="float16").predict(fed[:count]))
    loosely = Expected(exact, Reference.STORED, reason, FLOAT16_TOLERANCE, outputs)
    checks.append(checked(AS_IT_IS, release, as_it_is, loosely, None))
    return verification(path, expected, here, checks)


def _images_as_it_is(seconds: float) -> int:
    """How many images the file is given as it is, if one takes so long."""
    if seconds > SECONDS_PER_IMAGE:
        return 0
    return max(1, min(IMAGES_AS_IT_IS, int(SECONDS_AS_IT_IS / max(seconds, 1e-3))))


@dataclass(frozen=True)
class _Off:
    """What it takes to find the place where a file and its model part: the file, and one image of each."""

    path: Path
    program: bytes
    image: np.ndarray
    fed: np.ndarray

    def tensors(self) -> list[np.ndarray]:
        """All that the file computes on the way."""
        return tensors_of(self.path, self.program, self.fed)


def _problems(
    model: nn.Module,
    weights: Mapping[str, StoredWeight],
    holding_them: Callable[[Mapping[str, np.ndarray], int], np.ndarray],
    exact: np.ndarray,
    outputs: np.ndarray,
    off: _Off,
) -> tuple[str, ...]:
    """Whether the stored weights are further from the model's than their rounding explains."""
    largest = difference(exact, outputs)
    if largest <= FLOOR:
        return ()
    judged = min(JUDGED_IMAGES, len(exact))

    def run(random: np.random.Generator) -> list[np.ndarray]:
        values = {
            name: rounding.stored_otherwise(weight.value, weight.encoding, random)
            for name, weight in weights.items()
        }
        return [holding_them(values, judged)]

    error = rounding.rms([exact[:judged]], [outputs[:judged]])
    explained = rounding.explained([exact[:judged]], error, run)
    if error <= explained:
        return ()
    return (unexplained(error, explained, largest, model, off.image, off.tensors),)


def _reason(model: nn.Module, example: Tensor, weights: Mapping[str, StoredWeight]) -> str:
    """Why the file is not held against the torch model as it is."""
    reason = "its weights and other constants are rounded"
    missing = [layer.name for layer in weighted_layers(model, example) if layer.name not in weights]
    if missing:
        reason += f"; the model's own where they are not found: {', '.join(missing[:3])}"
    return reason


def decoded_weights(path: Path, model: nn.Module, example: Tensor) -> dict[str, StoredWeight]:
    """The weights of a file, by the names of the modules they came from.

    Raises:
        UserError: it is no Core AI model, or it is damaged.
    """
    asset = read_asset(path)
    layers = weighted_layers(with_pointwise_layers(model, example), example)
    named = name_layers(facts_of(path, asset.program), layers)
    return {facts.name: weight for facts, weight in named}


def holding(model: nn.Module, example: Tensor, weights: Mapping[str, np.ndarray], *, half: bool) -> nn.Module:
    """The model as the file has it: batch norms folded, the file's weights, other numbers as float16.

    Args:
        model: in eval mode; it is not modified.
        example: (1, channels, height, width), what it takes.
        weights: decoded, by name of the layer.
        half: whether constants that are no weights were rounded to float16.
    """
    changed = copy.deepcopy(with_pointwise_layers(model, example))
    modules: dict[str, Any] = dict(changed.named_modules())
    convolutions = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    norms = batch_norms(changed, convolutions, example)
    with torch.no_grad():
        for name, norm in norms.items():
            if norm.running_var is not None:
                _fold(modules[name], norm)
        if half:
            for tensor in (*changed.parameters(), *changed.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half().float())
        for name, value in weights.items():
            if name in modules:
                own = modules[name].weight
                own.copy_(torch.from_numpy(np.asarray(value, np.float32)).reshape(own.shape))
    return changed


def _fold(convolution: Any, norm: Any) -> None:
    """Give a convolution what the batch norm behind it does, and make that one do nothing."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else norm.weight * scale
    shift = -norm.running_mean * scale + (0 if norm.bias is None else norm.bias)
    bias = shift if convolution.bias is None else convolution.bias * scale + shift
    convolution.weight.mul_(scale.reshape(-1, 1, 1, 1))
    convolution.bias = nn.Parameter(bias.clone())
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.eps = 0.0
    if norm.weight is not None:
        norm.weight.fill_(1)
        norm.bias.zero_()


def normalized_in_float16(pixels: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Plain pixels in [0, 255] normalised with the constants that a file has: float16."""
    pair = (normalization.mean, normalization.std)
    mean, std = (np.asarray(v, np.float64)[:, None, None] for v in pair)
    shift = (mean * MAX_PIXEL).astype(np.float32).astype(np.float16).astype(np.float32)
    scale = (1 / (MAX_PIXEL * std)).astype(np.float32).astype(np.float16).astype(np.float32)
    result: np.ndarray = (pixels.astype(np.float32) - shift) * scale
    return result
