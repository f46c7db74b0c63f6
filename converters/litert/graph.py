"""A `.tflite` file in memory: read and checked, changed by the steps of a conversion, written again.

The flatbuffer schema is the one that ships with LiteRT. Reading trusts nothing: every length, offset, index
and shape is checked here, so that the steps, the linter and the interpreter only ever see a file that holds
together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from converters.errors import UserError
from converters.litert import sparse

FILE_IDENTIFIER = b"TFL3"
# The runtime reads weights in place, 16 bytes at a time.
BUFFER_ALIGNMENT_BYTES = 16
# What a file may claim. Far above any vision model; a hostile file hits it before it costs time or memory.
MAX_ENTRIES = 200_000
MAX_RANK = 8
MAX_ACTIVATION_BYTES = 1 << 30
MAX_DECODED_BYTES_PER_FILE_BYTE = 1_000
MIN_DECODED_BYTES_LIMIT = 16 << 20


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


OP_NAMES = _names(schema.BuiltinOperator)
TYPE_NAMES = _names(schema.TensorType)
DTYPES: dict[int, np.dtype[Any]] = {
    getattr(schema.TensorType, name): np.dtype(dtype)
    for name, dtype in {
        "FLOAT32": "<f4",
        "FLOAT16": "<f2",
        "FLOAT64": "<f8",
        "INT8": "i1",
        "UINT8": "u1",
        "INT16": "<i2",
        "UINT16": "<u2",
        "INT32": "<i4",
        "UINT32": "<u4",
        "INT64": "<i8",
        "UINT64": "<u8",
        "BOOL": "?",
    }.items()
}
TENSOR_TYPES = {dtype: code for code, dtype in DTYPES.items()}
# How many inputs an op must have, and the table its options come in, for the kinds looked into here.
ARITY: dict[str, tuple[int, str | None]] = {
    "CONV_2D": (2, "Conv2DOptions"),
    "DEPTHWISE_CONV_2D": (2, "DepthwiseConv2DOptions"),
    "FULLY_CONNECTED": (2, "FullyConnectedOptions"),
    "ADD": (2, "AddOptions"),
    "MUL": (2, "MulOptions"),
    "PAD": (2, "PadOptions"),
    "MEAN": (2, "ReducerOptions"),
    "SUM": (2, "ReducerOptions"),
    "MAXIMUM": (2, None),
    "MINIMUM": (2, None),
    "RESHAPE": (1, "ReshapeOptions"),
    "RESIZE_BILINEAR": (1, "ResizeBilinearOptions"),
    "DENSIFY": (1, None),
    "DEQUANTIZE": (1, None),
    "DEPTH_TO_SPACE": (1, "DepthToSpaceOptions"),
}
# Ends of names of what is put in that is no part of the model: see `joining` and `repair.bar_faulty_parts`.
PLACING, BARRED = ":placing", ":barred"
# Ops whose constant second input is a weight, and the axis of that weight that counts output channels.
WEIGHTED_OPS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}


class DamagedFileError(UserError):
    """The file is not a `.tflite` that holds together."""

    def __init__(self, path: Path | str, what: str) -> None:
        super().__init__(f"{path}: not a usable .tflite file: {what}")


@dataclass
class Graph:
    """The main subgraph of a model, with the tables of the model it belongs to.

    Attributes:
        model: `schema.ModelT`.
        source: where it came from, for messages.
    """

    model: Any
    source: str = "model"
    _codes: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def subgraph(self) -> Any:
        """The first subgraph: the one an interpreter runs."""
        return self.model.subgraphs[0]

    @property
    def ops(self) -> list[Any]:
        """Operators in execution order."""
        operators: list[Any] = self.subgraph.operators
        return operators

    @property
    def tensors(self) -> list[Any]:
        """Tensors, by index."""
        tensors: list[Any] = self.subgraph.tensors
        return tensors

    def op_name(self, op: Any) -> str:
        """Name of an operator's kind: "CONV_2D"."""
        return _code_name(self.model.operatorCodes[op.opcodeIndex])

    def name(self, tensor: int) -> str:
        """A tensor's name as text."""
        return _text(self.tensors[tensor].name)

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape; () for a scalar."""
        return _shape(self.tensors[tensor])

    def type_name(self, tensor: int) -> str:
        """A tensor's element type: "FLOAT32"."""
        return TYPE_NAMES.get(self.tensors[tensor].type, "unknown")

    def is_constant(self, tensor: int) -> bool:
        """Whether the file holds the tensor's values, in whatever encoding."""
        return tensor >= 0 and self.stored(tensor).size > 0

    def stored(self, tensor: int) -> np.ndarray:
        """The bytes of a tensor's buffer, (n,) uint8; empty where it has none."""
        data = self.model.buffers[self.tensors[tensor].buffer].data
        return np.zeros(0, np.uint8) if data is None else np.asarray(data, np.uint8)

    def constant(self, tensor: int) -> np.ndarray:
        """A constant's values in the tensor's shape, sparse encoding undone, quantised values as stored."""
        entry = self.tensors[tensor]
        values = self.stored_values(tensor)
        if entry.sparsity is None:
            return values.reshape(self.shape(tensor))
        return sparse.decode(values, self.shape(tensor), sparse.from_table(entry.sparsity))

    def stored_values(self, tensor: int) -> np.ndarray:
        """The numbers in a tensor's buffer, (n,): all of them, or those a sparse encoding kept."""
        entry = self.tensors[tensor]
        if entry.type == schema.TensorType.INT4 and entry.sparsity is None:
            return _unpacked(self.stored(tensor), math.prod(self.shape(tensor)))
        if entry.type not in DTYPES:
            raise DamagedFileError(self.source, f"{self.type_name(tensor)} weights cannot be decoded here")
        return self.stored(tensor).view(DTYPES[entry.type])

    def producers(self) -> dict[int, Any]:
        """The op that computes each tensor."""
        return {int(t): op for op in self.ops for t in op.outputs}

    def consumers(self) -> dict[int, list[Any]]:
        """The ops that read each tensor, in order; an op that reads it twice is listed twice."""
        found: dict[int, list[Any]] = {}
        for op in self.ops:
            for tensor in op.inputs:
                found.setdefault(int(tensor), []).append(op)
        return found

    def add_constant(self, name: str, values: np.ndarray, **fields: Any) -> int:
        """Append a constant tensor; `fields` go to the schema's tensor table."""
        self.model.buffers.append(_buffer(values))
        shape = fields.pop("shape", values.shape)
        return self._append(name, shape, TENSOR_TYPES[values.dtype], len(self.model.buffers) - 1, fields)

    def replace_constant(self, tensor: int, values: np.ndarray) -> None:
        """Give a constant other values of the same kind; constants that share its buffer keep theirs."""
        self.model.buffers.append(_buffer(values))
        self.tensors[tensor].buffer = len(self.model.buffers) - 1

    def drop_unread(self, kind: str) -> None:
        """Remove ops of a kind whose results nothing reads."""
        read = {int(t) for op in self.ops for t in op.inputs} | {int(t) for t in self.subgraph.outputs}
        self.subgraph.operators = [
            op for op in self.ops if self.op_name(op) != kind or any(int(t) in read for t in op.outputs)
        ]

    def add_tensor(self, name: str, shape: Sequence[int], type_code: int, **fields: Any) -> int:
        """Append a tensor that an op computes. Buffer 0 is the empty one by convention."""
        return self._append(name, shape, type_code, 0, fields)

    def make_op(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        version: int = 1,
        options: tuple[str, Any] | None = None,
    ) -> Any:
        """An operator for the caller to insert; `options` is (union member name, table)."""
        op = schema.OperatorT()
        op.opcodeIndex = self._code(kind, version)
        op.inputs = np.asarray(inputs, np.int32)
        op.outputs = np.asarray(outputs, np.int32)
        if options is not None:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, options[0])
            op.builtinOptions = options[1]
        return op

    def to_bytes(self) -> bytes:
        """The file. The same graph gives the same bytes."""
        size = sum(0 if b.data is None else len(b.data) + 64 for b in self.model.buffers)
        builder = flatbuffers.Builder(size + (1 << 16))
        builder.Finish(self.model.Pack(builder), FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _append(
        self, name: str, shape: Sequence[int], type_code: int, buffer: int, fields: dict[str, Any]
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.asarray(shape, np.int32)
        tensor.type = type_code
        tensor.buffer = buffer
        for key, value in fields.items():
            setattr(tensor, key, value)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def _code(self, kind: str, version: int) -> int:
        if (kind, version) not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
            # Readers older than the 32-bit code look here; 127 says "look there".
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = version
            self.model.operatorCodes.append(code)
            self._codes[kind, version] = len(self.model.operatorCodes) - 1
        return self._codes[kind, version]


def read_file(path: Path | str) -> Graph:
    """Read and check a file.

    Raises:
        UserError: there is no such file, or it is not a `.tflite` that holds together.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return read(data, str(path))


def read(data: bytes, source: str = "model") -> Graph:
    """Read and check a file's content.

    Raises:
        UserError: it is not a `.tflite` that holds together; `source` names it in the message.
    """
    if len(data) < 8 or data[4:8] != FILE_IDENTIFIER:
        raise DamagedFileError(source, "it does not start as one (no TFL3 mark in bytes 4 to 8)")
    try:
        # The generated reader does no checks of its own: on damaged input it raises whatever Python raises
        # where it stumbles, so anything it raises means a damaged file.
        _check_lengths(schema.Model.GetRootAs(data, 0), source)
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        _adopt_buffers(model, data, source)
        _check_model(model, len(data), source)
    except UserError:
        raise
    except Exception as error:
        raise DamagedFileError(source, f"damaged or truncated ({type(error).__name__})") from None
    return Graph(model, source)


def weights(graph: Graph) -> Iterator[tuple[Any, int]]:
    """Ops with a weight and the constant tensor in the file it comes from, in execution order.

    Looks through DENSIFY and DEQUANTIZE. A weight two ops share comes once, where it is first used. What only
    puts channels in their places is no weight of the model: see `joining`.
    """
    producers = graph.producers()
    seen: set[int] = set()
    for op in graph.ops:
        if graph.op_name(op) not in WEIGHTED_OPS or len(op.inputs) < 2:
            continue
        if graph.name(int(op.inputs[1])).endswith(PLACING):
            continue
        tensor = root_constant(graph, int(op.inputs[1]), producers)
        if graph.is_constant(tensor) and tensor not in seen:
            seen.add(tensor)
            yield op, tensor


def root_constant(graph: Graph, tensor: int, producers: dict[int, Any]) -> int:
    """The stored tensor that `tensor` is made from by DENSIFY and DEQUANTIZE, or itself."""
    while tensor in producers and graph.op_name(producers[tensor]) in ("DENSIFY", "DEQUANTIZE"):
        tensor = int(producers[tensor].inputs[0])
    return tensor


def _unpacked(stored: np.ndarray, count: int) -> np.ndarray:
    """Signed 4-bit numbers, two to a byte, the low half first -> int8."""
    halves = np.stack([stored << 4, stored & 0xF0], axis=1).reshape(-1)[:count]
    return halves.view(np.int8) >> 4


def _buffer(values: np.ndarray) -> Any:
    buffer = AlignedBuffer()
    buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    return buffer


class AlignedBuffer(schema.BufferT):  # type: ignore[misc]
    """A buffer written at 16-byte alignment; the generated class forgets the schema's `force_align`."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802 (the schema's name)
        """Write the buffer's table and, before it, its bytes."""
        position = None
        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), BUFFER_ALIGNMENT_BYTES)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            position = builder.EndVector()
        schema.BufferStart(builder)
        if position is not None:
            schema.BufferAddData(builder, position)
        return schema.BufferEnd(builder)


