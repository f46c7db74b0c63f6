"""From a model to the dense float32 flatbuffer that the other steps rewrite."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from converters.arguments import results_of
from converters.errors import ToolError
from converters.facts import Normalization
from converters.litert import keras_models
from converters.litert.silence import quiet
from converters.rewriting import Rewriting

MAX_PIXEL = 255.0
MAP_DIMS = 4


class ChannelsLast(nn.Module):
    """Takes NHWC images or maps and gives NHWC maps, as LiteRT does, and, where told how, normalises plain
    pixels in [0, 255] first.

    The normalisation is one multiplication and one addition on the image itself, before the first padding:
    the sparse part of the network, which starts at the first convolution, never sees it.
    """

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, model: nn.Module, normalization: Normalization | None) -> None:
        super().__init__()
        self.model = model
        self.normalized = normalization is not None
        if normalization is not None:
            mean, std = (
                torch.tensor(v, dtype=torch.float64) for v in (normalization.mean, normalization.std)
            )
            self.register_buffer("scale", (1 / (MAX_PIXEL * std)).float())
            self.register_buffer("offset", (-mean / std).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """(1, height, width, channels) -> what the model returns; a map as (1, height, width, classes)."""
        # A copy, so that a model that changes its input in place does not change the file's.
        images = images * self.scale + self.offset if self.normalized else images.clone()
        with Rewriting():
            results = results_of(self.model(images.permute(0, 3, 1, 2))).values()
        given = tuple(part.permute(0, 2, 3, 1) if part.ndim == MAP_DIMS else part for part in results)
        return given if len(given) > 1 else given[0]


def lower(model: nn.Module | Any, example: torch.Tensor, normalization: Normalization | None = None) -> bytes:
    """Convert a torch module, which takes NCHW like `example`, or a Keras model; the result takes NHWC.

    Raises:
        UserError: it is a Keras model, and TensorFlow is not there.
        ToolError: litert-torch, or TensorFlow, cannot convert the model.
    """
    if keras_models.is_keras(model):
        return keras_models.lower(model, image_shape(example), normalization)
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")  # its only switch
    with quiet(), _rarely_collecting():
        import litert_torch

        wrapped = ChannelsLast(model, normalization).eval()
        image = torch.zeros_like(example).permute(0, 2, 3, 1).contiguous()
        try:
            converted = litert_torch.convert(wrapped, (image,))
            content: bytes = converted.model_content()
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ToolError(f"litert-torch cannot convert {type(model).__name__}: {first_line}") from error
    return content


@contextmanager
def _rarely_collecting() -> Iterator[None]:
    """Tracing makes millions of small objects that live on: looking for garbage among them takes a tenth."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def image_shape(example: torch.Tensor) -> tuple[int, int, int]:
    """(channels, height, width)."""
    return int(example.shape[1]), int(example.shape[2]), int(example.shape[3])
