"""Does a file compute what its model does, on every runtime at hand?

Each runtime's outputs are held against a reference:

- the torch model, for a file whose weights are float32, and for a package;
- the file's own program with the weights it holds, computed in float64 by torch, where weights were rounded:
  so that only the runtime's arithmetic is judged. How far that is from the torch model is told beside it, and
  more than rounding explains fails the file (see `rounding`);
- LiteRT on this machine, where there is no torch model, or a file has an op that is not defined here.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converters import coreml, litert
from converters.agreement import (
    ARITHMETIC,
    TOLERANCE,
    Plain,
    Probe,
    arithmetic,
    difference,
    first_parting,
)
from converters.coreml import checking as checking_package
from converters.coreml.package import read_package
from converters.coreml.program import read_program
from converters.errors import ToolError, UserError
from converters.facts import InputSpec, Normalization, sha256
from converters.litert import checking
from converters.litert.evaluation import image_input, output_layout
from converters.litert.graph import Graph, read_file, weights
from converters.litert.lowering import MAP_DIMS
from converters.litert.reference import Reference as Program
from converters.litert.reference import UnknownOpError
from converters.rounding import rms
from converters.runtimes.environments import RUNTIMES, WORKER, Runtime
from converters.runtimes.running import Task, run

# Each layer may round a value one way or the other, and the next one starts from there.
INTEGER_TOLERANCE = 0.1
# Core ML itself, which computes in float16, beside our evaluation of the same program.
COREML_TOLERANCE = 2e-2
# A package within this is not asked what rounding explains.
COREML_FLOOR = 2e-3
# Images that decide whether rounding explains an error.
JUDGED_IMAGES = 2
EMULATED_IMAGES = 4
LIMIT_S = 900.0
BATCH = 50
MAX_PIXEL = 255.0
IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TENSORFLOW_WORKER = WORKER.with_name("tensorflow_worker.py")
HOST, EVALUATOR, NATIVE = "host", "evaluator", "core-ml"


class Reference(str, Enum):
    """What a file's outputs are held against."""

    MODEL = "the torch model"
    STORED = "the file's own program in float64"
    HOST = "LiteRT on this machine"


@dataclass(frozen=True)
class Check:
    """One runtime against the reference.

    Attributes:
        runtime: "host", "arm64", ...
        version: of what ran the file; None where it was not run.
        images: how many were run.
        sparse: whether it used sparse kernels, as the linter says; None where that is unknown.
        max_relative_error: largest difference to the reference over the reference's largest value.
        top1_agreement: share of images on which both name the same class, 0 to 1.
        agrees: whether the error is within the tolerance; None where it was not run, or is the reference.
        reason: why it was not run, and what would change that; or why it does not agree.
        tolerance: that `max_relative_error` is held against; None where it is not.
    """

    runtime: str
    version: str | None = None
    images: int = 0
    sparse: bool | None = None
    max_relative_error: float | None = None
    top1_agreement: float | None = None
    agrees: bool | None = None
    reason: str | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Verification:
    """All that was found out about one file.

    Attributes:
        path: of the file.
        sha256: of its content.
        reference: what the checks compare with.
        reference_reason: why not with the torch model as it is; None where it is that one.
        model_error: largest difference of the file, run here, to the torch model as it is; None without one.
        model_agreement: share of images on which both name the same class.
        problems: what else is wrong with the file, a line each.
        checks: one for each runtime.
    """

    path: Path
    sha256: str
    reference: Reference
    reference_reason: str | None
    model_error: float | None
    model_agreement: float | None
    problems: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing that was checked is wrong."""
        return not self.problems and all(check.agrees is not False for check in self.checks)


@dataclass(frozen=True)
class _Expected:
    """What the outputs should be, and what else is known of the file; see `Verification`."""

    outputs: np.ndarray
    reference: Reference
    reason: str | None
    tolerance: float
    model: np.ndarray | None
    problems: tuple[str, ...] = ()


def verify(
    path: Path | str,
    images: np.ndarray,
    model: nn.Module | None = None,
    *,
    normalization: Normalization = IMAGENET,
    runtimes: Sequence[str] | None = None,
    emulated_images: int = EMULATED_IMAGES,
    say: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Run a file on every runtime and compare.

    Args:
        path: `.tflite` file or `.mlpackage` folder.
        images: (n, channels, height, width) plain pixels in [0, 255], n at least 1.
        model: what the file was made from, in eval mode, its zeros in its weights.
        normalization: what the model wants done to pixels first; a file that does not do it itself is given
            pixels for which that was done.
        runtimes: names of `RUNTIMES`, "tensorflow" among them; None: those that are there.
        emulated_images: how many of the images an emulated runtime is given.
        say: told what is being done.

    Raises:
        UserError: the file cannot be used, the images or the model are not its own, a runtime that was named
            is not there, or there is nothing to compare with.
    """
    path = Path(path)
    if path.suffix == ".mlpackage":
        return _verify_package(path, images, model, normalization, runtimes)
    if path.suffix != ".tflite":
        raise UserError(f"{path}: expected a .tflite or .mlpackage")
    return _verify_litert(path, images, model, normalization, runtimes, emulated_images, say)


