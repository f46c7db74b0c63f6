"""A `.tflite` file run on every runtime at hand and compared with what it should compute."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from converters.agreement import Probe, allowed, arithmetic, difference
from converters.errors import ToolError, UserError
from converters.facts import Normalization
from converters.litert import checking
from converters.litert.evaluation import image_input, load, output_layouts
from converters.litert.graph import Graph, read_file, weights
from converters.litert.linter import lint
from converters.litert.reference import Reference as Program
from converters.litert.reference import UnknownOpError
from converters.reference import (
    TOLERANCE,
    Check,
    Expected,
    Reference,
    Verification,
    check_images,
    checked,
    normalized,
    torch_outputs,
    unexplained,
    verification,
)
from converters.rounding import rms
from converters.runtimes.environments import RUNTIMES, WORKER, Runtime
from converters.runtimes.running import FileRun, run_files

# Each layer may round a value one way or the other, and the next one starts from there.
INTEGER_TOLERANCE = 0.1
LIMIT_S = 900.0
# Images that decide whether rounding explains an error.
JUDGED_IMAGES = 2
TENSORFLOW_WORKER = WORKER.with_name("tensorflow_worker.py")
HOST = "host"


def verify(
    path: Path,
    images: np.ndarray,
    model: nn.Module | None,
    normalization: Normalization,
    runtimes: Sequence[str] | None,
    emulated_images: int,
    say: Callable[[str], None],
) -> Verification:
    """See `converters.verify.verify`."""
    chosen, missing = _choose(runtimes)
    if model is None and not chosen:
        nothing = f"{path}: no torch model, and no other runtime, to compare LiteRT on this machine with"
        raise UserError([nothing, *(f"{check.runtime}: {check.reason}" for check in missing)])
    spec = load(path).input
    check_images(path, images, spec)
    fed = _laid_out(path, images if spec.range else normalized(images, normalization))
    say(f"{HOST}: {len(images)} images")
    try:
        ran = run_files([FileRun(path, fed)], RUNTIMES[HOST], limit_s=LIMIT_S)
    except ToolError as error:
        raise UserError(f"{path}: LiteRT crashes on it: {error}") from None
    raw = ran.answers[0].outputs
    if raw is None:
        raise UserError(f"{path}: LiteRT refuses it: {ran.answers[0].refused}")
    here = _shaped(path, raw)
    given = images if spec.range else normalized(images, normalization)
    expected = _expected_of_litert(path, model, normalized(images, normalization), given, here)
    checks = [checked(HOST, ran.version, here, expected, lint(path, HOST).sparse)]
    for where in chosen:
        count = min(emulated_images, len(images)) if where.emulated else len(images)
        say(f"{where.name}: {count} images")
        checks.append(_run_on(where, FileRun(path, fed[:count]), expected))
    order = list(KNOWN)
    return verification(
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


def tensors(path: Path, image: np.ndarray) -> list[np.ndarray]:
    """All that a file computes on the way for one image (1, channels, height, width), as its program says.

    Raises:
        UserError: it is no such file, or damaged, or has an op that is not defined here.
    """
    try:
        return checking.tensors(read_file(path), _laid_out(path, image))
    except UnknownOpError as error:
        raise UserError(f"{path}: it has an op not defined here, {error}") from None


def named_tensors(path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """What the ops of a file give for one image (1, channels, height, width), by the names of their tensors.

    Raises:
        UserError: it is no such file, or damaged, or has an op that is not defined here.
    """
    graph = read_file(path)
    try:
        return checking.named_tensors(graph, _laid_out(path, image))
    except UnknownOpError as error:
        raise UserError(f"{path}: it has an op not defined here, {error}") from None


def _laid_out(path: Path, images: np.ndarray) -> np.ndarray:
    _, channels_last = image_input(read_file(path), path)
    return images.transpose(0, 2, 3, 1) if channels_last else images


def _shaped(path: Path, outputs: np.ndarray) -> np.ndarray:
    """What a runtime gave for a file as its torch model gives it."""
    graph = read_file(path)
    (layout,) = output_layouts(graph, image_input(graph, path)[1])
    return layout.of(outputs)


def _expected_of_litert(
    path: Path, model: nn.Module | None, inputs: np.ndarray, fed: np.ndarray, here: np.ndarray
) -> Expected:
    """What a file should give.

    Args:
        path: of the file.
        model: it was made from.
        inputs: images as the model takes them.
        fed: the same as the file takes them, channels first.
        here: what LiteRT gave.
    """
    if model is None:
        return Expected(here, Reference.HOST, "no torch model given", TOLERANCE, None)
    outputs = torch_outputs(path, model, inputs, here)
    graph = read_file(path)
    integers = _computes_with_integers(path)
    if not integers and _is_exact(graph):
        tolerance = _tolerance(model, inputs, outputs, here)
        return Expected(outputs, Reference.MODEL, None, tolerance, outputs)
    try:
        exact = checking.reference(graph, fed)
        problems = _problems_of_litert(path, model, outputs, inputs, fed)
    except UnknownOpError as error:
        return Expected(here, Reference.HOST, f"it has an op not defined here, {error}", TOLERANCE, outputs)
    if integers:
        reason = "values are rounded to integers between the layers"
        return Expected(exact, Reference.PROGRAM, reason, INTEGER_TOLERANCE, outputs, problems)
    tolerance = checking.tolerance(graph, fed, [exact], difference(here, exact))
    return Expected(exact, Reference.PROGRAM, "its weights are rounded", tolerance, outputs, problems)


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
    return (unexplained(off, explained, largest, model, inputs[:1], kept),)


def _tolerance(model: nn.Module, inputs: np.ndarray, outputs: np.ndarray, here: np.ndarray) -> float:
    """What float32 may be off: more than usual only where torch's own is, seen against its float64."""
    of = Probe(inputs[:JUDGED_IMAGES], inputs[:JUDGED_IMAGES], (outputs[:JUDGED_IMAGES],))
    return allowed(difference(here, outputs), partial(arithmetic, model, of))


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


def _run_on(where: Runtime, task: FileRun, expected: Expected) -> Check:
    try:
        ran = run_files([task], where, limit_s=LIMIT_S)
    except ToolError as error:
        return Check(where.name, images=len(task.images), agrees=False, reason=str(error))
    answer = ran.answers[0]
    if answer.outputs is None:
        reason = f"it refuses the file: {answer.refused}"
        return Check(where.name, ran.version, len(task.images), agrees=False, reason=reason)
    sparse = lint(task.path, where.lint_runtime).sparse
    return checked(where.name, ran.version, _shaped(task.path, answer.outputs), expected, sparse)
