"""A torch model as a file will have it: checked, with plain pixels in and named results out."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from converters.errors import UserError
from converters.facts import Normalization

MAX_PIXEL = 255.0
LOGITS = "logits"


class Deployed(nn.Module):
    """The model, with pixels normalised before it where asked for; gives a tuple of its named results.

    Args:
        model: in eval mode; it is copied.
        normalization: what it wants done to pixels; None: it is given what it takes.
        results: what `named_results` gives.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, model: nn.Module, normalization: Normalization | None, results: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        self.results = dict(results)
        self.normalizes = normalization is not None
        if normalization is not None:
            # In this order, as float16, the mean is exact to 1/32 of a pixel step.
            pair = (normalization.mean, normalization.std)
            mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in pair)
            self.register_buffer("mean", (mean * MAX_PIXEL).float())
            self.register_buffer("scale", (1 / (MAX_PIXEL * std)).float())
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, 3, h, w) -> the results."""
        given = self.model((image - self.mean) * self.scale if self.normalizes else image)
        return tuple(given if key is None else given[key] for key in self.results.values())


def named_results(given: Any) -> dict[str, Any]:
    """Names of the outputs, and the key of each in what a model gives; None where that is a tensor.

    A segmentation model's dict has its result in "out", and what else there is serves its training.

    Raises:
        UserError: it gives something else than tensors.
    """
    if isinstance(given, Tensor):
        return {LOGITS: None}
    if isinstance(given, Mapping) and "out" in given:
        return {LOGITS: "out"}
    parts = dict(enumerate(given)) if isinstance(given, (list, tuple)) else given
    tensors = isinstance(parts, Mapping) and all(isinstance(part, Tensor) for part in parts.values())
    if not parts or not tensors:
        raise UserError(
            f"model gives a {type(given).__name__} that is not of tensors; expected a tensor, or a dict, "
            "list or tuple of them: of a detector, convert the backbone"
        )
    if len(parts) == 1:
        return {LOGITS: next(iter(parts))}
    return {f"features_{re.sub('[^A-Za-z0-9_]', '_', str(key))}": key for key in parts}


def source_problems(model: nn.Module, example: Tensor, normalization: Normalization | None) -> list[str]:
    """What is wrong with what is to be converted, a line each."""
    problems = [*_example_problems(example), *_normalization_problems(normalization)]
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        problems.append(f"model is in training mode ({training[0]}): call model.eval() before converting")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{name} has values that are not finite (NaN or infinity)")
    return problems


def label_problems(labels: Sequence[str], classes: int | None) -> list[str]:
    """What is wrong with class names for a model of so many classes; None: it gives no values by class."""
    if classes is None:
        return ["labels were given, and the model gives no values by class"]
    problems = []
    if len(labels) != classes:
        problems.append(f"{len(labels)} labels for {classes} classes")
    twice = sorted({label for label in labels if list(labels).count(label) > 1})
    if twice:
        problems.append(f"labels named twice: {', '.join(twice[:3])}")
    return problems


def _example_problems(example: Tensor) -> list[str]:
    if example.dim() != 4 or tuple(example.shape[:2]) != (1, 3):
        return [f"example has shape {tuple(example.shape)}, expected (1, 3, height, width)"]
    if example.dtype != torch.float32:
        return [f"example has type {example.dtype}, expected torch.float32"]
    return []


def _normalization_problems(normalization: Normalization | None) -> list[str]:
    if normalization is None:
        return []
    problems = []
    if {len(normalization.mean), len(normalization.std)} != {3}:
        problems.append("normalization needs three values for mean and three for std, one a channel")
    if any(not std > 0 for std in normalization.std):
        problems.append(f"normalization std {normalization.std}: every value must be above 0")
    if any(not -1 <= mean <= 2 for mean in normalization.mean):
        problems.append(f"normalization mean {normalization.mean}: values are for pixels in [0, 1]")
    return problems
