"""Small random networks as `.tflite` files, written op by op: what a latency model is fitted on.

Each starts with the image convolution and ends in the mean that the sparse kernels ask for, and has in
between what mobile networks are made of, in random order and sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert.graph import Graph
from converters.litert.storage import drop_unused, store_weights
from converters.targets import Storage

ACTIVATIONS = (
    schema.ActivationFunctionType.NONE,
    schema.ActivationFunctionType.RELU,
    schema.ActivationFunctionType.RELU6,
)
CLASSES = (10, 100, 1000)
MIRRORED = 0.2  # Share of networks that mirror their image (`converters.litert.mirror`).
ZEROS = (0.6, 0.95)  # Of a layer; all together must pass the two thirds of the sparse kernels.
UNARY = ("HARD_SWISH", "LOGISTIC", "RELU", "RELU6")
STEPS = ("conv1x1", "depthwise", "depthwise", "residual", "unary", "gate", "multiply", "conv")


@dataclass(frozen=True)
class Sizes:
    """Between what sizes are chosen.

    Attributes:
        image_sides_px: of the square image.
        first_widths: channels of the first convolution.
        most_width: channels of any other layer.
        most_macs: multiplications of any layer.
    """

    image_sides_px: tuple[int, ...]
    first_widths: tuple[int, ...]
    most_width: int
    most_macs: float


# An emulated run of such a network takes a tenth of a second.
SMALL = Sizes((32, 64, 96, 128, 192, 224), (8, 16, 24, 32), 640, 1e7)
# Weights that no cache holds, as whole models have: an emulator does not mind, a processor does.
WIDE = Sizes((32, 64, 96), (32, 64, 128), 1280, 1e8)


@dataclass(frozen=True)
class DenseAndSparse:
    """One network twice: its file with dense weights, and with zeros in every 1x1 convolution."""

    dense: bytes
    sparse: bytes


def pair(seed: int, *, convolutions: bool = False, sizes: Sizes = SMALL) -> DenseAndSparse:
    """A random network of 3 to 8 steps.

    Args:
        seed: the same gives the same bytes.
        convolutions: whether there are also 3x3 convolutions over all channels, which no sparse kernel takes.
        sizes: of its image and layers.
    """
    settings = (seed, convolutions, sizes)
    return DenseAndSparse(_network(0.0, *settings), _network(1.0, *settings))


def _network(zeros: float, seed: int, convolutions: bool, sizes: Sizes) -> bytes:
    """The same layers for any `zeros`: shapes and zeros have generators of their own."""
    random = np.random.default_rng(seed)
    network = Network(int(random.choice(sizes.image_sides_px)), seed, zeros)
    if random.random() < MIRRORED:
        network.mirror()
    network.first(int(random.choice(sizes.first_widths)), int(random.choice(ACTIVATIONS)))
    for _ in range(int(random.integers(3, 9))):
        step = str(random.choice(STEPS if convolutions else STEPS[:-1]))
        _add(network, step, random, sizes)
    network.mean()
    network.linear(int(random.choice(CLASSES)))
    return network.to_bytes()


def _add(network: Network, step: str, random: np.random.Generator, sizes: Sizes) -> None:
    activation = int(random.choice(ACTIVATIONS))
    affordable = sizes.most_macs / (network.side_px**2 * network.width)
    eights = max(int(min(affordable, sizes.most_width)) // 8, 1)
    width = 8 * int(random.integers(1, 1 + eights))
    if step == "conv1x1":
        network.conv1x1(width, activation)
    elif step == "conv":
        network.conv(max(width // 72 * 8, 8), int(random.choice((1, 2))), activation)
    elif step == "depthwise":
        side = int(random.choice((3, 5)))
        stride = int(random.choice((1, 2))) if network.side_px > side else 1
        network.depthwise(side, stride, activation)
    elif step == "residual":
        network.residual()
    elif step == "gate":
        network.gate(max(network.width // 32 * 8, 8))
    elif step == "multiply":
        network.multiply()
    else:
        network.unary(str(random.choice(UNARY)))


class Network:
    """A network that grows at its end; every method adds what its name says.

    Attributes:
        side_px: of the map at the end.
        width: its channels.
    """

    def __init__(self, image_side_px: int, seed: int, zeros: float) -> None:
        model = schema.ModelT()
        model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
        model.subgraphs = [schema.SubGraphT()]
        model.subgraphs[0].tensors, model.subgraphs[0].operators = [], []
        self._graph = Graph(model)
        self._random = np.random.default_rng([seed, 1])
        self._zeros = zeros
        self.side_px, self.width = image_side_px, 3
        self._end = self._map("image")
        self._graph.subgraph.inputs = np.array([self._end], np.int32)

    def mirror(self) -> None:
        """The map turned around in both directions."""
        axes = self._graph.add_constant("axes", np.array([1, 2], np.int32))
        self._end = self._op(
            "REVERSE_V2", [self._end, axes], ("ReverseV2Options", schema.ReverseV2OptionsT())
        )

    def first(self, width: int, activation: int) -> None:
        """The 3x3 convolution of the image at stride 2."""
        self._convolve((width, 3, 3, 3), 2, activation)

    def conv(self, width: int, stride: int, activation: int) -> None:
        """A 3x3 convolution."""
        self._convolve((width, 3, 3, self.width), stride, activation)

    def conv1x1(self, width: int, activation: int) -> None:
        """A 1x1 convolution, with zeros where the network has any."""
        weight = self._values((width, 1, 1, self.width))
        zeros = self._random.uniform(*ZEROS)
        keep = self._random.random((width, 1, 1, self.width)) >= zeros
        self._convolve(weight.shape, 1, activation, weight * keep if self._zeros else weight)

    def depthwise(self, side: int, stride: int, activation: int) -> None:
        """A convolution of each channel by itself."""
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
        weight = self._values((1, side, side, self.width))
        self._spatial("DEPTHWISE_CONV_2D", options, weight, self.width, stride, activation)

    def residual(self) -> None:
        """A 1x1 convolution to as many channels, added to what it read."""
        before = self._end
        self.conv1x1(self.width, ACTIVATIONS[0])
        self._end = self._op("ADD", [before, self._end], ("AddOptions", schema.AddOptionsT()))

    def multiply(self) -> None:
        """The map times its own sigmoid."""
        before = self._end
        self.unary("LOGISTIC")
        self._end = self._op("MUL", [before, self._end], ("MulOptions", schema.MulOptionsT()))

    def gate(self, width: int) -> None:
        """Squeeze and excite."""
        before, side_px, channels = self._end, self.side_px, self.width
        self.mean()
        self.conv1x1(width, ACTIVATIONS[1])
        self.conv1x1(channels, ACTIVATIONS[0])
        self.unary("LOGISTIC")
        gate, self.side_px = self._end, side_px
        self._end = self._op("MUL", [before, gate], ("MulOptions", schema.MulOptionsT()))

    def unary(self, kind: str) -> None:
        """An activation that is an op of its own."""
        self._end = self._op(kind, [self._end])

    def mean(self) -> None:
        """Over height and width, both kept."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        axes = self._graph.add_constant("axes", np.array([1, 2], np.int32))
        self.side_px = 1
        self._end = self._op("MEAN", [self._end, axes], ("ReducerOptions", options))

    def linear(self, classes: int) -> None:
        """Classes of the one pixel that is left."""
        shape = self._graph.add_constant("shape", np.array([1, self.width], np.int32))
        flat = self._graph.add_tensor("flat", (1, self.width), schema.TensorType.FLOAT32)
        options = schema.ReshapeOptionsT()
        options.newShape = np.array([1, self.width], np.int32)
        self._append("RESHAPE", [self._end, shape], flat, ("ReshapeOptions", options))
        weight = self._graph.add_constant("classes", self._values((classes, self.width)))
        bias = self._graph.add_constant("bias", self._values((classes,)))
        self._end = self._graph.add_tensor("answer", (1, classes), schema.TensorType.FLOAT32)
        linear = schema.FullyConnectedOptionsT()
        self._append("FULLY_CONNECTED", [flat, weight, bias], self._end, ("FullyConnectedOptions", linear))

    def to_bytes(self) -> bytes:
        """The file, zeros left out."""
        self._graph.subgraph.outputs = np.array([self._end], np.int32)
        if self._zeros:
            store_weights(self._graph, Storage.FLOAT32)
            drop_unused(self._graph)
        return self._graph.to_bytes()

    def _convolve(
        self, shape: Sequence[int], stride: int, activation: int, weight: np.ndarray | None = None
    ) -> None:
        values = self._values(shape) if weight is None else weight
        self._spatial("CONV_2D", schema.Conv2DOptionsT(), values, shape[0], stride, activation)

    def _spatial(
        self, kind: str, options: Any, weight: np.ndarray, width: int, stride: int, activation: int
    ) -> None:
        """A convolution padded alike on all sides: SAME where that is so, else PAD before VALID."""
        around = weight.shape[1] // 2
        self.side_px, self.width = math.ceil(self.side_px / stride), width
        options.strideH = options.strideW = stride
        options.dilationHFactor = options.dilationWFactor = 1
        options.fusedActivationFunction = activation
        options.padding = schema.Padding.SAME
        if stride > 1 and around:
            self._pad(around)
            options.padding = schema.Padding.VALID
        constants = [
            self._graph.add_constant("weight", weight),
            self._graph.add_constant("bias", self._values((width,))),
        ]
        self._end = self._op(kind, [self._end, *constants], (type(options).__name__[:-1], options))

    def _pad(self, around: int) -> None:
        _, height, width, channels = self._graph.shape(self._end)
        sides = [[0, 0], [around, around], [around, around], [0, 0]]
        amounts = self._graph.add_constant("padding", np.array(sides, np.int32))
        shape = (1, height + 2 * around, width + 2 * around, channels)
        padded = self._graph.add_tensor("padded", shape, schema.TensorType.FLOAT32)
        self._append("PAD", [self._end, amounts], padded, ("PadOptions", schema.PadOptionsT()))
        self._end = padded

    def _op(self, kind: str, inputs: Sequence[int], options: tuple[str, Any] | None = None) -> int:
        output = self._map(kind)
        self._append(kind, inputs, output, options)
        return output

    def _append(self, kind: str, inputs: Sequence[int], output: int, options: tuple[str, Any] | None) -> None:
        self._graph.ops.append(self._graph.make_op(kind, inputs, [output], options=options))

    def _map(self, name: str) -> int:
        shape = (1, self.side_px, self.side_px, self.width)
        return self._graph.add_tensor(f"{name}{len(self._graph.tensors)}", shape, schema.TensorType.FLOAT32)

    def _values(self, shape: Sequence[int]) -> np.ndarray:
        """Such that maps keep their size."""
        spread = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        return self._random.standard_normal(shape).astype(np.float32) * np.float32(spread)
