"""Runs a `.tflite` file on LiteRT here, whatever layout it has inside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.errors import UserError
from converters.facts import InputSpec
from converters.litert.apart import InterpreterApart
from converters.litert.graph import DamagedFileError, Graph, read
from converters.litert.interpreter import Interpreter, Refused
from converters.litert.lowering import MAP_DIMS
from converters.litert.metadata import input_spec, told_shape

IMAGE_CHANNELS = (1, 3)
ROWS_DIMS = 3


@dataclass(frozen=True)
class OutputLayout:
    """How a file gives what it gives.

    Attributes:
        name: of the tensor.
        size: how many values it declares for an image.
        shape: of what it gives for an image, where that is more than values: a map as the file has it, three
            sizes, or (boxes, values); None where it gives values.
        channels_last: whether a map is (height, width, classes).
    """

    name: str
    size: int
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
        outputs: names of what it gives: one for most files, "scores" and "features" for the first half of a
            model with an early exit.
    """

    def __init__(
        self,
        path: Path,
        interpreter: Interpreter | InterpreterApart,
        spec: InputSpec,
        layouts: Sequence[OutputLayout],
    ) -> None:
        self.input = spec
        self.outputs = tuple(layout.name for layout in layouts)
        self._path = path
        self._interpreter = interpreter
        self._layouts = layouts

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Run images one by one through a file that gives one tensor.

        Args:
            images: (n, channels, height, width) float32, in the range `input` says.

        Returns:
            (n, classes) float32; of a file that gives maps (n, classes, height, width), of a detector's rows
            (n, boxes, values).

        Raises:
            UserError: the images are of another shape, LiteRT fails on the file, or it gives several
                tensors.
        """
        if len(self.outputs) != 1:
            raise UserError(
                f"{self._path}: gives {', '.join(self.outputs)}: `predict_all` returns them by name"
            )
        return self._run(images)[0]

    def predict_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run images one by one.

        Args:
            images: as for `predict`; of a file that takes a map, (n, channels, height, width) of that.

        Returns:
            Each output by name, each as `predict` gives it.

        Raises:
            UserError: the images are of another shape, or LiteRT fails on the file.
        """
        return dict(zip(self.outputs, self._run(images), strict=True))

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.input.shape:
            wanted = ", ".join(map(str, self.input.shape))
            raise UserError(f"{self._path}: takes images of (n, {wanted}), got {images.shape}")
        laid_out = images.transpose(0, 2, 3, 1) if self._layouts[0].channels_last else images
        try:
            values = self._interpreter.run(np.ascontiguousarray(laid_out, np.float32))
        except Refused as reason:
            raise DamagedFileError(self._path, str(reason)) from None
        try:
            return split_outputs(values, self._layouts)
        except ValueError as reason:
            raise DamagedFileError(self._path, str(reason)) from None


def load(path: Path | str, *, threads: int | None = None, apart: bool = True) -> LitertModel:
    """Load a file onto LiteRT's interpreter and run one black image, to know that it runs.

    Args:
        path: the `.tflite` file.
        threads: for the runtime to use; its own choice where None.
        apart: in a process of its own, which a file that makes no sense can crash without harm to this one.

    Raises:
        UserError: it is not a `.tflite` that holds together, LiteRT refuses it or crashes on it, or it takes
            something else than one image, or one map if the file says so.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    graph = read(content, str(path))
    spec, channels_last = taken(graph, path)
    try:
        interpreter = InterpreterApart(content, threads, graph) if apart else Interpreter(content, threads)
    except Refused as reason:
        raise DamagedFileError(path, str(reason)) from None
    model = LitertModel(path, interpreter, spec, output_layouts(graph, channels_last))
    model.predict_all(np.zeros((1, *spec.shape), np.float32))
    return model


def image_input(graph: Graph, path: Path) -> tuple[InputSpec, bool]:
    """What a file expects, and whether it has its image channels last (NHWC) inside.

    Raises:
        UserError: it takes or gives something else than one image and one tensor.
    """
    outputs = graph.subgraph.outputs
    if outputs is None or len(outputs) != 1:
        raise UserError(f"{path}: must take one image and give one tensor")
    return taken(graph, path)


def taken(graph: Graph, path: Path) -> tuple[InputSpec, bool]:
    """The same of a file that may give several tensors, or take a map if it says so.

    Raises:
        UserError: it takes something else, or gives nothing.
    """
    inputs, outputs = graph.subgraph.inputs, graph.subgraph.outputs
    if inputs is None or outputs is None or len(inputs) != 1 or not len(outputs):
        raise UserError(f"{path}: must take one image and give one tensor")
    channels_last, shape = _layout(path, graph.shape(int(inputs[0])), told_shape(graph))
    return input_spec(graph, shape), channels_last


def output_layouts(graph: Graph, channels_last: bool) -> tuple[OutputLayout, ...]:
    """How a file gives each tensor: a map in the layout of what it takes, rows of boxes, or values."""
    return tuple(_output_layout(graph, int(tensor), channels_last) for tensor in graph.subgraph.outputs)


def _output_layout(graph: Graph, tensor: int, channels_last: bool) -> OutputLayout:
    shape, name = graph.shape(tensor), graph.name(tensor)
    size = math.prod(shape)
    if len(shape) == ROWS_DIMS and shape[0] == 1:
        return OutputLayout(name, size, shape[1:], channels_last)
    sides = shape[1:3] if channels_last else shape[2:4]
    is_map = len(shape) == MAP_DIMS and shape[0] == 1 and max(sides) > 1
    return OutputLayout(name, size, shape[1:] if is_map else None, channels_last)


def split_outputs(values: np.ndarray, layouts: Sequence[OutputLayout]) -> list[np.ndarray]:
    """All values of a file, (n, ...), as the tensors it gives; see `OutputLayout.of`.

    Raises:
        ValueError: there are several, and another number of values than they declare.
    """
    if len(layouts) == 1:
        return [layouts[0].of(values)]
    sizes = [layout.size for layout in layouts]
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    if flat.shape[1] != sum(sizes):
        raise ValueError(f"it gives {flat.shape[1]} values, and declares {sum(sizes)}")
    parts = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
    return [layout.of(part) for layout, part in zip(layouts, parts, strict=True)]


def _layout(
    path: Path, shape: tuple[int, ...], told: tuple[int, int, int] | None
) -> tuple[bool, tuple[int, int, int]]:
    """Whether an input of `shape` is NHWC, and its (channels, height, width), which the file may have told.

    A map can have any number of channels: only the file itself knows which of its axes they are.
    """
    if told is not None and shape == (1, *told[1:], told[0]):
        return True, told
    if told is not None and shape == (1, *told):
        return False, told
    if len(shape) == 4 and shape[0] == 1 and shape[3] in IMAGE_CHANNELS:
        return True, (shape[3], shape[1], shape[2])
    if len(shape) == 4 and shape[0] == 1 and shape[1] in IMAGE_CHANNELS:
        return False, (shape[1], shape[2], shape[3])
    channels = " or ".join(map(str, IMAGE_CHANNELS))
    raise UserError(f"{path}: takes {list(shape)}, which is not one image of {channels} channels")
