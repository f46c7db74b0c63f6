"""Run a Core ML package on any machine, by evaluating its program with torch.

Weights are decoded as Core ML decodes them, arithmetic is float32; `activations="float16"` also rounds the
result of every operation to float16, as the Neural Engine would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from converters.coreml.blobs import MalformedError
from converters.coreml.constexpr import Constant
from converters.coreml.description import map_labels
from converters.coreml.framework import ct, proto, quiet
from converters.coreml.operations import OPERATIONS
from converters.coreml.package import Contents, read_package
from converters.coreml.program import (
    Argument,
    Block,
    Operation,
    Program,
    Reference,
    every_operation,
    read_program,
)
from converters.errors import ToolError, UserError
from converters.facts import InputSpec

# Name of the output that `conversion` gives the torch model's own result.
LOGITS = "logits"
# Pixels run together: enough to keep the processor busy, few enough to stay in its caches.
_BATCH_PX = 2**19
# Operations that have blocks of their own.
CONTROL = ("cond", "while_loop")
# Arguments that are lists of values.
LISTS = ("values", "loop_vars")
# A loop in a file that does not end must not keep us: no sequence is that long.
_MAX_ROUNDS = 100_000


class Package:
    """A package that can be run; made by `load`.

    Attributes:
        path: of the package.
        input: what `predict` takes.
        outputs: names of what it gives: one for most models, several for a backbone that gives several maps.
    """

    def __init__(
        self, path: Path, spec: InputSpec, outputs: tuple[str, ...], run: Evaluator | _CoreML
    ) -> None:
        self.path = path
        self.input = spec
        self.outputs = outputs
        self._run = run

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Run a package that has one output.

        Args:
            images: (n, 3, h, w) of `input.shape` and `input.range`, float32; of a package that takes a map,
                (n, channels, h, w) of that.

        Returns:
            (n, classes) float32: the output as the torch model gives it, before any softmax; for a model of
            another kind, (n, ...) in the shape of its output.

        Raises:
            UserError: the images have another shape, there are none, or the package has several outputs.
        """
        if len(self.outputs) != 1:
            raise UserError(
                f"{self.path}: gives {', '.join(self.outputs)}: `predict_all` returns them by name"
            )
        return self.predict_all(images)[self.outputs[0]]

    def predict_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run the package.

        Args:
            images: as for `predict`.

        Returns:
            Each output by name, (n, ...) float32.

        Raises:
            UserError: the images have another shape, or there are none.
        """
        images = np.asarray(images, dtype=np.float32)
        if images.ndim != 4 or images.shape[1:] != self.input.shape:
            channels, height, width = self.input.shape
            raise UserError(
                f"{self.path}: takes images of shape (n, {channels}, {height}, {width}), got {images.shape}"
            )
        if not len(images):
            raise UserError(f"{self.path}: no images to run")
        batch = max(1, _BATCH_PX // (images.shape[2] * images.shape[3]))
        with well_formed(self.path):
            parts = [self._run(images[start : start + batch]) for start in range(0, len(images), batch)]
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(self.outputs)}


def load(
    path: str | Path,
    *,
    activations: Literal["float32", "float16"] = "float32",
    native: bool | None = None,
) -> Package:
    """Open a package to run it.

    Args:
        path: of the `.mlpackage`.
        activations: "float16" rounds the result of every operation as the Neural Engine would.
        native: run it by Core ML itself; None: where there is Core ML, on macOS.

    Raises:
        UserError: there is no such package, it is damaged, or it has an operation that cannot be evaluated.
    """
    path = Path(path)
    if activations not in ("float32", "float16"):
        raise UserError(f"activations {activations!r}: choose float32 or float16")
    if native and sys.platform != "darwin":
        raise UserError("Core ML itself runs on macOS only: leave `native` out to evaluate the package here")
    with well_formed(path):
        contents = read_package(path)
        program = read_program(contents)
        spec = input_spec(contents, program)
        results = result_names(program)
        if sys.platform == "darwin" if native is None else native:
            return Package(
                path, spec, results, _CoreML(path, program.inputs[0].name, results, _image(contents))
            )
        run = Evaluator(program, results, activations == "float16", takes_bgr(contents))
        run(np.zeros((1, *spec.shape), np.float32), check=True)
    return Package(path, spec, results, run)


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turn what is wrong with a file into one message that names the file."""
    try:
        yield
    except (MalformedError, OSError) as error:
        raise UserError(f"{path}: not a usable Core ML package: {error}") from error