def read_spec(path: Path | str) -> tuple[InputSpec, int]:
    """What a file expects, and how many classes it gives values for; run here to know that it can be.

    Raises:
        UserError: it is not a file that can be used, or it crashes the interpreter.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.suffix not in (".tflite", ".mlpackage"):
        raise UserError(f"{path}: expected a .tflite or .mlpackage")
    loaded: Any = coreml.load(path, native=False) if path.suffix == ".mlpackage" else litert.load(path)
    outputs = loaded.predict(np.zeros((1, *loaded.input.shape), np.float32))
    return loaded.input, int(outputs.shape[1])


# --- LiteRT ------------------------------------------------------------------------------------------------


def _verify_litert(
    path: Path,
    images: np.ndarray,
    model: nn.Module | None,
    normalization: Normalization,
    runtimes: Sequence[str] | None,
    emulated_images: int,
    say: Callable[[str], None],
) -> Verification:
    chosen, missing = _choose(runtimes)
    if model is None and not chosen:
        nothing = f"{path}: no torch model, and no other runtime, to compare LiteRT on this machine with"
        raise UserError([nothing, *(f"{check.runtime}: {check.reason}" for check in missing)])
    spec, _ = read_spec(path)
    _check_images(path, images, spec)
    fed = _laid_out(path, images if spec.range else normalized(images, normalization))
    say(f"{HOST}: {len(images)} images")
    try:
        ran = run([Task(path, fed)], RUNTIMES[HOST], limit_s=LIMIT_S)
    except ToolError as error:
        raise UserError(f"{path}: LiteRT crashes on it: {error}") from None
    raw = ran.answers[0].outputs
    if raw is None:
        raise UserError(f"{path}: LiteRT refuses it: {ran.answers[0].refused}")
    here = _shaped(path, raw)
    given = images if spec.range else normalized(images, normalization)
    expected = _expected_of_litert(path, model, normalized(images, normalization), given, here)
    checks = [_check(HOST, ran.version, here, expected, litert.lint(path, HOST).sparse)]
    for where in chosen:
        count = min(emulated_images, len(images)) if where.emulated else len(images)
        say(f"{where.name}: {count} images")
        checks.append(_run_on(where, Task(path, fed[:count]), expected))
    order = list(KNOWN)
    return _verification(
        path, expected, here, sorted([*checks, *missing], key=lambda c: order.index(c.runtime))
    )


def _choose(names: Sequence[str] | None) -> tuple[list[Runtime], list[Check]]:
    """The runtimes besides this machine's own, and those that are not there.

    Raises:
        UserError: one that was named is unknown or not there.
    """
    problems = [
        f"unknown runtime {name!r}: choose from {', '.join(KNOWN)}"
        for name in names or ()
        if name not in KNOWN
    ]
    found, missing = [], []
    for name in KNOWN if names is None else [name for name in KNOWN if name in names]:
        try:
            KNOWN[name].command()
            found.append(KNOWN[name])
        except UserError as error:
            missing.append(Check(name, reason=str(error)))
    if names is not None:
        problems += [f"{check.runtime}: {check.reason}" for check in missing]
    if problems:
        raise UserError(problems)
    return [where for where in found if where.name != HOST], missing


def _tensorflow() -> list[str]:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError("TensorFlow is not installed: pip install 'edgeprune[tensorflow]'")
    return [sys.executable, str(TENSORFLOW_WORKER)]


TENSORFLOW = Runtime(
    # Its reference kernels never leave out a zero, like those of x86 with AVX.
    "tensorflow", "TensorFlow's interpreter, reference kernels", False, "x86-avx", _tensorflow
)  # fmt: skip


KNOWN = {**RUNTIMES, TENSORFLOW.name: TENSORFLOW}


def _laid_out(path: Path, images: np.ndarray) -> np.ndarray:
    _, channels_last = image_input(read_file(path), path)
    return images.transpose(0, 2, 3, 1) if channels_last else images


def _shaped(path: Path, outputs: np.ndarray) -> np.ndarray:
    """What a runtime gave for a file as its torch model gives it."""
    graph = read_file(path)
    return output_layout(graph, image_input(graph, path)[1]).of(outputs)


def _expected_of_litert(
    path: Path, model: nn.Module | None, inputs: np.ndarray, fed: np.ndarray, here: np.ndarray
) -> _Expected:
    """What a file should give.

    Args:
        path: of the file.
        model: it was made from.
        inputs: images as the model takes them.
        fed: the same as the file takes them, channels first.
        here: what LiteRT gave.
    """
    if model is None:
        return _Expected(here, Reference.HOST, "no torch model given", TOLERANCE, None)
    outputs = _outputs(path, model, inputs, here)
    graph = read_file(path)
    integers = _computes_with_integers(path)
    if not integers and _is_exact(graph):
        tolerance = _tolerance(model, inputs, outputs, here)
        return _Expected(outputs, Reference.MODEL, None, tolerance, outputs)
    try:
        exact = checking.reference(graph, fed)
        problems = _problems_of_litert(path, model, outputs, inputs, fed)
    except UnknownOpError as error:
        return _Expected(here, Reference.HOST, f"it has an op not defined here, {error}", TOLERANCE, outputs)
    if integers:
        reason = "values are rounded to integers between the layers"
        return _Expected(exact, Reference.STORED, reason, INTEGER_TOLERANCE, outputs, problems)
    return _Expected(exact, Reference.STORED, "its weights are rounded", TOLERANCE, outputs, problems)


def _problems_of_litert(
    path: Path, model: nn.Module, outputs: np.ndarray, inputs: np.ndarray, fed: np.ndarray
) -> tuple[str, ...]:
    """Whether the file's program is further from the model than the rounding of its weights explains."""
    graph = read_file(path)
    fed, outputs = fed[:JUDGED_IMAGES], outputs[:JUDGED_IMAGES]
    exact = checking.reference(graph, fed, Program(graph, rounds=False))
    largest = difference(exact, outputs)
    if largest <= TOLERANCE:
        return ()
    off = rms([exact], [outputs])
    explained = checking.explained(graph, fed, exact, off)
    if off <= explained:
        return ()
    kept = partial(checking.tensors, graph, _laid_out(path, fed[:1]))
    return (_unexplained(off, explained, largest, model, inputs[:1], kept),)


