"""Runs a `.tflite` file on LiteRT here, whatever layout it has inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import UserError
from converters.facts import InputSpec
from converters.litert import probe
from converters.litert.graph import Graph, read
from converters.litert.metadata import input_spec
from converters.litert.silence import quiet

IMAGE_CHANNELS = (1, 3)


class LitertModel:
    """A file ready to run.

    Attributes:
        input: what the file expects.
    """

    def __init__(self, path: Path, content: bytes, graph: Graph, threads: int | None) -> None:
        self._path = path
        self._interpreter = _interpreter(path, content, threads)
        (self._in,) = self._interpreter.get_input_details()
        (self._out,) = self._interpreter.get_output_details()
        self._channels_last, shape = _layout(path, tuple(int(d) for d in self._in["shape"]))
        self.input: InputSpec = input_spec(graph, shape)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Run images one by one.

        Args:
            images: (n, channels, height, width) float32, in the range `input` says.

        Returns:
            (n, classes) float32.

        Raises:
            UserError: the images are of another shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input.shape:
            wanted = ", ".join(map(str, self.input.shape))
            raise UserError(f"{self._path}: takes images of (n, {wanted}), got {images.shape}")
        laid_out = images.transpose(0, 2, 3, 1) if self._channels_last else images
        outputs = [self._run(image[None]) for image in laid_out]
        return np.stack(outputs) if outputs else np.zeros((0, int(np.prod(self._out["shape"]))), np.float32)

    def _run(self, image: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._in["index"], _quantized(image, self._in))
        self._interpreter.invoke()
        return _dequantized(self._interpreter.get_tensor(self._out["index"]), self._out).reshape(-1)


def load(path: Path | str, *, threads: int | None = None, trusted: bool = False) -> LitertModel:
    """Load a file onto LiteRT's interpreter.

    Args:
        path: the `.tflite` file.
        threads: for the runtime to use; its own choice where None.
        trusted: skip the trial run in a process of its own. LiteRT can crash on a file that makes no sense.

    Raises:
        UserError: it is not a `.tflite` that holds together, the runtime refuses it, or it takes or gives
            something else than one image and one tensor.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    graph = read(content, str(path))
    inputs, outputs = graph.subgraph.inputs, graph.subgraph.outputs
    if inputs is None or outputs is None or len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{path}: must take one image and give one tensor")
    _layout(path, graph.shape(int(inputs[0])))
    if not trusted:
        probe.check(path)
    return LitertModel(path, content, graph, threads)


def _interpreter(path: Path, content: bytes, threads: int | None) -> Any:
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=content, num_threads=threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{path}: not a usable .tflite file: LiteRT refuses it: {first_line}") from None
    return interpreter


def _layout(path: Path, shape: tuple[int, ...]) -> tuple[bool, tuple[int, int, int]]:
    """Whether an input of `shape` is NHWC, and its (channels, height, width)."""
    if len(shape) == 4 and shape[0] == 1 and shape[3] in IMAGE_CHANNELS:
        return True, (shape[3], shape[1], shape[2])
    if len(shape) == 4 and shape[0] == 1 and shape[1] in IMAGE_CHANNELS:
        return False, (shape[1], shape[2], shape[3])
    raise UserError(
        f"{path}: takes {shape}, which is not one image of {' or '.join(map(str, IMAGE_CHANNELS))} channels"
    )


def _quantized(image: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, offset = details["quantization"]
    dtype = np.dtype(details["dtype"])
    if dtype.kind == "f" or not scale:
        return np.ascontiguousarray(image, dtype)
    limits = np.iinfo(dtype)
    quantized: np.ndarray = np.clip(np.rint(image / scale) + offset, limits.min, limits.max).astype(dtype)
    return quantized


def _dequantized(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, offset = details["quantization"]
    if values.dtype.kind == "f" or not scale:
        return values.astype(np.float32, copy=False)
    result: np.ndarray = (values.astype(np.float32) - offset) * np.float32(scale)
    return result