def _adopt_buffers(model: Any, content: bytes, source: str) -> None:
    """Make buffers write themselves aligned, and bring in what is stored behind the flatbuffer."""
    for index, buffer in enumerate(model.buffers or ()):
        aligned = AlignedBuffer()
        aligned.data = buffer.data
        if buffer.offset > 1:
            if buffer.offset + buffer.size > len(content):
                raise DamagedFileError(source, f"buffer {index} lies behind the end of the file")
            aligned.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        model.buffers[index] = aligned


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(d) for d in tensor.shape)


def _code_name(code: Any) -> str:
    # Files older than 2020 keep the code in the 8-bit field only.
    return OP_NAMES.get(max(code.builtinCode, code.deprecatedBuiltinCode), "unknown")


def _check_lengths(model: Any, source: str) -> None:
    """Refuse vectors too long to unpack before unpacking them: many may point at the same few bytes."""
    entries = model.SubgraphsLength() + model.OperatorCodesLength() + model.BuffersLength()
    entries += model.MetadataLength() + model.SignatureDefsLength()
    _at_most(entries, MAX_ENTRIES, "entries", source)
    for index in range(model.SubgraphsLength()):
        subgraph = model.Subgraphs(index)
        entries += subgraph.TensorsLength() + subgraph.OperatorsLength()
        _at_most(entries, MAX_ENTRIES, "entries", source)
        for number in range(subgraph.TensorsLength()):
            tensor = subgraph.Tensors(number)
            entries += tensor.VariantTensorsLength()
            if tensor.Sparsity() is not None:
                _at_most(tensor.Sparsity().DimMetadataLength(), 2 * MAX_RANK, "sparse dimensions", source)
        _at_most(entries, MAX_ENTRIES, "entries", source)
    for index in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(index)
        entries += signature.InputsLength() + signature.OutputsLength()
        _at_most(entries, MAX_ENTRIES, "entries", source)