def _unexplained(
    error: float,
    explained: float,
    largest: float,
    model: nn.Module,
    image: np.ndarray,
    kept: Callable[[], list[np.ndarray]],
) -> str:
    """What is wrong: an error that rounding does not explain, `largest` of the largest value, and where."""
    # What is as far off as the outputs are is where it begins; rounding alone takes no step as far.
    place = first_parting(model, image, kept, min(0.8 * largest, 0.2))
    return (
        f"its program is off by {error:.2g} (root mean square), where rounding its weights explains "
        f"{explained:.2g}{place}"
    )


def _tolerance(model: nn.Module, inputs: np.ndarray, outputs: np.ndarray, here: np.ndarray) -> float:
    """What float32 may be off: more than usual only where torch's own is, seen against its float64."""
    if difference(here, outputs) <= TOLERANCE:
        return TOLERANCE
    of = Probe(inputs[:JUDGED_IMAGES], inputs[:JUDGED_IMAGES], (outputs[:JUDGED_IMAGES],))
    return max(TOLERANCE, ARITHMETIC * arithmetic(model, of))


def _is_exact(graph: Graph) -> bool:
    """Whether every constant a file computes with is float32 as it was."""
    kinds = {graph.type_name(tensor) for _, tensor in weights(graph)}
    return kinds <= {"FLOAT32"}