def input_spec(contents: Contents, program: Program) -> InputSpec:
    """What a package takes: one image, as pixels or as the torch model takes it, or one map."""
    description = contents.spec.description
    if len(program.inputs) != 1 or len(description.input) != 1:
        raise MalformedError(f"takes {len(program.inputs)} inputs, expected one image")
    shape = program.inputs[0].shape
    channels = 3 if _image(contents) else "channels"
    if shape is None or len(shape) != 4 or shape[0] != 1 or (_image(contents) and shape[1] != channels):
        raise MalformedError(f"takes an input of shape {shape}, expected (1, {channels}, height, width)")
    return InputSpec(
        shape=(shape[1], shape[2], shape[3]),
        range=(0.0, 255.0) if _image(contents) else None,
        labels=_labels(program) or map_labels(contents.spec.description.metadata.userDefined),
    )


def result_names(program: Program) -> tuple[str, ...]:
    """The outputs that hold what the torch model gives: "logits", what is classified, or all there are."""
    if LOGITS in program.outputs:
        return (LOGITS,)
    for operation in program.operations:
        if operation.type == "classify":
            probabilities = operation.arguments.get("probabilities", (None,))[0]
            if isinstance(probabilities, Reference):
                return (probabilities.name,)
    if not program.outputs:
        raise MalformedError("its program has no outputs")
    return program.outputs


def _image(contents: Contents) -> bool:
    return bool(contents.spec.description.input[0].type.WhichOneof("Type") == "imageType")


def takes_bgr(contents: Contents) -> bool:
    """Whether Core ML turns images into tensors blue channel first."""
    kind = contents.spec.description.input[0].type
    colors = proto.FeatureTypes_pb2.ImageFeatureType.ColorSpace
    return bool(kind.WhichOneof("Type") == "imageType" and kind.imageType.colorSpace == colors.BGR)


def _labels(program: Program) -> tuple[str, ...] | None:
    for operation in program.operations:
        if operation.type == "classify":
            (classes,) = operation.arguments.get("classes", (None,))
            if isinstance(classes, Reference):
                classes = program.texts.get(classes.name)
            return tuple(classes) if isinstance(classes, list) else None
    return None


@dataclass(frozen=True)
class _Step:
    """An operation made ready to run: `tensors` come from other steps, `fixed` from the file."""

    operation: Operation
    tensors: Mapping[str, str | tuple[str, ...]]
    fixed: Mapping[str, Any]
    half: bool
    forget: tuple[str, ...]
    blocks: tuple[_Steps, ...]


@dataclass(frozen=True)
class _Steps:
    """A block made ready to run; its names as in `program.Block`."""

    inputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[str, ...]


Vary = Callable[[str, Constant], np.ndarray]


