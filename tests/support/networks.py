"""Networks of LiteRT, small enough to build by hand, so that each test can break exactly one thing."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert import storage
from converters.litert.graph import Graph
from converters.targets import Storage


class Network:
    """A flatbuffer built op by op; each method takes and returns tensor numbers."""

    def __init__(self, size: int = 16, channels: int = 3, seed: int = 0) -> None:
        model = schema.ModelT()
        model.version = 3
        model.operatorCodes = []
        model.buffers = [schema.BufferT()]
        subgraph = schema.SubGraphT()
        subgraph.tensors, subgraph.operators = [], []
        model.subgraphs = [subgraph]
        self.graph = Graph(model)
        self.random = np.random.default_rng(seed)
        self.image = self.graph.add_tensor("image", (1, size, size, channels), schema.TensorType.FLOAT32)

    def conv(
        self,
        x: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        same: bool = False,
        zeros: float = 0.8,
        **options: Any,
    ) -> int:
        """Dense convolution; `zeros` of a 1x1 kernel's weights, in blocks of four inputs."""
        in_ = self.graph.shape(x)[3]
        weight = self.weight((out, kernel, kernel, in_), zeros if kernel == 1 else 0.0)
        table = schema.Conv2DOptionsT()
        return self._spatial("CONV_2D", "Conv2DOptions", table, x, weight, out, kernel, stride, same, options)

    def depthwise(self, x: int, kernel: int = 3, stride: int = 1, same: bool = True, **options: Any) -> int:
        channels = self.graph.shape(x)[3]
        table = schema.DepthwiseConv2DOptionsT()
        table.depthMultiplier = 1
        weight = self.weight((1, kernel, kernel, channels), 0.0)
        return self._spatial(
            "DEPTHWISE_CONV_2D",
            "DepthwiseConv2DOptions",
            table,
            x,
            weight,
            channels,
            kernel,
            stride,
            same,
            options,
        )

    def pad(self, x: int, amounts: tuple[int, int, int, int] = (1, 1, 1, 1)) -> int:
        """(top, bottom, left, right)."""
        batch, height, width, channels = self.graph.shape(x)
        top, bottom, left, right = amounts
        table = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        shape = (batch, height + top + bottom, width + left + right, channels)
        return self.op("PAD", [x, self.graph.add_constant("amounts", table)], shape, "PadOptions")

    def stem(self, out: int = 16) -> int:
        return self.op("HARD_SWISH", [self.conv(self.pad(self.image), out, kernel=3, stride=2)], None)

    def mean(self, x: int, keep: bool = True, axes: tuple[int, ...] = (1, 2)) -> int:
        shape = tuple(1 if d in axes else s for d, s in enumerate(self.graph.shape(x)))
        if not keep:
            shape = tuple(s for d, s in enumerate(self.graph.shape(x)) if d not in axes)
        constant = self.graph.add_constant("axes", np.array(axes, np.int32))
        return self.op("MEAN", [x, constant], shape, "ReducerOptions", keepDims=keep)

    def flatten(self, x: int) -> int:
        shape = np.array([1, int(np.prod(self.graph.shape(x)))], np.int32)
        return self.op(
            "RESHAPE", [x, self.graph.add_constant("shape", shape)], tuple(shape), "ReshapeOptions"
        )

    def linear(self, x: int, out: int, zeros: float = 0.0) -> int:
        weight = self.weight((out, self.graph.shape(x)[-1]), zeros)
        bias = np.zeros(out, np.float32)
        inputs = [x, self.graph.add_constant("w", weight), self.graph.add_constant("b", bias)]
        return self.op("FULLY_CONNECTED", inputs, (1, out), "FullyConnectedOptions")

    def constant(self, values: Any) -> int:
        return self.graph.add_constant("c", np.asarray(values, np.float32))

    def binary(self, kind: str, a: int, b: int) -> int:
        shape = max(self.graph.shape(a), self.graph.shape(b), key=lambda s: (len(s), np.prod(s)))
        return self.op(kind, [a, b], shape, f"{kind.title()}Options")

    def unary(self, kind: str, x: int) -> int:
        return self.op(kind, [x], None)

    def op(
        self,
        kind: str,
        inputs: list[int],
        shape: tuple[int, ...] | None,
        options: str | None = None,
        **values: Any,
    ) -> int:
        shape = self.graph.shape(inputs[0]) if shape is None else shape
        output = self.graph.add_tensor(f"t{len(self.graph.tensors)}", shape, schema.TensorType.FLOAT32)
        table = None
        if options is not None:
            table = (options, getattr(schema, f"{options}T")())
            for key, value in values.items():
                setattr(table[1], key, value)
        self.graph.ops.append(self.graph.make_op(kind, inputs, [output], options=table))
        return output

    def weight(self, shape: tuple[int, ...], zeros: float) -> np.ndarray:
        values = (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        block = 4 if shape[-1] % 4 == 0 else 1
        groups = values.reshape(-1, block)
        groups[self.random.permutation(len(groups))[: round(zeros * len(groups))]] = 0
        return values

    def finish(self, output: int, kind: Storage | None = Storage.FLOAT32) -> bytes:
        self.graph.subgraph.inputs = np.array([self.image], np.int32)
        self.graph.subgraph.outputs = np.array([output], np.int32)
        if kind is not None:
            storage.store_weights(self.graph, kind)
        storage.drop_unused(self.graph)
        storage.share_buffers(self.graph)
        return self.graph.to_bytes()

    def _spatial(
        self,
        kind: str,
        options_name: str,
        table: Any,
        x: int,
        weight: np.ndarray,
        out: int,
        kernel: int,
        stride: int,
        same: bool,
        options: dict[str, Any],
    ) -> int:
        batch, height, width, _ = self.graph.shape(x)
        table.padding = schema.Padding.SAME if same else schema.Padding.VALID
        table.strideH = table.strideW = stride
        table.dilationHFactor = table.dilationWFactor = 1
        for key, value in options.items():
            setattr(table, key, value)
        reach = (kernel - 1) * table.dilationHFactor + 1
        sizes = [-(-(n if same else n - reach + 1) // stride) for n in (height, width)]
        bias = (self.random.standard_normal(out) / 10).astype(np.float32)
        inputs = [x, self.graph.add_constant("w", weight), self.graph.add_constant("b", bias)]
        output = self.graph.add_tensor(
            f"t{len(self.graph.tensors)}", (batch, *sizes, out), schema.TensorType.FLOAT32
        )
        self.graph.ops.append(self.graph.make_op(kind, inputs, [output], options=(options_name, table)))
        return output


def eligible(size: int = 16, width: int = 32, zeros: float = 0.8) -> Network:
    """A network the sparse kernels take; its last value waits for a mean as `net.last`."""
    net = Network(size)
    x = net.stem(16)
    x = net.conv(x, width, zeros=zeros)
    x = net.depthwise(net.pad(x), stride=2, same=False)
    gate = net.conv(net.conv(net.mean(x), 8, zeros=zeros), width, zeros=zeros)
    gate = net.binary("MUL", net.unary("RELU6", gate), net.constant(np.full((1, 1, 1, 1), 1 / 6)))
    x = net.binary("MUL", gate, x)
    net.last = net.conv(x, 64, zeros=zeros)  # type: ignore[attr-defined]
    return net