def _computes_with_integers(path: Path) -> bool:
    graph = read_file(path)
    return any(
        graph.op_name(op) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        and graph.type_name(int(op.inputs[0])) != "FLOAT32"
        for op in graph.ops
    )


def _run_on(where: Runtime, task: Task, expected: _Expected) -> Check:
    try:
        ran = run([task], where, limit_s=LIMIT_S)
    except ToolError as error:
        return Check(where.name, images=len(task.images), agrees=False, reason=str(error))
    answer = ran.answers[0]
    if answer.outputs is None:
        reason = f"it refuses the file: {answer.refused}"
        return Check(where.name, ran.version, len(task.images), agrees=False, reason=reason)
    sparse = litert.lint(task.path, where.lint_runtime).sparse
    return _check(where.name, ran.version, _shaped(task.path, answer.outputs), expected, sparse)


# --- Core ML -----------------------------------------------------------------------------------------------


def _verify_package(
    path: Path,
    images: np.ndarray,
    model: nn.Module | None,
    normalization: Normalization,
    runtimes: Sequence[str] | None,
) -> Verification:
    if runtimes is not None:
        raise UserError(
            f"{path}: a package is run by evaluating it, and by Core ML on macOS: name no runtime"
        )
    if model is None:
        raise UserError(f"{path}: a package needs the torch model to be compared with")
    spec, _ = read_spec(path)
    _check_images(path, images, spec)
    fed = images if spec.range else normalized(images, normalization)
    here = _flat(coreml.load(path, native=False).predict(fed))
    inputs = normalized(images, normalization)
    outputs = _outputs(path, model, inputs, here)
    problems = _problems_of_package(path, model, outputs, inputs, fed, here)
    expected = _Expected(outputs, Reference.MODEL, None, COREML_TOLERANCE, outputs, problems)
    held = _check(EVALUATOR, f"coremltools {version('coremltools')}", here, expected, None)
    if held.max_relative_error is not None:  # Whether it is too much, what rounding explains decides.
        held = replace(held, agrees=not problems, reason=None, tolerance=None)
    checks = [held]
    if sys.platform == "darwin":
        native = _flat(coreml.load(path, native=True).predict(fed))
        own = replace(expected, outputs=here, tolerance=COREML_TOLERANCE)
        checks.append(_check(NATIVE, f"macOS {platform.mac_ver()[0]}", native, own, None))
    else:
        checks.append(Check(NATIVE, reason="Core ML itself runs on macOS only: run this command there"))
    return _verification(path, expected, here, checks)


def _problems_of_package(
    path: Path, model: nn.Module, outputs: np.ndarray, inputs: np.ndarray, fed: np.ndarray, here: np.ndarray
) -> tuple[str, ...]:
    """Whether a package's program is further from the model than the rounding of its constants explains."""
    largest = difference(here, outputs)
    if largest <= COREML_FLOOR:
        return ()
    contents = read_package(path)
    program = read_program(contents)
    fed, here, outputs = fed[:JUDGED_IMAGES], here[:JUDGED_IMAGES], outputs[:JUDGED_IMAGES]
    off = rms([here], [outputs])
    explained = checking_package.explained(contents, program, fed, [here], off)
    if off <= explained:
        return ()
    kept = partial(checking_package.tensors, contents, program, fed[:1])
    return (_unexplained(off, explained, largest, model, inputs[:1], kept),)


