"""What a `.tflite` file says should be computed, in float64, by torch: no line of it is LiteRT's.

The file's own weights, decoded; every op as the format defines it. Where a file keeps values as integers
between the ops, each is rounded to what the file can hold. Held beside what a runtime gives, it leaves only
that runtime's arithmetic; held beside the torch model, only what rounding and conversion did.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from converters.litert.graph import TYPE_NAMES, Graph
from converters.litert.inspection import dequantized


class UnknownOpError(Exception):
    """An op that is not defined here; its text names it."""


@dataclass(frozen=True)
class _Op:
    """An op about to be computed.

    Attributes:
        kind: "CONV_2D".
        options: its table; None where it has none.
        shape: of its first result, as the file declares it.
        type_name: of its first result.
    """

    kind: str
    options: Any
    shape: tuple[int, ...]
    type_name: str

    def option(self, name: str, default: Any) -> Any:
        """An option, by the schema's name; what the schema says where the file leaves it out."""
        value = getattr(self.options, name, None)
        return default if value is None else value


class Reference:
    """A graph made ready to be computed, with the constants that stand in it, or others."""

    def __init__(
        self,
        graph: Graph,
        *,
        vary: Callable[[Graph, int, np.ndarray], np.ndarray] | None = None,
        rounds: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Decode the constants.

        Args:
            graph: of one image in.
            vary: given each floating point constant, as (graph, its tensor, values), returns what to
                compute with.
            rounds: whether values on the way are rounded to what their tensors hold, where that is integers.
            dtype: to compute in: float32 shows what its arithmetic alone does to the result.

        Raises:
            UnknownOpError: it has an op that is not defined here.
        """
        self._graph = graph
        self._vary = vary
        self._rounds = rounds
        self._dtype = dtype
        self._constants: dict[int, dict[int, Tensor]] = {}
        for number in range(len(graph.model.subgraphs)):
            self._check(number)

    def run(self, images: np.ndarray, kept: Callable[[int, Tensor], None] | None = None) -> np.ndarray:
        """Compute images one by one.

        Args:
            images: (n, ...) as the graph's input has them, without its axis of the batch.
            kept: told (tensor, value) of everything that is computed, for the images in turn.

        Returns:
            The output, (n, ...) float64, whatever it was computed in; of several their values, those of the
            first, then those of the next, (n, values).
        """
        given = torch.from_numpy(np.ascontiguousarray(images)).to(self._dtype)
        with torch.inference_mode():
            results = [self._run(0, [image[None]], kept) for image in given]
        if any(len(outputs) > 1 for outputs in results):
            flat = [torch.cat([part.double().flatten() for part in outputs]) for outputs in results]
            return torch.stack(flat).numpy()
        singles = [outputs[0] for outputs in results]
        return torch.cat([single.reshape(1, *single.shape[1:]) for single in singles]).double().numpy()

    def _view(self, number: int) -> Graph:
        """The same model, seen from one of its subgraphs."""
        return _Subgraph(self._graph.model, self._graph.source, number=number)

    def _check(self, number: int) -> None:
        graph = self._view(number)
        for op in graph.ops:
            kind = graph.op_name(op)
            if kind not in OPS and kind not in ("STABLEHLO_COMPOSITE", "DENSIFY", "DEQUANTIZE", "QUANTIZE"):
                raise UnknownOpError(kind)

    def _run(
        self, number: int, inputs: Sequence[Tensor], kept: Callable[[int, Tensor], None] | None = None
    ) -> list[Tensor]:
        graph = self._view(number)
        constants = self._constants.setdefault(number, {})
        values: dict[int, Tensor] = dict(zip(map(int, graph.subgraph.inputs), inputs, strict=True))

        def find(tensor: int) -> Tensor | None:
            if tensor < 0:
                return None
            if tensor in values:
                return values[tensor]
            if tensor not in constants:
                constants[tensor] = self._constant(graph, tensor)
            return constants[tensor]

        for op in graph.ops:
            results = self._compute(graph, op, [find(int(tensor)) for tensor in op.inputs])
            for tensor, value in zip(map(int, op.outputs), results, strict=True):
                value = value.to(self._dtype) if value.is_floating_point() else value
                values[tensor] = _held(graph, tensor, value) if self._rounds else value
                if kept is not None:
                    kept(tensor, values[tensor])
        found = [find(int(tensor)) for tensor in graph.subgraph.outputs]
        return [value for value in found if value is not None]

    def _constant(self, graph: Graph, tensor: int) -> Tensor:
        values = dequantized(graph, tensor)
        if values.dtype.kind == "f":
            if self._vary is not None:
                values = self._vary(graph, tensor, values)
            return torch.tensor(values).to(self._dtype)
        return torch.tensor(values)

    def _compute(self, graph: Graph, op: Any, inputs: list[Tensor | None]) -> Sequence[Tensor]:
        kind = graph.op_name(op)
        if kind in ("DENSIFY", "DEQUANTIZE", "QUANTIZE"):  # Decoded already; rounded by `_held`.
            (value,) = inputs
            return [value if value is not None else torch.zeros(0)]
        if kind == "STABLEHLO_COMPOSITE":
            inside = int(op.builtinOptions2.decompositionSubgraphIndex)
            return self._run(inside, [value for value in inputs if value is not None])
        first = int(op.outputs[0])
        described = _Op(kind, op.builtinOptions, graph.shape(first), graph.type_name(first))
        result = OPS[kind](described, *inputs)
        return list(result) if isinstance(result, (tuple, list)) else [result]


class _Subgraph(Graph):
    """A graph that looks at another subgraph than the first."""

    def __init__(self, model: Any, source: str, *, number: int) -> None:
        super().__init__(model, source)
        self._number = number

    @property
    def subgraph(self) -> Any:
        """The one of that number."""
        return self.model.subgraphs[self._number]


def _held(graph: Graph, tensor: int, value: Tensor) -> Tensor:
    """A value as its tensor can hold it: rounded to its steps where it is quantised."""
    quantization = graph.tensors[tensor].quantization
    kind = TYPE_NAMES.get(graph.tensors[tensor].type, "")
    if kind not in ("INT8", "INT16", "UINT8") or quantization is None or quantization.scale is None:
        return value
    if len(quantization.scale) != 1 or not value.is_floating_point():
        return value
    scale = float(quantization.scale[0])
    offset = 0 if quantization.zeroPoint is None else int(quantization.zeroPoint[0])
    limits = np.iinfo(kind.lower())
    steps = torch.clamp(torch.round(value / scale) + offset, limits.min, limits.max)
    return (steps - offset) * scale


# --- Ops ---------------------------------------------------------------------------------------------------

ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    schema.ActivationFunctionType.NONE: lambda x: x,
    schema.ActivationFunctionType.RELU: torch.relu,
    schema.ActivationFunctionType.RELU_N1_TO_1: lambda x: x.clamp(-1, 1),
    schema.ActivationFunctionType.RELU6: lambda x: x.clamp(0, 6),
    schema.ActivationFunctionType.TANH: torch.tanh,
}


def _activated(op: _Op, x: Tensor) -> Tensor:
    return ACTIVATIONS[op.option("fusedActivationFunction", 0)](x)


def _ints(values: Tensor | None) -> list[int]:
    return [] if values is None else [int(v) for v in values.reshape(-1)]


def _padded(op: _Op, x: Tensor, taps: Sequence[int], steps: Sequence[int], value: float) -> Tensor:
    """NHWC -> NCHW, padded as SAME does."""
    x = x.permute(0, 3, 1, 2)
    if op.option("padding", schema.Padding.SAME) == schema.Padding.VALID:
        return x
    amounts: list[int] = []
    for size, tap, step in zip(reversed(x.shape[2:]), reversed(taps), reversed(steps), strict=True):
        total = max((math.ceil(size / step) - 1) * step + tap - size, 0)
        amounts += [total // 2, total - total // 2]
    return F.pad(x, amounts, value=value)


def _strides(op: _Op) -> list[int]:
    return [op.option("strideH", 1), op.option("strideW", 1)]


def _conv(op: _Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dilation = [op.option("dilationHFactor", 1), op.option("dilationWFactor", 1)]
    weight = weight.permute(0, 3, 1, 2)
    taps = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    groups = x.shape[3] // weight.shape[1]
    x = _padded(op, x, taps, _strides(op), 0.0)
    return _activated(op, F.conv2d(x, weight, bias, _strides(op), 0, dilation, groups).permute(0, 2, 3, 1))


def _depthwise(op: _Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    dilation = [op.option("dilationHFactor", 1), op.option("dilationWFactor", 1)]
    taps = [(k - 1) * d + 1 for k, d in zip(weight.shape[1:3], dilation, strict=True)]
    times = weight.shape[3] // x.shape[3]
    x = _padded(op, x, taps, _strides(op), 0.0).permute(0, 2, 3, 1)
    x = x.repeat_interleave(times, 3) if times > 1 else x.contiguous()
    outs = [
        (size - tap) // step + 1 for size, tap, step in zip(x.shape[1:3], taps, _strides(op), strict=True)
    ]
    total = torch.zeros(x.shape[0], *outs, x.shape[3], dtype=x.dtype)
    # Tap by tap: torch's own has no quick way for float64.
    for row, column in itertools.product(range(weight.shape[1]), range(weight.shape[2])):
        rows, columns = (
            slice(place * d, place * d + (out - 1) * step + 1, step)
            for place, d, out, step in zip((row, column), dilation, outs, _strides(op), strict=True)
        )
        total += x[:, rows, columns] * weight[0, row, column]
    return _activated(op, total if bias is None else total + bias)


def _transpose_conv(op: _Op, size: Tensor, weight: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    weight, x = weight.permute(3, 0, 1, 2), x.permute(0, 3, 1, 2)
    full = F.conv_transpose2d(x, weight, None, _strides(op))
    height, width = _ints(size)[1:3]
    crops = [0, 0]
    if op.option("padding", schema.Padding.SAME) == schema.Padding.SAME:
        crops = [
            max((before - 1) * step + tap - out, 0) // 2
            for before, step, tap, out in zip(
                x.shape[2:], _strides(op), weight.shape[2:], (height, width), strict=True
            )
        ]
    full = F.pad(
        full, (0, max(width + crops[1] - full.shape[3], 0), 0, max(height + crops[0] - full.shape[2], 0))
    )
    cut = full[:, :, crops[0] : crops[0] + height, crops[1] : crops[1] + width].permute(0, 2, 3, 1)
    return _activated(op, cut if bias is None else cut + bias)


def _fully_connected(op: _Op, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    bias = None if bias is None else bias.flatten()  # It may have four dimensions, as where others share it.
    x = x if op.option("keepNumDims", False) else x.reshape(-1, weight.shape[1])
    return _activated(op, F.linear(x, weight, bias))


def _pool_size(op: _Op) -> list[int]:
    return [op.option("filterHeight", 1), op.option("filterWidth", 1)]


def _average(op: _Op, x: Tensor) -> Tensor:
    kernel = _pool_size(op)
    padded = _padded(op, x, kernel, _strides(op), 0.0)
    counted = _padded(op, torch.ones_like(x[..., :1]), kernel, _strides(op), 0.0)
    total, count = (F.avg_pool2d(v, kernel, _strides(op), divisor_override=1) for v in (padded, counted))
    return _activated(op, (total / count).permute(0, 2, 3, 1))


def _largest(op: _Op, x: Tensor) -> Tensor:
    kernel = _pool_size(op)
    x = _padded(op, x, kernel, _strides(op), -math.inf)
    return _activated(op, F.max_pool2d(x, kernel, _strides(op)).permute(0, 2, 3, 1))


def _resize(op: _Op, x: Tensor, size: Tensor, nearest: bool) -> Tensor:
    """As the format defines it, each axis a matrix product or a choice of rows."""
    corners, half = op.option("alignCorners", False), op.option("halfPixelCenters", False)
    for axis, out in zip((1, 2), _ints(size), strict=True):
        before = x.shape[axis]
        step = (before - 1) / (out - 1) if corners and out > 1 else before / out
        shift = 0.5 if half else 0.0
        places = (torch.arange(out, dtype=torch.float64) + shift) * step
        if nearest:
            rounded = torch.floor(places + 0.5) if corners else torch.floor(places)
            x = x.index_select(axis, rounded.long().clamp(0, before - 1))
            continue
        places = (places - shift).clamp(min=0)
        low = places.floor().long().clamp(max=before - 1)
        high = (low + 1).clamp(max=before - 1)
        shape = [-1 if d == axis else 1 for d in range(4)]
        share = (places - low).to(x.dtype).reshape(shape)
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


def _reduced(function: Callable[..., Any]) -> Callable[..., Tensor]:
    def reduce(op: _Op, x: Tensor, axes: Tensor) -> Tensor:
        for axis in sorted({axis % x.ndim for axis in _ints(axes)}, reverse=True):
            found = function(x, axis, keepdim=bool(op.option("keepDims", False)))
            x = found if isinstance(found, Tensor) else found[0]
        return x

    return reduce


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda op, a, b: _activated(op, function(a, b))


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda op, x: function(x)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _cast(op: _Op, x: Tensor) -> Tensor:
    types = {"BOOL": torch.bool, "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32,
             "INT64": torch.int64, "UINT8": torch.uint8}  # fmt: skip
    return x.to(types.get(op.type_name, torch.float64))


def _strided_slice(op: _Op, x: Tensor, begin: Tensor, end: Tensor, strides: Tensor) -> Tensor:
    def masked(name: str, axis: int) -> bool:
        return bool(op.option(name, 0) >> axis & 1)

    if op.option("ellipsisMask", 0) or op.option("newAxisMask", 0):
        raise UnknownOpError("STRIDED_SLICE with an ellipsis or new axes")
    dropped = []
    for axis, (first, last, step) in enumerate(zip(*map(_ints, (begin, end, strides)), strict=True)):
        size = x.shape[axis]
        if masked("shrinkAxisMask", axis):
            places = [first % size]
            dropped.append(axis)
        else:
            chosen = slice(
                None if masked("beginMask", axis) else first, None if masked("endMask", axis) else last, step
            )
            places = list(range(*chosen.indices(size)))
        x = x.index_select(axis, torch.tensor(places, dtype=torch.long))
    for axis in reversed(dropped):
        x = x.squeeze(axis)
    return x


def _slice(op: _Op, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    return x[
        tuple(slice(b, None if s == -1 else b + s) for b, s in zip(_ints(begin), _ints(size), strict=True))
    ]


def _pad(op: _Op, x: Tensor, amounts: Tensor, value: Tensor | None = None) -> Tensor:
    flat = [int(v) for pair in reversed(amounts.tolist()) for v in pair]
    return F.pad(x, flat, value=0.0 if value is None else float(value))


def _mirror_pad(op: _Op, x: Tensor, amounts: Tensor) -> Tensor:
    inner = 1 if op.option("mode", 0) == schema.MirrorPadMode.REFLECT else 0
    for axis, (before, after) in enumerate(amounts.tolist()):
        size = x.shape[axis]
        places = [before - 1 + inner - i for i in range(before)] + list(range(size))
        places += [size - 1 - inner - i for i in range(after)]
        x = x.index_select(axis, torch.tensor(places))
    return x


def _gather(op: _Op, x: Tensor, places: Tensor) -> Tensor:
    if op.option("batchDims", 0):
        raise UnknownOpError("GATHER with axes of a batch")
    axis = op.option("axis", 0) % x.ndim
    found = x.index_select(axis, places.reshape(-1).long())
    return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


def _gather_nd(op: _Op, x: Tensor, places: Tensor) -> Tensor:
    found: Tensor = x[tuple(places.long().unbind(-1))]
    return found


def _split(op: _Op, axis: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(int(op.option("numSplits", 1)), int(axis))


def _split_v(op: _Op, x: Tensor, sizes: Tensor, axis: Tensor) -> tuple[Tensor, ...]:
    parts, place = _ints(sizes), int(axis)
    if -1 in parts:
        parts[parts.index(-1)] = x.shape[place] - sum(parts) - 1
    return torch.split(x, parts, place)


def _batch_matmul(op: _Op, a: Tensor, b: Tensor) -> Tensor:
    return (a.mT if op.option("adjX", False) else a) @ (b.mT if op.option("adjY", False) else b)


def _concatenate(op: _Op, *parts: Tensor) -> Tensor:
    return _activated(op, torch.cat(list(parts), op.option("axis", 0)))


def _space(op: _Op, x: Tensor, deeper: bool) -> Tensor:
    side = op.option("blockSize", 1)
    n, h, w, c = x.shape
    if deeper:
        x = x.reshape(n, h // side, side, w // side, side, c).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n, h // side, w // side, c * side * side)
    x = x.reshape(n, h, w, side, side, c // side**2).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * side, w * side, c // side**2)


def _topk(op: _Op, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    values, places = torch.sort(x, dim=-1, descending=True, stable=True)
    return values[..., : int(k)], places[..., : int(k)].int()


def _cumsum(op: _Op, x: Tensor, axis: Tensor) -> Tensor:
    place = int(axis)
    x = x.flip(place) if op.option("reverse", False) else x
    total = x.cumsum(place) - (x if op.option("exclusive", False) else 0)
    return total.flip(place) if op.option("reverse", False) else total


def _one_hot(op: _Op, places: Tensor, depth: Tensor, on: Tensor, off: Tensor) -> Tensor:
    hits = F.one_hot(places.long(), int(depth)).bool()
    result = torch.where(hits, on, off)
    axis = op.option("axis", -1)
    return result if axis == -1 else result.movedim(-1, axis)


def _prelu(op: _Op, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _dynamic_update_slice(op: _Op, x: Tensor, update: Tensor, start: Tensor) -> Tensor:
    result = x.clone()
    places = [
        min(max(first, 0), size - part)
        for first, size, part in zip(_ints(start), x.shape, update.shape, strict=True)
    ]
    result[tuple(slice(p, p + s) for p, s in zip(places, update.shape, strict=True))] = update
    return result


def _range(op: _Op, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _l2(op: _Op, x: Tensor) -> Tensor:
    return _activated(op, x / x.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-6))


OPS: Mapping[str, Callable[..., Any]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "AVERAGE_POOL_2D": _average,
    "MAX_POOL_2D": _largest,
    "RESIZE_BILINEAR": lambda op, x, size: _resize(op, x, size, nearest=False),
    "RESIZE_NEAREST_NEIGHBOR": lambda op, x, size: _resize(op, x, size, nearest=True),
    "ADD": _binary(torch.add),
    "SUB": _binary(torch.sub),
    "MUL": _binary(torch.mul),
    "DIV": _binary(_divided),
    "POW": _binary(torch.pow),
    "MAXIMUM": _binary(torch.maximum),
    "MINIMUM": _binary(torch.minimum),
    "SQUARED_DIFFERENCE": _binary(lambda a, b: (a - b) ** 2),
    "FLOOR_DIV": _binary(torch.floor_divide),
    "FLOOR_MOD": _binary(torch.remainder),
    "EQUAL": _binary(torch.eq),
    "NOT_EQUAL": _binary(torch.ne),
    "LESS": _binary(torch.lt),
    "LESS_EQUAL": _binary(torch.le),
    "GREATER": _binary(torch.gt),
    "GREATER_EQUAL": _binary(torch.ge),
    "LOGICAL_AND": _binary(torch.logical_and),
    "LOGICAL_OR": _binary(torch.logical_or),
    "LOGICAL_NOT": _unary(torch.logical_not),
    "ABS": _unary(torch.abs),
    "NEG": _unary(torch.neg),
    "SIGN": _unary(torch.sign),
    "EXP": _unary(torch.exp),
    "LOG": _unary(torch.log),
    "SQRT": _unary(torch.sqrt),
    "RSQRT": _unary(torch.rsqrt),
    "SQUARE": _unary(torch.square),
    "SIN": _unary(torch.sin),
    "COS": _unary(torch.cos),
    "FLOOR": _unary(torch.floor),
    "CEIL": _unary(torch.ceil),
    "ROUND": _unary(torch.round),
    "TANH": _unary(torch.tanh),
    "LOGISTIC": _unary(torch.sigmoid),
    "RELU": _unary(torch.relu),
    "RELU6": _unary(lambda x: x.clamp(0, 6)),
    "RELU_N1_TO_1": _unary(lambda x: x.clamp(-1, 1)),
    "RELU_0_TO_1": _unary(lambda x: x.clamp(0, 1)),
    "HARD_SWISH": _unary(F.hardswish),
    "ELU": _unary(F.elu),
    "LEAKY_RELU": lambda op, x: F.leaky_relu(x, op.option("alpha", 0.0)),
    "GELU": lambda op, x: F.gelu(x, approximate="tanh" if op.option("approximate", False) else "none"),
    "PRELU": _prelu,
    "SOFTMAX": lambda op, x: torch.softmax(x * op.option("beta", 1.0), -1),
    "LOG_SOFTMAX": lambda op, x: torch.log_softmax(x, -1),
    "L2_NORMALIZATION": _l2,
    "MEAN": _reduced(torch.mean),
    "SUM": _reduced(torch.sum),
    "REDUCE_MAX": _reduced(torch.amax),
    "REDUCE_MIN": _reduced(torch.amin),
    "REDUCE_PROD": _reduced(torch.prod),
    "REDUCE_ANY": _reduced(torch.any),
    "REDUCE_ALL": _reduced(torch.all),
    "ARG_MAX": lambda op, x, axis: x.argmax(int(axis)),
    "ARG_MIN": lambda op, x, axis: x.argmin(int(axis)),
    "CAST": _cast,
    "RESHAPE": lambda op, x, *shape: x.reshape(op.shape),
    "SQUEEZE": lambda op, x: x.reshape(op.shape),
    "EXPAND_DIMS": lambda op, x, axis: x.reshape(op.shape),
    "TRANSPOSE": lambda op, x, order: x.permute(_ints(order)),
    "CONCATENATION": _concatenate,
    "PACK": lambda op, *parts: torch.stack(list(parts), op.option("axis", 0)),
    "UNPACK": lambda op, x: x.unbind(op.option("axis", 0)),
    "SPLIT": _split,
    "SPLIT_V": _split_v,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _mirror_pad,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "SELECT": lambda op, where, a, b: torch.where(where, a, b),
    "SELECT_V2": lambda op, where, a, b: torch.where(where, a, b),
    "DEPTH_TO_SPACE": lambda op, x: _space(op, x, deeper=False),
    "SPACE_TO_DEPTH": lambda op, x: _space(op, x, deeper=True),
    "TILE": lambda op, x, times: x.repeat(_ints(times)),
    "BROADCAST_TO": lambda op, x, shape: x.expand(_ints(shape)),
    "FILL": lambda op, shape, value: value.expand(_ints(shape)),
    "ZEROS_LIKE": _unary(torch.zeros_like),
    "RANGE": _range,
    "SHAPE": lambda op, x: torch.tensor(x.shape, dtype=torch.int32),
    "CUMSUM": _cumsum,
    "TOPK_V2": _topk,
    "ONE_HOT": _one_hot,
    "REVERSE_V2": lambda op, x, axes: x.flip(_ints(axes)),
    "DYNAMIC_UPDATE_SLICE": _dynamic_update_slice,
}
