"""A torch model as a file will have it: checked, with plain pixels in and named results out."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from converters.facts import Normalization

MAX_PIXEL = 255.0
LOGITS = "logits"
# Of a dict with such an entry the keys say what the outputs are.
SCORES = "scores"


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


def named_results(given: Mapping[Any, Tensor]) -> dict[str, Any]:
    """Names of the outputs that `arguments.results_of` found, and the key of each in what the model gives.

    One output is "logits". Of several, as a backbone gives them, each is "features_" and its key; of those
    with "scores" among their keys, as the first half of a model with an early exit gives them, its key.
    """
    if len(given) == 1:
        return {LOGITS: next(iter(given))}
    before = "" if SCORES in given else "features_"
    return {f"{before}{re.sub('[^A-Za-z0-9_]', '_', str(key))}": key for key in given}
