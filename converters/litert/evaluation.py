"""Runs a `.tflite` file on LiteRT here, whatever layout it has inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.errors import UserError
from converters.facts import InputSpec
from converters.litert.apart import InterpreterApart
from converters.litert.graph import DamagedFileError, Graph, read
from converters.litert.interpreter import Interpreter, Refused
from converters.litert.lowering import MAP_DIMS
from converters.litert.metadata import input_spec

IMAGE_CHANNELS = (1, 3)
ROWS_DIMS = 3


@dataclass(frozen=True)
class OutputLayout:
    """How a file gives what it gives.

    Attributes:
        shape: of what it gives for an image, where that is more than values: a map as the file has it, three
            sizes, or (boxes, values); None where it gives values.
        channels_last: whether a map is (height, width, classes).
    """

    shape: tuple[int, ...] | None
    channels_last: bool

    def of(self, values: np.ndarray) -> np.ndarray:
        """Values (n, ...) as a torch model gives them: (n, classes), of maps (n, classes, height, width), of
        boxes (n, boxes, values).
        """
        if self.shape is None or values[:1].size not in (0, np.prod(self.shape)):
            return values.reshape(len(values), math.prod(values.shape[1:]))  # -1 is refused for no images.
        shaped = values.reshape(len(values), *self.shape)
        is_map = len(self.shape) == MAP_DIMS - 1
        return shaped.transpose(0, 3, 1, 2) if is_map and self.channels_last else shaped


class LitertModel:
    """A file ready to run.

    Attributes:
        input: what the file expects.
    """

    def __init__(
        self, path: Path, interpreter: Interpreter | InterpreterApart, spec: InputSpec, layout: OutputLayout
    ) -> None:
        self.input = spec
        self._path = path
        self._interpreter = interpreter
        self._layout = layout

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Run images one by one.

        Args:
            images: (n, channels, height, width) float32, in the range `input` says.

        Returns:
            (n, classes) float32; of a file that gives maps (n, classes, height, width), of a detector's rows
            (n, boxes, values).

        Raises:
            UserError: the images are of another shape, or LiteRT fails on the file.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input.shape:
            wanted = ", ".join(map(str, self.input.shape))
            raise UserError(f"{self._path}: takes images of (n, {wanted}), got {images.shape}")
        laid_out = images.transpose(0, 2, 3, 1) if self._layout.channels_last else images
        try:
            return self._layout.of(self._interpreter.run(np.ascontiguousarray(laid_out, np.float32)))
        except Refused as reason:
            raise DamagedFileError(self._path, str(reason)) from None


def load(path: Path | str, *, threads: int | None = None, apart: bool = True) -> LitertModel:
    """Load a file onto LiteRT's interpreter and run one black image, to know that it runs.

    Args:
        path: the `.tflite` file.
        threads: for the runtime to use; its own choice where None.
        apart: in a process of its own, which a file that makes no sense can crash without harm to this one.

    Raises:
        UserError: it is not a `.tflite` that holds together, LiteRT refuses it or crashes on it, or it takes
            or gives something else than one image and one tensor.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    graph = read(content, str(path))
    spec, channels_last = image_input(graph, path)
    try:
        interpreter = InterpreterApart(content, threads, graph) if apart else Interpreter(content, threads)
    except Refused as reason:
        raise DamagedFileError(path, str(reason)) from None
    model = LitertModel(path, interpreter, spec, output_layout(graph, channels_last))
    model.predict(np.zeros((1, *spec.shape), np.float32))
    return model


def image_input(graph: Graph, path: Path) -> tuple[InputSpec, bool]:
    """What a file expects, and whether it has its image channels last (NHWC) inside.

    Raises:
        UserError: it takes or gives something else than one image and one tensor.
    """
    inputs, outputs = graph.subgraph.inputs, graph.subgraph.outputs
    if inputs is None or outputs is None or len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{path}: must take one image and give one tensor")
    channels_last, shape = _layout(path, graph.shape(int(inputs[0])))
    return input_spec(graph, shape), channels_last


def output_layout(graph: Graph, channels_last: bool) -> OutputLayout:
    """How a file gives its one tensor: a map in the layout of its images, rows of boxes, or values."""
    shape = graph.shape(int(graph.subgraph.outputs[0]))
    if len(shape) == ROWS_DIMS and shape[0] == 1:
        return OutputLayout(shape[1:], channels_last)
    sides = shape[1:3] if channels_last else shape[2:4]
    is_map = len(shape) == MAP_DIMS and shape[0] == 1 and max(sides) > 1
    return OutputLayout(shape[1:] if is_map else None, channels_last)


def _layout(path: Path, shape: tuple[int, ...]) -> tuple[bool, tuple[int, int, int]]:
    """Whether an input of `shape` is NHWC, and its (channels, height, width)."""
    if len(shape) == 4 and shape[0] == 1 and shape[3] in IMAGE_CHANNELS:
        return True, (shape[3], shape[1], shape[2])
    if len(shape) == 4 and shape[0] == 1 and shape[1] in IMAGE_CHANNELS:
        return False, (shape[1], shape[2], shape[3])
    channels = " or ".join(map(str, IMAGE_CHANNELS))
    raise UserError(f"{path}: takes {list(shape)}, which is not one image of {channels} channels")
