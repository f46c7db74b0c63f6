"""A Core ML package evaluated here, on macOS run by Core ML too, and compared with what it should compute."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import nn

from converters.agreement import difference
from converters.coreml import checking
from converters.coreml.evaluation import load
from converters.coreml.package import read_package
from converters.coreml.program import read_program
from converters.errors import UserError
from converters.facts import Normalization
from converters.reference import (
    Check,
    Expected,
    Reference,
    Verification,
    as_values,
    check_images,
    checked,
    normalized,
    torch_outputs,
    unexplained,
    verification,
)
from converters.rounding import rms

# Core ML itself, which computes in float16, beside our evaluation of the same program.
TOLERANCE = 2e-2
# A package within this is not asked what rounding explains; images that decide whether it does.
FLOOR = 2e-3
JUDGED_IMAGES = 2
EVALUATOR, NATIVE = "evaluator", "core-ml"


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
    if runtimes is not None:
        raise UserError(
            f"{path}: a package is run by evaluating it, and by Core ML on macOS: name no runtime"
        )
    if model is None:
        raise UserError(f"{path}: a package needs the torch model to be compared with")
    package = load(path, native=False)
    spec = package.input
    check_images(path, images, spec)
    fed = images if spec.range else normalized(images, normalization)
    here = as_values(package.predict(fed))
    inputs = normalized(images, normalization)
    outputs = torch_outputs(path, model, inputs, here)
    problems = _problems_of_package(path, model, outputs, inputs, fed, here)
    expected = Expected(outputs, Reference.MODEL, None, TOLERANCE, outputs, problems)
    held = checked(EVALUATOR, f"coremltools {version('coremltools')}", here, expected, None)
    if held.max_relative_error is not None:  # Whether it is too much, what rounding explains decides.
        held = replace(held, agrees=not problems, reason=None, tolerance=None)
    checks = [held]
    if sys.platform == "darwin":
        native = as_values(load(path, native=True).predict(fed))
        own = replace(expected, outputs=here)
        checks.append(checked(NATIVE, f"macOS {platform.mac_ver()[0]}", native, own, None))
    else:
        checks.append(Check(NATIVE, reason="Core ML itself runs on macOS only: run this command there"))
    return verification(path, expected, here, checks)


def _problems_of_package(
    path: Path, model: nn.Module, outputs: np.ndarray, inputs: np.ndarray, fed: np.ndarray, here: np.ndarray
) -> tuple[str, ...]:
    """Whether a package's program is further from the model than the rounding of its constants explains."""
    largest = difference(here, outputs)
    if largest <= FLOOR:
        return ()
    contents = read_package(path)
    program = read_program(contents)
    fed, here, outputs = fed[:JUDGED_IMAGES], here[:JUDGED_IMAGES], outputs[:JUDGED_IMAGES]
    off = rms([here], [outputs])
    explained = checking.explained(contents, program, fed, [here], off)
    if off <= explained:
        return ()
    kept = partial(checking.tensors, contents, program, fed[:1])
    return (unexplained(off, explained, largest, model, inputs[:1], kept),)
