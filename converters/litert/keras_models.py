"""From a Keras model to the dense float32 flatbuffer that the other steps rewrite, by TensorFlow's converter.

TensorFlow is an extra: nothing here imports it, or Keras, unless a Keras model is at hand.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from converters.errors import ToolError, UserError
from converters.facts import Normalization
from converters.layers import WeightedLayer
from converters.litert.silence import quiet

MAX_PIXEL = 255.0
# Of a first `Rescaling` layer, times 255: plain pixels become [0, 1], or with an offset of -1, [-1, 1].
PIXEL_SPANS = (1.0, 2.0)
INSTALL = "pip install 'edgeprune[tensorflow]'"


def is_keras(model: object) -> bool:
    """Whether `model` is a Keras model; nobody has one who has not imported Keras."""
    kind = getattr(sys.modules.get("keras"), "Model", None)
    return kind is not None and isinstance(model, kind)


def check(
    model: Any, shape: tuple[int, int, int], labels: Sequence[str] | None, normalization: Normalization | None
) -> None:
    """Refuse a model that does not turn one image of `shape`, (channels, height, width), into one vector.

    Raises:
        UserError: says what the model takes or gives instead.
    """
    channels, height, width = shape
    problems = []
    try:
        taken, given = model.input_shape, model.output_shape
    except (AttributeError, ValueError):
        raise UserError(
            f"the Keras model {model.name} does not know its input: give it one with keras.Input"
        ) from None
    wanted = (1, height, width, channels)
    if not _fits(taken, wanted):
        problems.append(
            f"the Keras model takes {taken}, the example is of {wanted}: channels last, one image"
        )
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], int):
        problems.append(f"the Keras model returns {given}: it must return one (1, classes)")
    elif labels is not None and len(labels) != given[1]:
        problems.append(f"{len(labels)} labels for a model that returns {given}")
    if normalization is not None and own_normalization(model) is not None:
        problems.append("the Keras model rescales its images itself: leave `normalization` out")
    if problems:
        raise UserError(problems)


def lower(model: Any, shape: tuple[int, int, int], normalization: Normalization | None = None) -> bytes:
    """Convert `model` to a flatbuffer that takes one image, (1, height, width, channels).

    Args:
        model: a Keras model whose backend is TensorFlow.
        shape: (channels, height, width) of the image.
        normalization: where given, the file takes plain pixels in [0, 255] and normalises them itself.

    Raises:
        UserError: TensorFlow is not installed, or not Keras' backend.
        ToolError: TensorFlow cannot convert the model.
    """
    keras = sys.modules["keras"]
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras computes with {keras.backend.backend()}: set KERAS_BACKEND=tensorflow before importing it"
        )
    try:
        import tensorflow as tf
    except ImportError:
        raise UserError(f"converting a Keras model needs TensorFlow: {INSTALL}") from None
    channels, height, width = shape
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            # Of exactly one image: for any number of them, TensorFlow computes shapes inside the file.
            image = keras.Input(batch_shape=(1, height, width, channels), name="image")
            one_image = keras.Model(image, model(_normalized(image, normalization), training=False))
            content: bytes = tf.lite.TFLiteConverter.from_keras_model(one_image).convert()
        except Exception as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ToolError(f"TensorFlow cannot convert {model.name}: {first_line}") from error
    return content


def runner(model: Any) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """What gives a model's outputs, (n, classes), for images (n, channels, height, width)."""
    return lambda images: (np.asarray(model(images.transpose(0, 2, 3, 1), training=False), np.float64),)


def weighted_layers(model: Any) -> list[WeightedLayer]:
    """The convolutions and fully connected layers in the order they run, with the shapes torch would have.

    A layer of a model inside the model is called "inner/layer".
    """
    return list(_weighted_layers(model, ""))


def own_normalization(model: Any) -> Normalization | None:
    """What a model that starts with `Rescaling` does to plain pixels in [0, 255]; None where it does not.

    Rescaling from another range (pixels in [0, 1], say) does not count: what the model takes is then not
    plain pixels.
    """
    layers = [layer for layer in getattr(model, "layers", ()) if type(layer).__name__ != "InputLayer"]
    first = layers[0] if layers else None
    if first is None or type(first).__name__ != "Rescaling":
        return None
    scale, offset = np.asarray(first.scale, np.float64), np.asarray(first.offset, np.float64)
    if not any(np.allclose(scale * MAX_PIXEL, span) for span in PIXEL_SPANS):
        return None
    std = np.broadcast_to(1 / (scale * MAX_PIXEL), 3)
    mean = np.broadcast_to(-offset * std, 3) + 0.0  # not -0.0
    return Normalization(_three(mean), _three(std))


def _fits(taken: Any, wanted: tuple[int, ...]) -> bool:
    if not isinstance(taken, tuple) or len(taken) != len(wanted):
        return False
    return all(size in (None, other) for size, other in zip(taken, wanted, strict=True))


def _normalized(image: Any, normalization: Normalization | None) -> Any:
    if normalization is None:
        return image
    mean, std = np.asarray(normalization.mean), np.asarray(normalization.std)
    return image * (1 / (MAX_PIXEL * std)).astype(np.float32) + (-mean / std).astype(np.float32)


def _weighted_layers(model: Any, prefix: str) -> Iterator[WeightedLayer]:
    for layer in model.layers:
        name = f"{prefix}{layer.name}"
        if hasattr(layer, "layers"):
            yield from _weighted_layers(layer, f"{name}/")
            continue
        kind = type(layer).__name__
        if kind == "DepthwiseConv2D":
            height, width, channels, multiplier = layer.kernel.shape
            yield WeightedLayer(name, "depthwise", (channels * multiplier, 1, height, width))
        elif kind == "Conv2D":
            height, width, inputs, outputs = layer.kernel.shape
            is_1x1 = (height, width, layer.groups) == (1, 1, 1)
            yield WeightedLayer(name, "conv1x1" if is_1x1 else "conv", (outputs, inputs, height, width))
        elif kind == "Dense":
            inputs, outputs = layer.kernel.shape
            yield WeightedLayer(name, "linear", (outputs, inputs))


def _three(values: np.ndarray) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
