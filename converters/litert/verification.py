"""A `.tflite` file run on every runtime at hand and compared with what it should compute."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from converters import stored
from converters.errors import ToolError, UserError
from converters.facts import Normalization
from converters.litert.evaluation import image_input, load, output_layout
from converters.litert.graph import read_file, weights
from converters.litert.inspection import dequantized, layer_facts, torch_layout
from converters.litert.linter import lint
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
    verification,
)
from converters.runtimes.environments import RUNTIMES, WORKER, Runtime
from converters.runtimes.running import Task, run
from converters.stored import DecodedWeight

# Each layer may round a value one way or the other, and the next one starts from there.
INTEGER_TOLERANCE = 0.1
LIMIT_S = 900.0
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
        ran = run([Task(path, fed)], RUNTIMES[HOST], limit_s=LIMIT_S)
    except ToolError as error:
        raise UserError(f"{path}: LiteRT crashes on it: {error}") from None
    raw = ran.answers[0].outputs
    if raw is None:
        raise UserError(f"{path}: LiteRT refuses it: {ran.answers[0].refused}")
    here = _shaped(path, raw)
    expected = _expected_of_litert(path, model, normalized(images, normalization), here)
    checks = [checked(HOST, ran.version, here, expected, lint(path, HOST).sparse)]
    for where in chosen:
        count = min(emulated_images, len(images)) if where.emulated else len(images)
        say(f"{where.name}: {count} images")
        checks.append(_run_on(where, Task(path, fed[:count]), expected))
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


def _laid_out(path: Path, images: np.ndarray) -> np.ndarray:
    _, channels_last = image_input(read_file(path), path)
    return images.transpose(0, 2, 3, 1) if channels_last else images


def _shaped(path: Path, outputs: np.ndarray) -> np.ndarray:
    """What a runtime gave for a file as its torch model gives it."""
    graph = read_file(path)
    return output_layout(graph, image_input(graph, path)[1]).of(outputs)


def _expected_of_litert(
    path: Path, model: nn.Module | None, inputs: np.ndarray, here: np.ndarray
) -> Expected:
    if model is None:
        return Expected(here, Reference.HOST, "no torch model given", TOLERANCE, None)
    outputs = torch_outputs(path, model, inputs, here)
    if _computes_with_integers(path):
        reason = "between the layers values are rounded to integers"
        return Expected(here, Reference.HOST, reason, INTEGER_TOLERANCE, outputs)
    weights = decoded_weights(path)
    if stored.is_exact(weights):
        return Expected(outputs, Reference.MODEL, None, TOLERANCE, outputs)
    held = stored.with_stored_weights(model, torch.from_numpy(inputs[:1]), weights)
    if held.missing:
        reason = f"its weights are rounded, and have no names of the model's ({', '.join(held.missing[:3])})"
        return Expected(here, Reference.HOST, reason, TOLERANCE, outputs)
    exact = torch_outputs(path, held.model, inputs, here)
    return Expected(exact, Reference.STORED, "its weights are rounded", TOLERANCE, outputs, held.wrong)


def _computes_with_integers(path: Path) -> bool:
    graph = read_file(path)
    return any(
        graph.op_name(op) in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        and graph.type_name(int(op.inputs[0])) != "FLOAT32"
        for op in graph.ops
    )


def _run_on(where: Runtime, task: Task, expected: Expected) -> Check:
    try:
        ran = run([task], where, limit_s=LIMIT_S)
    except ToolError as error:
        return Check(where.name, images=len(task.images), agrees=False, reason=str(error))
    answer = ran.answers[0]
    if answer.outputs is None:
        reason = f"it refuses the file: {answer.refused}"
        return Check(where.name, ran.version, len(task.images), agrees=False, reason=reason)
    sparse = lint(task.path, where.lint_runtime).sparse
    return checked(where.name, ran.version, _shaped(task.path, answer.outputs), expected, sparse)


def decoded_weights(path: Path) -> list[DecodedWeight]:
    """The weights of a `.tflite` file, under the names the file gives them.

    Raises:
        UserError: it is not a `.tflite` that holds together.
    """
    graph = read_file(path)
    values = [torch_layout(graph.op_name(op), dequantized(graph, tensor)) for op, tensor in weights(graph)]
    facts = layer_facts(graph)
    return [DecodedWeight(fact.name, value, fact.encoding) for fact, value in zip(facts, values, strict=True)]
