"""How weights are kept in the file: left out where zero, int8 where asked, each buffer once.

The op still computes in float32. Between the stored tensor and the op stand DENSIFY (undoes the sparse
encoding) and DEQUANTIZE (int8 to float32), which the runtime folds away when it loads the file. float16
values behind DENSIFY are never written: they give zeros or NaN on arm64 and in the browser.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.litert import sparse
from converters.litert.graph import TENSOR_TYPES, WEIGHTED_OPS, Graph, weights
from converters.targets import Storage

# Below this many values scales and an extra op cost more than int8 saves.
MIN_INT8_VALUES = 256
INT8_LIMIT = 127
# The first version of each op's definition that knows what is written here (per-channel scales: 5).
DEQUANTIZE_VERSION = 5


class _Written:
    """A flatbuffer object written once, however many others point to it."""

    _builder: Any = None
    _position: Any = None

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (the schema's name)
        """Write the object, or point to where it was written."""
        if self._builder is not builder:
            self._builder, self._position = builder, self._write(builder)
        return self._position

    def _write(self, builder: Any) -> Any:
        raise NotImplementedError


class _ZeroPoints(_Written):
    """A zero for each channel, 8 bytes each in the format: tensors of as many channels share one vector."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.zeros(self._count, np.int64)

    def _write(self, builder: Any) -> Any:
        return builder.CreateNumpyVector(np.asarray(self))


class _Scales(_Written, schema.QuantizationParametersT):  # type: ignore[misc]
    """Symmetric scales, one a channel along an axis, of a stored tensor and of what DENSIFY makes of it."""

    def __init__(self, scale: np.ndarray, axis: int, zero_points: _ZeroPoints) -> None:
        super().__init__(scale=scale, zeroPoint=zero_points, quantizedDimension=axis)

    def _write(self, builder: Any) -> Any:
        zero_points = self.zeroPoint.Pack(builder)
        scale = builder.CreateNumpyVector(self.scale)
        schema.QuantizationParametersStart(builder)
        schema.QuantizationParametersAddScale(builder, scale)
        schema.QuantizationParametersAddZeroPoint(builder, zero_points)
        schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)


def store_weights(graph: Graph, storage: Storage) -> None:
    """Rewrite every float32 weight of the graph in the smallest form that `storage` allows."""
    zero_points: dict[int, _ZeroPoints] = {}
    before: dict[int, list[Any]] = {}  # id of an op -> ops to insert before it
    for op, tensor in list(weights(graph)):
        if graph.type_name(tensor) != "FLOAT32" or graph.tensors[tensor].sparsity is not None:
            continue
        made = store_weight(graph, op, tensor, storage, zero_points)
        before.setdefault(id(_first_reader(graph, tensor)), []).extend(made)
    graph.subgraph.operators = [entry for op in graph.ops for entry in [*before.get(id(op), ()), op]]


def _first_reader(graph: Graph, tensor: int) -> Any:
    """The first op that reads a tensor; it need not be one with a weight, where the two share a constant."""
    return next(op for op in graph.ops if tensor in {int(t) for t in op.inputs})


