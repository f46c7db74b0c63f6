"""Apple's Core AI runtime, in this process: a program made ready once, images run through it.

Off Apple's systems the runtime has plain kernels; two things make it several times slower than it need be,
and are done away with before many images are run, by rewriting the program in memory:

- weights are decoded on every call: here the runtime decodes them once, and they become constants;
- padding is done element by element: here by two products with matrices of zeros and ones, which is exact.

Many images go through up to 64 at once, by a program written anew for them (`batching`), where all of its
operations are known there.

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

from converters.coreai import batching
from converters.coreai.batching import NotBatchedError
from converters.coreai.framework import AIModelAsset, AIProgram, NDArray, mlir
from converters.coreai.package import HASH, METADATA, PROGRAM
from converters.coreai.precision import widen
from converters.coreai.program import (
    BUILD_SPARSE,
    CONSTANT,
    DECODING,
    LUT_TO_SPARSE,
    MAIN,
    constant,
    distinct,
    layer_uses,
    main_graph,
    operations,
    producer,
    shape_of,
)

# Images that go through at once: at most so many, and so many pixels.
BATCH, BATCH_PX = 64, 2**18
# Share of a batch from which it is quicker than its images one by one.
WORTH = 0.25
# Up to this, of the largest value, two programs give the same.
SAME = 1e-4


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


class Quick:
    """The program of a file that computes in float32, made ready for one image and, when needed, for many.

    Attributes:
        outputs: their names.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._decoded = weights_by_runtime(content)
        self._one = Executable(self._program(1))
        self._many: Executable | None = None
        self._batches = True
        self.outputs = self._one.outputs

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """See `Executable.run`."""
        count = _batch_size(images)
        parts = [self._batch(images[at : at + count], count) for at in range(0, len(images), count)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def close(self) -> None:
        """Give back what the runtime holds."""
        for executable in (self._one, self._many):
            if executable is not None:
                executable.close()

    def _batch(self, images: np.ndarray, count: int) -> list[np.ndarray]:
        """Run up to `count` images at once; a few are quicker one by one."""
        if len(images) < WORTH * count:
            return self._one.run(images)
        missing = np.zeros((count - len(images), *images.shape[1:]), np.float32)
        full = np.concatenate([images, missing]) if len(missing) else images
        if self._many is None and self._batches:
            self._make_many(full)
        if self._many is None:
            return self._one.run(images)
        return [values[: len(images)].astype(np.float32) for values in self._many.run_once(full)]

    def _make_many(self, images: np.ndarray) -> None:
        """Make the program of many images ready, if it gives for the first what that of one gives."""
        self._batches = False
        try:
            many = Executable(self._program(len(images)))
        except NotBatchedError:
            return
        found, wanted = many.run_once(images), self._one.run(images[:1])
        if all(map(_alike, found, wanted)):
            self._many, self._batches = many, True
        else:
            many.close()

    def _program(self, count: int) -> Any:
        """The program, rewritten to take so many images: see the module."""
        program = read_program(self._content)
        module = module_of(program)
        with module.context, mlir.Location.unknown():
            for value, weight in zip(_decoded_values(module), self._decoded, strict=True):
                operation = producer(value)
                with mlir.InsertionPoint(operation):
                    value.replace_all_uses_with(constant(weight, value.type.element_type))
            _drop_unused(module)
        widen(module)
        if count > 1:
            batching.batch(module, count)
        with module.context, mlir.Location.unknown():
            for operation in operations(module):
                if operation.name == batching.PAD:
                    batching.pad_by_products(operation)
        return program


def _batch_size(images: np.ndarray) -> int:
    """How many images go through at once."""
    return max(1, min(BATCH, BATCH_PX // int(np.prod(images.shape[2:]))))


def _alike(many: np.ndarray, one: np.ndarray) -> bool:
    """Whether the first of many results is that of one image, but for the order of sums."""
    if many.shape[1:] != one.shape[1:]:
        return False
    scale = float(np.abs(one).max(initial=0.0))
    return bool(np.allclose(many[:1], one, rtol=0, atol=SAME * max(scale, 1e-30), equal_nan=True))


def weights_by_runtime(content: bytes) -> list[np.ndarray]:
    """What Apple's runtime makes of each layer's weight that is not stored as it is, in order."""
    program = read_program(content)
    module = module_of(program)
    values = _decoded_values(module)
    if not values:
        return []
    shape = shape_of(main_graph(module).regions[0].blocks[0].arguments[0])
    return _computed(program, values, np.zeros(shape, np.float32))


def tensors(content: bytes, image: np.ndarray) -> list[np.ndarray]:
    """All that a program computes on the way for one image (1, channels, height, width), in float32."""
    program = read_program(content)
    module = module_of(program)
    widen(module)
    with module.context:
        block = main_graph(module).regions[0].blocks[0]
        stored = (CONSTANT, BUILD_SPARSE, LUT_TO_SPARSE, *DECODING)
        made = [operation for operation in block.operations if operation.name not in stored]
        values = [result for operation in made for result in operation.results if _is_float(result)]
    return _computed(program, values, image)


def _computed(program: Any, values: list[Any], image: np.ndarray) -> list[np.ndarray]:
    """Run a program once, for what some of its values are instead of for its outputs."""
    module = module_of(program)
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
        names = [mlir.StringAttr.get(f"value_{number}") for number in range(len(values))]
        graph.attributes["res_attrs"] = mlir.ArrayAttr.get(
            [mlir.DictAttr.get({"coreai.name": name}) for name in names]
        )
        _drop_unused(module)
    executable = Executable(program)
    try:
        return executable.run_once(image)
    finally:
        executable.close()


def _is_float(value: Any) -> bool:
    kind = value.type
    return (
        isinstance(kind, mlir.RankedTensorType)
        and kind.has_static_shape
        and isinstance(kind.element_type, (mlir.F32Type, mlir.F16Type))
    )


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