# --- Comparing ---------------------------------------------------------------------------------------------


def normalized(pixels: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Plain pixels (n, channels, h, w) in [0, 255] as a torch model takes them, float32."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (normalization.mean, normalization.std))
    result: np.ndarray = (pixels.astype(np.float32) / MAX_PIXEL - mean) / std
    return result


def compare(outputs: np.ndarray, wanted: np.ndarray) -> tuple[float | None, float]:
    """Largest difference over the largest wanted value, and the share of answers with the same largest value.

    Both are (n, classes), or (n, classes, height, width): then each pixel is an answer.

    The first is None where a value is NaN or infinite.

    >>> compare(np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.5], [3.0, 4.0]]))
    (0.75, 0.5)
    """
    same = float((outputs.argmax(1) == wanted.argmax(1)).mean())
    if not (np.isfinite(outputs).all() and np.isfinite(wanted).all()):
        return None, same
    largest = float(np.abs(wanted).max())
    difference = float(np.abs(outputs - wanted).max())
    return difference / largest if largest else difference, same


def _check(name: str, release: str, outputs: np.ndarray, expected: _Expected, sparse: bool | None) -> Check:
    count = len(outputs)
    if expected.outputs is outputs:
        return Check(name, release, count, sparse, reason="the others are compared with it")
    wanted = expected.outputs[:count]
    if outputs.shape != wanted.shape:
        reason = f"it gives {outputs.shape[1]} values, expected are {wanted.shape[1]}"
        return Check(name, release, count, sparse, agrees=False, reason=reason)
    error, same = compare(outputs, wanted)
    if error is None:
        reason = "there are NaN or infinite values in the outputs"
        return Check(name, release, count, sparse, None, same, False, reason)
    agrees = error <= expected.tolerance
    told = None if agrees else f"the error is above {expected.tolerance:g}"
    return Check(name, release, count, sparse, error, same, agrees, told, expected.tolerance)


def _verification(path: Path, expected: _Expected, here: np.ndarray, checks: Sequence[Check]) -> Verification:
    error, same = (None, None) if expected.model is None else compare(here, expected.model)
    return Verification(
        path=path,
        sha256=sha256(path),
        reference=expected.reference,
        reference_reason=expected.reason,
        model_error=error,
        model_agreement=same,
        problems=expected.problems,
        checks=tuple(checks),
    )


def _outputs(path: Path, model: nn.Module, inputs: np.ndarray, here: np.ndarray) -> np.ndarray:
    """What a torch model gives for images as it takes them, (n, classes, ...).

    Raises:
        UserError: as many values as the file gives it does not.
    """
    parts = torch.split(torch.from_numpy(np.ascontiguousarray(inputs)), BATCH)
    try:
        with torch.no_grad():
            outputs = _flat(torch.cat([Plain(model)(part)[0] for part in parts]).numpy())
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: the torch model does not take {inputs.shape[1:]} images: {line}") from None
    if outputs.shape != here.shape:
        raise UserError(
            f"{path} gives {here.shape[1]} values, the torch model {outputs.shape[1]}: "
            "it is not the model that this file was made from"
        )
    return outputs


def _flat(outputs: np.ndarray) -> np.ndarray:
    """Outputs as (n, values); maps of more than one pixel stay maps."""
    values = np.asarray(outputs, np.float32)
    is_map = values.ndim == MAP_DIMS and max(values.shape[2:]) > 1
    return values if is_map else values.reshape(len(values), -1)


def _check_images(path: Path, images: np.ndarray, spec: InputSpec) -> None:
    if images.ndim != 4 or images.shape[1:] != spec.shape or not len(images):
        wanted = ", ".join(map(str, spec.shape))
        raise UserError(f"{path}: takes images of (n, {wanted}), got {images.shape}")