class Evaluator:
    """The steps that lead from the input to the results.

    Args of its making:
        program: to evaluate.
        results: names of its results that are wanted.
        half: round what every operation gives to float16.
        bgr: the program takes the blue channel first.
        vary: given the name of each floating point tensor in the file, returns the values to compute with.
    """

    def __init__(
        self,
        program: Program,
        results: tuple[str, ...],
        half: bool = False,
        bgr: bool = False,
        *,
        vary: Vary | None = None,
    ) -> None:
        self._bgr = bgr
        self._vary = vary
        self._input = program.inputs[0].name
        self._results = results
        self._constants: dict[str, Tensor] = {}
        needed = _needed(program, results)
        _known_operations(needed)
        self._steps = self._compile(program, needed, {self._input}, results, half)

    def __call__(self, images: np.ndarray, check: bool = False) -> list[np.ndarray]:
        """Run (n, 3, h, w) float32; `check` compares every shape on the way with what the file declares."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(images))
            if self._bgr:
                batch = batch.flip(1)
            if check or len(batch) == 1:
                return [result.numpy() for result in self._run(batch, check)]
            # The program is written for one image, axis of the batch included: (n, 1, 3, h, w).
            try:
                results = torch.vmap(lambda image: self._run(image, False))(batch.unsqueeze(1))
            except MalformedError:  # An operation that has no batching rule: image by image.
                singly = [self._run(image[None], False) for image in batch]
                return [torch.cat(parts).numpy() for parts in zip(*singly, strict=True)]
            return [result.squeeze(1).numpy() for result in results]

    def trace(self, image: np.ndarray, kept: Callable[[Operation, Tensor], None]) -> None:
        """Run one image (1, 3, h, w), and tell `kept` of everything that is computed."""
        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(image))
            self._run(given.flip(1) if self._bgr else given, False, kept)

    def _run(
        self, image: Tensor, check: bool, kept: Callable[[Operation, Tensor], None] | None = None
    ) -> tuple[Tensor, ...]:
        values: dict[str, Any] = {self._input: image}
        self._go(self._steps, values, check, kept)
        return tuple(values[name] for name in self._results)

    def _go(
        self,
        steps: Sequence[_Step],
        values: dict[str, Any],
        check: bool,
        kept: Callable[[Operation, Tensor], None] | None,
    ) -> None:
        """Run steps one after the other, and put what they make among the values."""
        for step in steps:
            results = self._apply(step, values)
            if check:
                _check_results(step.operation, results)
            if step.half:
                results = tuple(value.half().float() for value in results)
            if kept is not None:
                for value in results:
                    if isinstance(value, Tensor):
                        kept(step.operation, value)
            values.update(zip((output.name for output in step.operation.outputs), results, strict=True))
            for name in step.forget:
                values.pop(name, None)

    def _apply(self, step: _Step, values: Mapping[str, Any]) -> tuple[Any, ...]:
        tensors = {
            argument: self._find(names, values)
            if isinstance(names, str)
            else [self._find(name, values) for name in names]
            for argument, names in step.tensors.items()
        }
        try:
            if step.operation.type in CONTROL:
                return self._control(step, {**tensors, **step.fixed}, values)
            result = OPERATIONS[step.operation.type](**tensors, **step.fixed)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise MalformedError(
                f"operation {step.operation.type!r} at {step.operation.name!r}: {reason}"
            ) from error
        return result if isinstance(result, tuple) else (result,)

    def _find(self, name: str, values: Mapping[str, Any]) -> Any:
        return values[name] if name in values else self._constants[name]

    def _control(self, step: _Step, given: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
        first, second = step.blocks
        if step.operation.type == "cond":
            return self._block(first if bool(given["pred"]) else second, (), values)
        state = tuple(given["loop_vars"])
        for _ in range(_MAX_ROUNDS):
            if not bool(self._block(first, state, values)[0]):
                return state
            state = self._block(second, state, values)
        raise ValueError(f"it goes on after {_MAX_ROUNDS} rounds")

    def _block(self, block: _Steps, given: Sequence[Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
        inner = {**values, **dict(zip(block.inputs, given, strict=True))}
        self._go(block.steps, inner, False, None)
        return tuple(self._find(name, inner) for name in block.outputs)

    def _compile(
        self,
        program: Program,
        operations: Sequence[Operation],
        given: AbstractSet[str],
        results: Sequence[str],
        half: bool,
    ) -> tuple[_Step, ...]:
        """Steps from operations; `given` are values that are there before, `results` those asked for."""
        last_use = {
            reference.name: index
            for index, operation in enumerate(operations)
            for reference in _references(operation)
        }
        known, own = set(given), {self._input}
        steps = []
        for index, operation in enumerate(operations):
            tensors: dict[str, str | tuple[str, ...]] = {}
            fixed: dict[str, Any] = {}
            for argument, values in operation.arguments.items():
                resolved = [self._resolve(program, known, operation, value) for value in values]
                if argument in LISTS:
                    tensors[argument] = tuple(map(self._named, values, resolved))
                elif all(isinstance(value, Reference) for value in resolved) and resolved:
                    tensors[argument] = resolved[0].name
                elif len(resolved) == 1:
                    fixed[argument] = resolved[0]
            blocks = tuple(self._compile_block(program, block, known, half) for block in operation.blocks)
            made = {output.name for output in operation.outputs}
            known |= made
            own |= made
            forget = tuple(
                name
                for name, last in last_use.items()
                if last == index and name in own and name not in results
            )
            rounds = half and operation.outputs[0].dtype == "FLOAT16"
            steps.append(_Step(operation, tensors, fixed, rounds, forget, blocks))
        return tuple(steps)

    def _compile_block(self, program: Program, block: Block, given: AbstractSet[str], half: bool) -> _Steps:
        known = {*given, *block.inputs}
        steps = self._compile(program, block.operations, known, block.outputs, half)
        known |= {output.name for operation in block.operations for output in operation.outputs}
        for name in set(block.outputs) - known:
            if name not in program.constants:
                raise MalformedError(f"nothing makes {name!r}, which a block gives")
            self._named(Reference(name), program.constants[name].value.tolist())
        return _Steps(block.inputs, steps, block.outputs)

    def _named(self, value: Argument, resolved: Any) -> str:
        """The name of a value in a list of such, where one that is fixed in the file is kept as a tensor."""
        if isinstance(resolved, Reference):
            return resolved.name
        name = value.name if isinstance(value, Reference) else f"fixed {len(self._constants)}"
        self._constants[name] = torch.as_tensor(resolved)
        return name

    def _resolve(self, program: Program, known: set[str], operation: Operation, value: Argument) -> Any:
        """A reference to a tensor, or the fixed value that it stands for."""
        if isinstance(value, Reference):
            if value.name in known:
                return value
            if value.name in program.texts:
                return program.texts[value.name]
            if value.name not in program.constants:
                raise MalformedError(
                    f"operation {operation.type!r} needs {value.name!r}, which nothing makes before it"
                )
            stored = program.constants[value.name]
            constant = stored.value
            # Single numbers, and everything that is not float, configure an operation; the rest is data.
            if constant.dtype.kind == "f" and constant.ndim:
                if value.name not in self._constants:
                    if self._vary is not None:
                        constant = self._vary(value.name, stored)
                    self._constants[value.name] = torch.from_numpy(constant.astype(np.float32))
                return value
            return constant.tolist()
        return value.tolist() if isinstance(value, np.ndarray) else value


def _references(operation: Operation) -> list[Reference]:
    """All that it reads, what its blocks read too."""
    every = list(every_operation([operation]))
    read = [
        value
        for inner in every
        for values in inner.arguments.values()
        for value in values
        if isinstance(value, Reference)
    ]
    return read + [Reference(name) for inner in every for block in inner.blocks for name in block.outputs]


def _needed(program: Program, results: tuple[str, ...]) -> list[Operation]:
    """The operations that lead to the results, in order."""
    made = {output.name for operation in program.operations for output in operation.outputs}
    for result in results:
        if result not in made:
            raise MalformedError(f"nothing in its program makes the output {result!r}")
    wanted = set(results)
    needed = []
    for operation in reversed(program.operations):
        if wanted.intersection(output.name for output in operation.outputs):
            needed.append(operation)
            wanted.update(reference.name for reference in _references(operation))
    return needed[::-1]


def _known_operations(operations: Sequence[Operation]) -> None:
    every = every_operation(operations)
    unknown = [op for op in every if op.type not in OPERATIONS and (op.type not in CONTROL or not op.blocks)]
    if unknown:
        places = ", ".join(f"{operation.type!r} at {operation.name!r}" for operation in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise MalformedError(f"operations that cannot be evaluated here: {places}{more}")


def _check_results(operation: Operation, results: Sequence[Tensor]) -> None:
    """Compare what an operation gives with what the file declares."""
    if len(results) != len(operation.outputs):
        raise MalformedError(
            f"operation {operation.type!r} at {operation.name!r} gives {len(results)} results, "
            f"declared are {len(operation.outputs)}"
        )
    for output, value in zip(operation.outputs, results, strict=True):
        if output.shape is not None and tuple(value.shape) != output.shape:
            raise MalformedError(
                f"operation {operation.type!r} at {output.name!r} gives shape {list(value.shape)}, "
                f"declared is {list(output.shape)}"
            )


class _CoreML:
    """Core ML itself, one image at a time."""

    def __init__(self, path: Path, name: str, results: tuple[str, ...], image: bool) -> None:
        try:
            with quiet():
                self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit.CPU_AND_NE)
        except Exception as error:  # whatever Core ML's compiler raises
            raise ToolError(f"{path}: Core ML cannot load it: {error}") from error
        self._name = name
        self._results = results
        self._image = image

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Run (n, 3, h, w) float32."""
        singly = [self._predict(image) for image in images]
        return [np.concatenate(results) for results in zip(*singly, strict=True)]

    def _predict(self, image: np.ndarray) -> list[np.ndarray]:
        given: Any = image[None]
        if self._image:
            from PIL import Image

            given = Image.fromarray(np.rint(image).astype(np.uint8).transpose(1, 2, 0))
        outputs = self._model.predict({self._name: given})
        missing = [name for name in self._results if name not in outputs]
        if missing:
            raise ToolError(f"Core ML returned {', '.join(outputs)}, and no {', '.join(missing)}")
        return [np.asarray(outputs[name], np.float32) for name in self._results]