def _at_most(count: int, limit: int, what: str, source: str) -> None:
    if count > limit:
        raise DamagedFileError(source, f"it claims {count:,} {what}, more than {limit:,}")


def _check_model(model: Any, file_bytes: int, source: str) -> None:
    if not model.subgraphs or not model.buffers or not model.operatorCodes:
        raise DamagedFileError(source, "it holds no graph")
    for subgraph in model.subgraphs:
        if subgraph.tensors is None or subgraph.operators is None:
            raise DamagedFileError(source, "a subgraph has no tensors or no operators")
        _check_tensors(model, subgraph, file_bytes, source)
        _check_ops(model, subgraph, source)
    for signature in model.signatureDefs or ():
        count = len(model.subgraphs)
        if signature.subgraphIndex >= count:
            raise DamagedFileError(source, f"a signature names subgraph {signature.subgraphIndex} of {count}")
        tensors = len(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in [*(signature.inputs or ()), *(signature.outputs or ())]:
            if entry.tensorIndex >= tensors:
                raise DamagedFileError(source, f"a signature names tensor {entry.tensorIndex} of {tensors}")


def _check_tensors(model: Any, subgraph: Any, file_bytes: int, source: str) -> None:
    decoded_limit = max(MIN_DECODED_BYTES_LIMIT, MAX_DECODED_BYTES_PER_FILE_BYTE * file_bytes)
    decoded = activations = 0
    for index, tensor in enumerate(subgraph.tensors):
        where = f"tensor {index} ({_text(tensor.name)[-60:]})"
        if not 0 <= tensor.buffer < len(model.buffers):
            raise DamagedFileError(source, f"{where} names buffer {tensor.buffer} of {len(model.buffers)}")
        if tensor.type not in TYPE_NAMES:
            raise DamagedFileError(source, f"{where} has unknown element type {tensor.type}")
        shape = _shape(tensor)
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise DamagedFileError(source, f"{where} has shape {list(shape)[: MAX_RANK + 1]}")
        _check_quantization(tensor, shape, where, source)
        dtype = DTYPES.get(tensor.type)
        data = model.buffers[tensor.buffer].data
        if (
            tensor.type == schema.TensorType.INT4
            and data is not None
            and 0 < len(data) * 2 < math.prod(shape)
        ):
            raise DamagedFileError(source, f"{where} of shape {list(shape)} has {len(data):,} bytes")
        if dtype is None:
            continue
        size_bytes = math.prod(shape) * dtype.itemsize
        if tensor.sparsity is not None:
            decoded += size_bytes
            _at_most(decoded, decoded_limit, f"bytes of decoded weights in {file_bytes:,} bytes", source)
            _check_sparse(tensor, shape, data, dtype, where, source)
        elif data is None or len(data) == 0:
            activations = max(activations, size_bytes)
            _at_most(activations, MAX_ACTIVATION_BYTES, f"bytes for {where}", source)
        elif len(data) != size_bytes:
            raise DamagedFileError(
                source, f"{where} of shape {list(shape)} needs {size_bytes:,} bytes, has {len(data):,}"
            )


def _check_sparse(
    tensor: Any, shape: tuple[int, ...], data: Any, dtype: np.dtype[Any], where: str, source: str
) -> None:
    stored = 0 if data is None else len(data)
    if stored % dtype.itemsize:
        raise DamagedFileError(source, f"{where} has {stored:,} bytes of {dtype.itemsize}-byte values")
    try:
        sparse.check(stored // dtype.itemsize, shape, sparse.from_table(tensor.sparsity))
    except ValueError as error:
        raise DamagedFileError(source, f"{where}: {error}") from None


def _check_quantization(tensor: Any, shape: tuple[int, ...], where: str, source: str) -> None:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) == 0:
        return
    offsets = quantization.zeroPoint
    if offsets is None or len(offsets) not in (1, len(quantization.scale)):
        raise DamagedFileError(source, f"{where} has scales without as many zero points")
    if len(quantization.scale) == 1:
        return
    scales, axis = len(quantization.scale), quantization.quantizedDimension
    if not 0 <= axis < len(shape) or shape[axis] != scales:
        raise DamagedFileError(
            source, f"{where} of shape {list(shape)} has {scales} scales along axis {axis}"
        )


def _check_ops(model: Any, subgraph: Any, source: str) -> None:
    tensors = len(subgraph.tensors)
    for vector, what in ((subgraph.inputs, "input"), (subgraph.outputs, "output")):
        _check_indices(vector, 0, tensors, f"graph {what}", source)
    for index, op in enumerate(subgraph.operators):
        if not 0 <= op.opcodeIndex < len(model.operatorCodes):
            raise DamagedFileError(source, f"op {index} names operator code {op.opcodeIndex}")
        op.inputs = np.zeros(0, np.int32) if op.inputs is None else op.inputs
        op.outputs = np.zeros(0, np.int32) if op.outputs is None else op.outputs
        _check_indices(op.inputs, -1, tensors, f"op {index} input", source)
        _check_indices(op.outputs, 0, tensors, f"op {index} output", source)
        _check_arity(_code_name(model.operatorCodes[op.opcodeIndex]), op, index, source)
    _check_order(model, subgraph, source)


def _check_arity(kind: str, op: Any, index: int, source: str) -> None:
    if kind not in ARITY:
        return
    count, options = ARITY[kind]
    if len(op.inputs) < count or (op.inputs[:count] < 0).any() or len(op.outputs) != 1:
        raise DamagedFileError(
            source, f"op {index} ({kind}) has {len(op.inputs)} inputs, {len(op.outputs)} outputs"
        )
    if options is not None and op.builtinOptionsType not in (0, getattr(schema.BuiltinOptions, options)):
        raise DamagedFileError(source, f"op {index} ({kind}) has another op's options")


def _check_indices(vector: Any, lowest: int, tensors: int, what: str, source: str) -> None:
    values = np.asarray([] if vector is None else vector, np.int64)
    if values.size and (values.min() < lowest or values.max() >= tensors):
        raise DamagedFileError(source, f"{what} names a tensor that is not among the {tensors} there are")


def _check_order(model: Any, subgraph: Any, source: str) -> None:
    """Each value must be computed once, before it is read: nothing downstream survives a cycle."""
    made: set[int] = set()
    for index, op in enumerate(subgraph.operators):
        for output in op.outputs:
            if int(output) in made:
                raise DamagedFileError(source, f"op {index} computes tensor {int(output)} a second time")
            made.add(int(output))
    ready = {int(t) for t in subgraph.inputs if t >= 0} if subgraph.inputs is not None else set()
    for index, op in enumerate(subgraph.operators):
        for tensor in op.inputs:
            if int(tensor) in made and int(tensor) not in ready:
                raise DamagedFileError(source, f"op {index} reads tensor {int(tensor)} before it is computed")
        ready.update(int(t) for t in op.outputs)