def quantize(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 values and the float32 scales, one for each position along `axis`. Zeros stay zeros."""
    others = tuple(d for d in range(weight.ndim) if d != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / INT8_LIMIT, 1.0).astype(np.float32)
    shape = [-1 if d == axis else 1 for d in range(weight.ndim)]
    values = np.rint(weight / scale.reshape(shape))
    return np.clip(values, -INT8_LIMIT, INT8_LIMIT).astype(np.int8), scale


def drop_unused(graph: Graph) -> None:
    """Remove tensors no op reads or writes, and buffers no tensor holds; renumber the rest."""
    used = {int(t) for op in graph.ops for t in [*op.inputs, *op.outputs] if t >= 0}
    used |= {int(t) for t in [*graph.subgraph.inputs, *graph.subgraph.outputs]}
    kept = sorted(used)
    number = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.subgraph.tensors = [graph.tensors[old] for old in kept]
    for holder in [*graph.ops, graph.subgraph]:
        holder.inputs = np.array([number[int(t)] for t in holder.inputs], np.int32)
        holder.outputs = np.array([number[int(t)] for t in holder.outputs], np.int32)
    for signature in graph.model.signatureDefs or ():
        for entry in [*(signature.inputs or ()), *(signature.outputs or ())]:
            entry.tensorIndex = number[entry.tensorIndex]
    _drop_operator_codes(graph)


def share_buffers(graph: Graph) -> None:
    """Keep one buffer for all tensors and metadata that hold the same bytes; buffer 0 is the empty one."""
    old = graph.model.buffers
    kept: list[Any] = []
    by_content: dict[bytes, int] = {}

    def keep(index: int) -> int:
        data = old[index].data
        content = b"" if data is None else data.tobytes()
        if content not in by_content:
            by_content[content] = len(kept)
            kept.append(old[index])
        return by_content[content]

    empty = next((i for i, buffer in enumerate(old) if buffer.data is None or len(buffer.data) == 0), None)
    if empty is None:
        old.append(schema.BufferT())
        empty = len(old) - 1
    keep(empty)
    for holder in [*graph.tensors, *(graph.model.metadata or ())]:
        holder.buffer = keep(holder.buffer)
    graph.model.buffers = kept


def store_weight(
    graph: Graph, op: Any, tensor: int, storage: Storage, zero_points: dict[int, _ZeroPoints]
) -> list[Any]:
    """Store the weight of `op` anew.

    Args:
        graph: that it is in; only its tensors are changed.
        op: that has the weight.
        tensor: the weight, float32.
        storage: in which form.
        zero_points: made so far, by number of channels; shared and added to.

    Returns:
        The ops that make it the tensor it was, to be put before the first that reads it.
    """
    values = graph.constant(tensor)
    scales = None
    if storage is Storage.INT8 and values.size >= MIN_INT8_VALUES:
        axis = WEIGHTED_OPS[graph.op_name(op)]
        values, scale = quantize(values, axis)
        scales = _Scales(scale, axis, zero_points.setdefault(len(scale), _ZeroPoints(len(scale))))
    encoded = sparse.smallest(values) if all(d == 1 for d in values.shape[1:-1]) else None
    if encoded is None and scales is None:
        return []
    made = []
    name, shape = graph.name(tensor), values.shape
    if encoded is None:
        stored = graph.add_constant(f"{name}:int8", values, quantization=scales)
    else:
        kept, layout = encoded
        packed = graph.add_constant(
            f"{name}:sparse", kept, shape=shape, quantization=scales, sparsity=_table(layout)
        )
        stored = (
            tensor
            if scales is None
            else graph.add_tensor(f"{name}:int8", shape, TENSOR_TYPES[values.dtype], quantization=scales)
        )
        options: tuple[str, Any] = ("DensifyOptions", schema.DensifyOptionsT())
        made.append(graph.make_op("DENSIFY", [packed], [stored], options=options))
    if scales is not None:
        options = ("DequantizeOptions", schema.DequantizeOptionsT())
        made.append(graph.make_op("DEQUANTIZE", [stored], [tensor], DEQUANTIZE_VERSION, options))
    graph.tensors[tensor].buffer = 0  # computed at load time from now on; the old bytes are dropped
    return made


def _table(layout: sparse.Layout) -> Any:
    table = schema.SparsityParametersT()
    table.traversalOrder = np.array(layout.traversal, np.int32)
    table.blockMap = np.array(layout.block_map, np.int32) if layout.block_map else None
    table.dimMetadata = [_dimension(level) for level in layout.levels]
    return table


def _dimension(level: sparse.Level) -> Any:
    entry = schema.DimensionMetadataT()
    if level.size is not None:
        entry.denseSize = level.size
        return entry
    entry.format = schema.DimensionType.SPARSE_CSR
    entry.arraySegmentsType, entry.arraySegments = _index_vector(level.segments)
    entry.arrayIndicesType, entry.arrayIndices = _index_vector(level.indices)
    return entry


def _index_vector(values: Any) -> tuple[int, Any]:
    kind = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[values.dtype.itemsize]
    vector = getattr(schema, f"{kind}T")()
    vector.values = values
    return getattr(schema.SparseIndexVector, kind), vector


def _drop_operator_codes(graph: Graph) -> None:
    kept = sorted({int(op.opcodeIndex) for op in graph.ops})
    number = {old: new for new, old in enumerate(kept)}
    graph.model.operatorCodes = [graph.model.operatorCodes[old] for old in kept]
    for op in graph.ops:
        op.opcodeIndex = number[int(op.opcodeIndex)]
    graph._codes.clear()
