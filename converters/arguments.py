"""What a converter is given, checked before anything is done: every mistake found, a line each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.errors import UserError
from converters.facts import Normalization

# Outputs that others of a dict are there to help train, by the names segmentation and language models use.
CHOSEN_KEYS = ("out", "logits")
BOX_VALUES = 4  # of a detector's row (1, boxes, 4 + classes), before its classes
FLOAT16_LIMIT = 65_504.0


def model_problems(model: Any) -> list[str]:
    """What rules a torch model out: its kind, its mode, the type and values of its weights."""
    if isinstance(model, torch.export.ExportedProgram):
        return ["model is an exported program: give the torch.nn.Module it was exported from"]
    if isinstance(model, torch.jit.ScriptModule):
        return ["model is TorchScript, which cannot be traced: give the torch.nn.Module it was made from"]
    if not isinstance(model, nn.Module):
        return [f"model is a {type(model).__name__}: expected a torch.nn.Module"]
    problems = []
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        problems.append(f"model is in training mode ({training[0]}): call model.eval() before converting")
    quantized = [name for name, module in model.named_modules() if _is_quantized(module)]
    if quantized:
        problems.append(
            f"{quantized[0]} is quantised already: convert the model in float32, and choose an int8 target"
        )
        return problems
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            problems.append(f"{name} is {weight.dtype}: call model.float(); how it is stored the target says")
            break
    problems += [
        f"{name} has values that are not finite (NaN or infinity)"
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    return problems


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module).__module__
    own = [*module._parameters.values(), *module._buffers.values()]
    return ".nn.quantized" in kind or any(t is not None and t.is_quantized for t in own)


def example_problems(example: Any, channels: int | None = None) -> list[str]:
    """What rules an example image out; any number of `channels` where that is None."""
    wanted = f"(1, {channels or 'channels'}, height, width)"
    if isinstance(example, np.ndarray):
        return [f"example is a NumPy array: give torch.from_numpy(example), {wanted} float32"]
    if not isinstance(example, Tensor):
        return [f"example is a {type(example).__name__}: expected a tensor {wanted} float32"]
    problems = []
    if example.dim() != 4 or example.shape[0] != 1 or (channels and example.shape[1] != channels):
        problems.append(f"example has shape {tuple(example.shape)}, expected {wanted}")
    if example.dtype != torch.float32:
        problems.append(f"example has type {example.dtype}, expected torch.float32")
    elif not torch.isfinite(example).all():
        problems.append("example has values that are not finite (NaN or infinity)")
    return problems


def normalization_problems(normalization: Normalization | None, channels: int | None = None) -> list[str]:
    """What rules a normalisation out: it is for pixels in [0, 1], and divides by `std`."""
    if normalization is None:
        return []
    mean, std = normalization.mean, normalization.std
    problems = []
    if len(mean) != len(std) or len(mean) != (channels or len(mean)):
        problems.append(
            f"normalization has {len(mean)} means and {len(std)} stds: one of each a channel, "
            f"of {channels or len(mean)}"
        )
    if not np.isfinite([*mean, *std]).all():
        problems.append(f"normalization mean {mean}, std {std}: every value must be finite")
        return problems
    if any(not value > 0 for value in std):
        problems.append(f"normalization std {std}: every value must be above 0")
    if any(not -1 <= value <= 2 for value in mean) or any(value > 10 for value in std):
        problems.append(
            f"normalization mean {mean}, std {std}: values are for pixels in [0, 1]; divide those for "
            "[0, 255] by 255"
        )
    return problems


def label_problems(labels: Sequence[str] | None, shape: Sequence[int] | None = None) -> list[str]:
    """What rules class names out, for an output of `shape`, where that is known: (1, classes, ...), or
    (1, boxes, 4 + classes).
    """
    if labels is None:
        return []
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        wrong = labels if isinstance(labels, str) else next(x for x in labels if not isinstance(x, str))
        return [f"labels hold {wrong!r}: expected a list of class names, text each, in output order"]
    problems = []
    if shape is not None and len(shape) not in (2, 3, 4):
        return [f"labels are for a classifier; this model gives an output of shape {tuple(shape)}"]
    if shape is not None and len(shape) == 3:
        problems += [
            f"{len(labels)} labels for rows of {shape[2]} values: a detector's have a box of {BOX_VALUES}, "
            "with or without a value for the background, and one for each class"
        ] * (shape[2] - BOX_VALUES - len(labels) not in (0, 1))
    elif shape is not None and len(labels) != shape[1]:
        problems.append(f"{len(labels)} labels for a model of {shape[1]} classes")
    repeated = sorted(label for label, count in Counter(labels).items() if count > 1)
    if repeated:
        problems.append(f"labels that appear twice, which apps cannot tell apart: {', '.join(repeated)}")
    if any(not label.strip() for label in labels):
        problems.append(f"label {[bool(label.strip()) for label in labels].index(False)} is empty")
    return problems


def calibration_problems(images: Any, shape: tuple[int, int, int], pixels: bool, least: int) -> list[str]:
    """What rules calibration images out.

    Args:
        images: as given; None: there are none.
        shape: (channels, height, width) of the file's input.
        pixels: whether the file takes plain pixels in [0, 255].
        least: how many there must be.
    """
    wanted = ", ".join(map(str, shape))
    if images is None:
        return [f"a static int8 file needs calibration images: (n, {wanted}) float32, real ones"]
    if not isinstance(images, np.ndarray):
        return [f"calibration images are a {type(images).__name__}: expected a NumPy array (n, {wanted})"]
    problems = []
    if images.ndim != 4 or images.shape[1:] != shape or len(images) < least:
        problems.append(
            f"calibration images are {images.shape}: they must be (n, {wanted}), n at least {least}"
        )
    if images.dtype != np.float32:
        problems.append(f"calibration images are {images.dtype}: give images.astype(numpy.float32)")
    elif not np.isfinite(images).all():
        problems.append("calibration images have values that are not finite (NaN or infinity)")
    elif images.size and pixels and images.max() <= 1:
        problems.append(
            f"calibration images go up to {images.max():g}: this file takes plain pixels in [0, 255]"
        )
    return problems


def outputs_of(model: nn.Module, example: Tensor) -> Any:
    """What a model gives for its example.

    Raises:
        UserError: it does not take it.
    """
    try:
        with torch.no_grad():
            return model(example.clone())
    except Exception as error:  # Whatever the model's own code raises.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the model does not take {tuple(example.shape)} images: {first_line}") from error


def results_of(given: Any) -> dict[Any, Tensor]:
    """The outputs that belong in a file, by what picks them from what a model gives; None: all of it.

    Of a dict that has "out" or "logits" it is that alone: what else there is serves training.

    Raises:
        UserError: they are not tensors.
    """
    if isinstance(given, Tensor):
        return {None: given}
    if isinstance(given, Mapping):
        chosen = next((key for key in CHOSEN_KEYS if key in given), None)
        parts = dict(given) if chosen is None else {chosen: given[chosen]}
    else:
        parts = dict(enumerate(given)) if isinstance(given, (list, tuple)) else {}
    if not parts or not all(isinstance(part, Tensor) for part in parts.values()):
        raise UserError(
            f"model gives a {type(given).__name__} that is not of tensors; expected a tensor, or a dict, "
            "list or tuple of them: of a detector, convert the backbone"
        )
    return parts
