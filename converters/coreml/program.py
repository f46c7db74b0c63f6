"""A package's program as plain records: operations in order, and every constant decoded with what it costs.

`constexpr_*` operations describe how a constant is stored (sparse, quantized, by table); here they become the
values they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.coreml import constexpr
from converters.coreml.blobs import ELEMENT_TYPES, ElementType, MalformedError, read_blob, unpack
from converters.coreml.constexpr import Constant
from converters.coreml.framework import proto
from converters.coreml.package import Contents

# Operations whose `weight` is that of a layer.
LAYER_OPERATIONS = ("conv", "linear", "conv_transpose")
# A tensor that a file says is larger is refused, not allocated: 2 GB of float32.
_MAX_ELEMENTS = 2**29


@dataclass(frozen=True)
class Reference:
    """An argument that is the result of an operation, a constant, or an input, by name."""

    name: str


@dataclass(frozen=True)
class TensorType:
    """Name, MIL type and shape (at batch 1) of a result; None where it is no tensor of fixed shape."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None


Literal = np.ndarray | str | list[str]
Argument = Reference | Literal


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        type: "conv", "relu", ...
        arguments: by name; more than one where the operation takes a list, as `concat` does.
        outputs: what it makes.
        blocks: programs of its own: of `cond` for true and for false, of `while_loop` the condition and body.
    """

    type: str
    arguments: Mapping[str, tuple[Argument, ...]]
    outputs: tuple[TensorType, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """Its place in the program: the name of its first result."""
        return self.outputs[0].name


@dataclass(frozen=True)
class Block:
    """Operations inside an operation; they see all that comes before it, and `inputs`.

    Attributes:
        inputs: names of what it is given each time.
        operations: in order.
        outputs: names of its results.
    """

    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class StoredWeight:
    """A constant tensor as it is stored, and decoded.

    Attributes:
        name: in the file.
        kind: "conv1x1", "conv", "depthwise", "linear", or "other" for what is no layer's weight.
        value: decoded; a layer's is (out, in / groups, height, width) or (out, in).
        encoding: for people, e.g. "float16", "sparse int8", "4-bit table".
        bits: stored bits: values, masks, indices, scales and tables.
        zero_fraction: exact zeros in `value`, 0 to 1.
    """

    name: str
    kind: str
    value: np.ndarray
    encoding: str
    bits: int
    zero_fraction: float

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        return self.bits / max(self.value.size, 1)


@dataclass(frozen=True)
class Program:
    """The main function of a package.

    Attributes:
        inputs: what it takes.
        operations: in order, constants left out.
        constants: decoded, by name.
        texts: constants that are text, by name.
        outputs: names of its results.
    """

    inputs: tuple[TensorType, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Constant]
    texts: Mapping[str, str | list[str]]
    outputs: tuple[str, ...]


def read_program(contents: Contents) -> Program:
    """Read the main function of a package.

    Raises:
        MalformedError: the program does not hold together, or its weights are not where it says.
    """
    functions = contents.spec.mlProgram.functions
    if "main" not in functions:
        raise MalformedError("its program has no function 'main'")
    function = functions["main"]
    if function.opset not in function.block_specializations:
        raise MalformedError(f"its program has no block for its own operation set, {function.opset!r}")
    block = function.block_specializations[function.opset]
    constants: dict[str, Constant] = {}
    texts: dict[str, str | list[str]] = {}
    operations = _operations(block, contents, constants, texts)
    inputs = tuple(_tensor_type(value) for value in function.inputs)
    return Program(inputs, operations, constants, texts, tuple(block.outputs))


def _operations(
    block: Any,
    contents: Contents,
    constants: dict[str, Constant],
    texts: dict[str, str | list[str]],
) -> tuple[Operation, ...]:
    """Operations of a block; constants, those of blocks inside it too, are added to the two tables."""
    operations = []
    for message in block.operations:
        if message.type != "const" and not message.type.startswith("constexpr_"):
            blocks = tuple(
                Block(
                    tuple(value.name for value in inner.inputs),
                    _operations(inner, contents, constants, texts),
                    tuple(inner.outputs),
                )
                for inner in message.blocks
            )
            operations.append(_operation(message, contents, blocks))
            continue
        for name, value in _constants(message, contents, constants, texts):
            if isinstance(value, Constant):
                constants[name] = value
            else:
                texts[name] = value
    return tuple(operations)


def every_operation(operations: Iterable[Operation]) -> Iterator[Operation]:
    """Operations in order, each before those in its blocks."""
    for operation in operations:
        yield operation
        for block in operation.blocks:
            yield from every_operation(block.operations)


def stored_weights(program: Program) -> tuple[StoredWeight, ...]:
    """Every floating point constant but single numbers, once each, in the order they are used."""
    found: dict[str, StoredWeight] = {}
    for operation in every_operation(program.operations):
        for argument, references in operation.arguments.items():
            for reference in references:
                if not isinstance(reference, Reference) or reference.name in found:
                    continue
                stored = program.constants.get(reference.name)
                if stored is None or stored.value.ndim == 0 or stored.value.dtype.kind != "f":
                    continue
                kind = _kind(operation, argument, stored.value, program.constants)
                found[reference.name] = _weight(reference.name, kind, stored)
    return tuple(found.values())


def layer_weights(program: Program) -> tuple[StoredWeight, ...]:
    """The weights of convolutions and linear layers among them."""
    return tuple(weight for weight in stored_weights(program) if weight.kind != "other")


def layer_uses(program: Program) -> tuple[StoredWeight, ...]:
    """The weight of every layer as it runs: one that two layers share, or that runs twice, comes twice."""
    weights = {weight.name: weight for weight in layer_weights(program)}
    return tuple(
        weights[value.name]
        for operation in program.operations
        if operation.type in LAYER_OPERATIONS
        for value in operation.arguments.get("weight", ())
        if isinstance(value, Reference) and value.name in weights
    )


def _weight(name: str, kind: str, stored: Constant) -> StoredWeight:
    zeros = float(np.count_nonzero(stored.value == 0) / stored.value.size)
    return StoredWeight(name, kind, stored.value, stored.encoding, stored.bits, zeros)


def _kind(operation: Operation, argument: str, weight: np.ndarray, constants: Mapping[str, Constant]) -> str:
    """Kind of the layer whose weight this is, by the names of `converters.layers.kind_of`."""
    if operation.type not in LAYER_OPERATIONS or argument != "weight":
        return "other"
    if weight.ndim == 2:
        return "linear"
    # (out, 1, kh, kw) with groups is depthwise; without, it is a convolution of a single channel.
    grouped = _groups(operation, constants) > 1
    if grouped and weight.shape[1] == 1:
        return "depthwise"
    return "conv1x1" if not grouped and math.prod(weight.shape[2:]) == 1 else "conv"


def _groups(operation: Operation, constants: Mapping[str, Constant]) -> int:
    for value in operation.arguments.get("groups", ()):
        if isinstance(value, Reference) and value.name in constants:
            value = constants[value.name].value
        if isinstance(value, np.ndarray) and value.size == 1:
            return int(value.item())
    return 1


def _operation(message: Any, contents: Contents, blocks: tuple[Block, ...]) -> Operation:
    arguments = {
        name: tuple(_argument(binding, contents) for binding in message.inputs[name].arguments)
        for name in _weight_first(message.inputs)
    }
    if not message.outputs:
        raise MalformedError(f"operation {message.type!r} makes nothing")
    outputs = tuple(_tensor_type(output) for output in message.outputs)
    return Operation(message.type, arguments, outputs, blocks)


def _weight_first(names: Iterable[str]) -> list[str]:
    """Protobuf maps have no order of their own: a weight, then the rest by name."""
    return sorted(names, key=lambda name: (name != "weight", name))


def _argument(binding: Any, contents: Contents) -> Argument:
    if binding.WhichOneof("binding") == "name":
        return Reference(binding.name)
    value = _value(binding.value, contents)
    return value.value if isinstance(value, Constant) else value


def _constants(
    message: Any,
    contents: Contents,
    constants: Mapping[str, Constant],
    texts: Mapping[str, str | list[str]],
) -> Iterator[tuple[str, Constant | str | list[str]]]:
    """What a `const` or `constexpr_*` operation stands for, under the names of its outputs."""
    arguments: dict[str, Constant | str | list[str]] = {
        name: _value(message.attributes[name], contents) for name in message.attributes if name != "name"
    }
    for name in message.inputs:
        (binding,) = message.inputs[name].arguments or (None,)
        argument = _argument(binding, contents) if binding is not None else None
        if isinstance(argument, Reference):
            if argument.name not in constants:
                raise MalformedError(
                    f"{message.type!r} needs {argument.name!r}, which is not a constant before it"
                )
            arguments[name] = constants[argument.name]
        elif binding is not None:
            arguments[name] = _value(binding.value, contents)
    outputs = [output.name for output in message.outputs]
    if message.type == "const":
        values: tuple[Constant | str | list[str], ...] = (arguments.get("val", ""),)
    else:
        values = constexpr.decode(message.type, arguments)
    if len(outputs) != len(values):
        raise MalformedError(f"{message.type!r} has {len(outputs)} results where {len(values)} are expected")
    yield from zip(outputs, values, strict=True)


def _tensor_type(named: Any) -> TensorType:
    if named.type.WhichOneof("type") != "tensorType":
        return TensorType(named.name, None, None)
    tensor = named.type.tensorType
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        return TensorType(named.name, _type_name(tensor.dataType), None)
    return TensorType(named.name, _type_name(tensor.dataType), _shape(tensor))


def _type_name(number: int) -> str:
    return (
        str(proto.MIL_pb2.DataType.Name(number)) if number in proto.MIL_pb2.DataType.values() else str(number)
    )


def _shape(tensor: Any) -> tuple[int, ...]:
    shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
    if math.prod(shape) > _MAX_ELEMENTS:
        raise MalformedError(f"a tensor of shape {list(shape)}: larger than any that a vision model has")
    return shape


def _value(message: Any, contents: Contents) -> Constant | str | list[str]:
    """Decode a constant: a tensor, a text, or a list of texts."""
    kind = message.type.WhichOneof("type")
    if kind == "listType":
        return [str(_value(item, contents)) for item in message.immediateValue.list.values]
    if kind != "tensorType":
        raise MalformedError(f"a constant of a type that is not supported: {kind}")
    tensor = message.type.tensorType
    type_name, shape = _type_name(tensor.dataType), _shape(tensor)
    if type_name == "STRING":
        texts = [str(text) for text in message.immediateValue.tensor.strings.values]
        return texts[0] if not shape and len(texts) == 1 else texts
    if type_name not in ELEMENT_TYPES:
        raise MalformedError(f"a constant of a type that is not supported: {type_name}")
    element = ELEMENT_TYPES[type_name]
    if message.WhichOneof("value") == "blobFileValue":
        blob = message.blobFileValue
        value = read_blob(contents.weight_file(blob.fileName), blob.offset, element, shape)
    else:
        value = _immediate(message.immediateValue.tensor, element, shape)
    return Constant(value, element.name, value.size * element.bits, element)


def _immediate(tensor: Any, element: ElementType, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a tensor written into the specification itself."""
    field = tensor.WhichOneof("value")
    if field is None:
        raise MalformedError("a constant without a value")
    values = getattr(tensor, field).values
    if field == "bytes":
        return unpack(values, element, shape)
    count = math.prod(shape)
    if len(values) != count:
        raise MalformedError(f"a constant of shape {list(shape)} with {len(values)} values")
    return np.array(values, dtype=element.numpy).reshape(shape)
