"""Apple's Core AI runtime, in this process: a program made ready once, images run through it.

Off Apple's systems the runtime has plain kernels; two things make it several times slower than it need be,
and are done away with before many images are run, by rewriting the program in memory:

- weights are decoded on every call: here the runtime decodes them once, and they become constants;
- padding is done element by element: here by two products with matrices of zeros and ones, which is exact.

The program computes in float32 then, as stored weights are compared with; `activations="float16"` runs
the file as it is, untouched.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from converters.coreai.framework import AIModelAsset, AIProgram, NDArray, mlir, ops
from converters.coreai.package import HASH, METADATA, PROGRAM
from converters.coreai.precision import widen
from converters.coreai.program import (
    DECODING,
    MAIN,
    constant,
    constant_array,
    distinct,
    layer_uses,
    main_graph,
    operations,
    producer,
    shape_of,
)

PAD = "coreai.pad"


class Executable:
    """A program that Apple's runtime has made ready.

    Attributes:
        outputs: their names, in the program's order.
    """

    def __init__(self, program: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._function = self._loop.run_until_complete(self._enter(program))
        self._input = self._function.desc.input_names[0]
        self.outputs = tuple(self._function.desc.output_names)

    async def _enter(self, program: Any) -> Any:
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            asset = program.save_asset(Path(folder) / "model.aimodel")
            model = await self._stack.enter_async_context(asset.executable())
        return model.load_function(MAIN)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Run images (n, channels, height, width) float32; each output, (n, ...) float32."""
        return self._loop.run_until_complete(self._run(images))

    async def _run(self, images: np.ndarray) -> list[np.ndarray]:
        answers = []
        for image in images:
            given = await self._function({self._input: NDArray(np.ascontiguousarray(image[None]))})
            answers.append([np.array(given[name].numpy(), np.float32) for name in self.outputs])
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def run_once(self, image: np.ndarray) -> list[np.ndarray]:
        """Run one image (1, channels, height, width); each output as it comes, in its own type."""
        call = self._function({self._input: NDArray(image)})
        given = self._loop.run_until_complete(call)
        return [np.array(given[name].numpy()) for name in self.outputs]

    def close(self) -> None:
        """Give back what the runtime holds."""
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()


def read_program(content: bytes) -> Any:
    """The program in a `main.mlirb`."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as name:
        folder = Path(name) / "model.aimodel"
        folder.mkdir()
        (folder / PROGRAM).write_bytes(content)
        (folder / HASH).write_bytes(hashlib.sha256(content).digest())
        (folder / METADATA).write_text('{"assetVersion": "2.0"}')
        return AIModelAsset.load(folder).program


def module_of(program: Any) -> Any:
    """The module of a program, to look at or to rewrite."""
    return program._module._mlir_module


def program_bytes(program: Any) -> bytes:
    """A program as `main.mlirb` has it."""
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        asset = Path(folder) / "model.aimodel"
        program.save_asset(asset)
        return (asset / PROGRAM).read_bytes()


def of_module(module: Any) -> Any:
    """A program of a module."""
    return AIProgram._from_mlir_module(module)


def quick(content: bytes) -> Any:
    """The program of a file, rewritten to run many images here: see the module."""
    program = read_program(content)
    module = module_of(program)
    decoded = weights_by_runtime(content)
    with module.context, mlir.Location.unknown():
        for value, weight in zip(_decoded_values(module), decoded, strict=True):
            operation = producer(value)
            with mlir.InsertionPoint(operation):
                value.replace_all_uses_with(constant(weight, value.type.element_type))
        _drop_unused(module)
    widen(module)
    with module.context, mlir.Location.unknown():
        for operation in operations(module):
            if operation.name == PAD:
                _pad_by_products(operation)
    return program


def weights_by_runtime(content: bytes) -> list[np.ndarray]:
    """What Apple's runtime makes of each layer's weight that is not stored as it is, in order."""
    program = read_program(content)
    module = module_of(program)
    values = _decoded_values(module)
    if not values:
        return []
    with module.context, mlir.Location.unknown():
        graph = main_graph(module)
        block = graph.regions[0].blocks[0]
        output = next(operation for operation in block.operations if operation.name == "coreai.output")
        with mlir.InsertionPoint(output):
            mlir.Operation.create("coreai.output", operands=values)
        output.operation.erase()
        kind = mlir.FunctionType.get(
            [argument.type for argument in block.arguments], [v.type for v in values]
        )
        graph.attributes["function_type"] = mlir.TypeAttr.get(kind)
        names = [mlir.StringAttr.get(f"weight_{number}") for number in range(len(values))]
        graph.attributes["res_attrs"] = mlir.ArrayAttr.get(
            [mlir.DictAttr.get({"coreai.name": name}) for name in names]
        )
        shape = shape_of(block.arguments[0])
        _drop_unused(module)
    executable = Executable(program)
    try:
        return executable.run_once(np.zeros(shape, np.float32))
    finally:
        executable.close()


def _decoded_values(module: Any) -> list[Any]:
    """The weights of layers that the program decodes, each once."""
    return [use.source for use in distinct(layer_uses(module)) if producer(use.source).name in DECODING]


def _drop_unused(module: Any) -> None:
    """Remove operations of the main function whose results nothing takes."""
    block = main_graph(module).regions[0].blocks[0]
    for operation in reversed(list(block.operations)):
        unused = not any(len(list(result.uses)) for result in operation.results)
        if unused and operation.name != "coreai.output":
            operation.operation.erase()


def _pad_by_products(operation: Any) -> None:
    """Write a padding with zeros of the two spatial axes as two matrix products."""
    amounts = [int(amount) for amount in constant_array(producer(operation.operands[1])).reshape(-1)]
    filling = float(constant_array(producer(operation.operands[2])).reshape(-1)[0])
    shape = shape_of(operation.operands[0])
    mode = str(operation.attributes["padding_mode"])
    if len(shape) != 4 or any(amounts[:4]) or filling or "constant" not in mode:
        return
    with mlir.InsertionPoint(operation):
        element = operation.results[0].type.element_type
        left = constant(_placing(shape[2], amounts[4], amounts[5]).T, element)
        right = constant(_placing(shape[3], amounts[6], amounts[7]), element)
        widened = ops.broadcasting_batch_matmul(operation.operands[0], right)
        padded = ops.broadcasting_batch_matmul(left, widened)
    operation.results[0].replace_all_uses_with(padded)
    operation.operation.erase()


def _placing(count: int, before: int, after: int) -> np.ndarray:
    """(count, before + count + after) matrix that puts zeros around what it is multiplied with."""
    matrix = np.zeros((count, before + count + after), np.float32)
    matrix[np.arange(count), np.arange(count) + before] = 1
    return matrix
