"""Builds a Keras model, converts it, and tells what came out: run in a process of its own, by test_keras.py.

python keras_child.py MODEL SIZE_PX FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import torch

from converters import litert
from converters.errors import UserError
from converters.facts import Normalization

CLASSES = 10


def small() -> keras.Model:
    """Takes what the caller normalises; a dense classifier; another model inside."""
    inner = keras.Sequential(
        [keras.Input((None, None, 16)), keras.layers.Conv2D(32, 1, name="wide"), keras.layers.ReLU()],
        name="inner",
    )
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, 2, padding="same", name="stem")(image)
    x = inner(keras.layers.Activation("hard_swish")(x))
    x = keras.layers.DepthwiseConv2D(5, 2, padding="same", name="deep")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(64, 1, name="last")(x))
    return keras.Model(image, keras.layers.Dense(CLASSES, name="classes")(x), name="small")


def prune(model: keras.Model, random: np.random.Generator) -> None:
    """Batch norms that do something, and 80 % zeros in the 1x1 kernels, in blocks of four inputs."""
    for layer in model.layers:
        kind = type(layer).__name__
        if hasattr(layer, "layers"):
            prune(layer, random)
        elif kind == "BatchNormalization":
            count = layer.gamma.shape
            gains, variances = random.uniform(0.5, 1.5, (2, *count))
            layer.set_weights([gains, *random.normal(0, 0.1, (2, *count)), variances])
        elif kind == "Conv2D" and layer.kernel.shape[:2] == (1, 1) and layer.kernel.shape[2] % 4 == 0:
            kernel, *bias = layer.get_weights()
            blocks = kernel[0, 0].T.reshape(-1, 4).copy()  # (inputs, outputs) -> (outputs * inputs / 4, 4)
            blocks[random.permutation(len(blocks))[: round(0.8 * len(blocks))]] = 0
            layer.set_weights([blocks.reshape(kernel.shape[3], -1).T[None, None], *bias])


def refusals(model: keras.Model, size_px: int, path: Path) -> dict[str, str]:
    """The message for each mistake."""
    example = torch.zeros(1, 3, size_px, size_px)
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)], name="unbuilt")
    picture = keras.Sequential([keras.Input((size_px, size_px, 3)), keras.layers.ReLU()])
    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    mistakes = {
        "size": lambda: litert.convert(model, torch.zeros(1, 3, 40, 40), path),
        "labels": lambda: litert.convert(model, example, path, labels=["cat"]),
        "twice": lambda: litert.convert(model, example, path, normalization=half),
        "unbuilt": lambda: litert.convert(unbuilt, example, path),
        "no vector": lambda: litert.convert(picture, example, path),
    }
    told = {}
    for name, mistake in mistakes.items():
        try:
            mistake()
        except UserError as error:
            told[name] = str(error)
    return told


def main(name: str, size_px: int, folder: Path) -> None:
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    own = {"weights": None, "input_shape": (size_px, size_px, 3), "classes": CLASSES}
    model = small() if name == "small" else getattr(keras.applications, name)(**own)
    prune(model, random)
    example = torch.zeros(1, 3, size_px, size_px)
    pixels = random.uniform(0, 255, (4, 3, size_px, size_px)).astype(np.float32)
    half = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) if name != "MobileNetV3Small" else None
    taken = pixels if half is None else pixels / 127.5 - 1
    wanted = model(taken.transpose(0, 2, 3, 1), training=False).numpy()
    lowered = litert.lower(model, example, half)
    told = {"files": {}, "refused": refusals(model, size_px, folder / "refused.tflite")}
    for target in ("litert-arm64", "litert-arm64-int8"):
        path = folder / f"{target}.tflite"
        labels = [f"class {number}" for number in range(CLASSES)]
        converted = litert.convert(
            model, example, path, target=target, labels=labels, normalization=half, lowered=lowered
        )
        given = litert.load(path).predict(pixels)
        verdict = litert.lint(path)
        told["files"][target] = {
            "path": str(path),
            "bytes": converted.bytes,
            "error": float(np.abs(given - wanted).max() / np.abs(wanted).max()),
            "range": litert.load(path).input.range,
            "sparse": verdict.sparse,
            "problems": [str(problem) for problem in verdict.problems],
            "layers": [(layer.name, layer.kind, layer.zero_fraction) for layer in converted.layers],
            "own_zeros": {
                layer.name: float((layer.get_weights()[0] == 0).mean())
                for part in [model, *(inside for inside in model.layers if hasattr(inside, "layers"))]
                for layer in part.layers
                if type(layer).__name__ in ("Conv2D", "DepthwiseConv2D", "Dense")
            },
        }
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
