"""A Core ML package evaluated here, on macOS run by Core ML too, and compared with what it should compute."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from converters import stored
from converters.coreml.evaluation import load, well_formed
from converters.coreml.inspection import name_layers
from converters.coreml.package import read_package
from converters.coreml.program import read_program
from converters.errors import UserError
from converters.facts import Normalization
from converters.layers import weighted_layers
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
    verification,
)
from converters.stored import DecodedWeight

# Core ML keeps biases and other constants as float16 too, which no weight of the model can be given, and
# itself computes in float16: up to 4e-3 was seen here, on a network that had learnt little.
TOLERANCE = 2e-2
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
    example = torch.from_numpy(inputs[:1])
    held = stored.with_stored_weights(model, example, decoded_weights(path, model, example))
    reason = "its weights are rounded"
    if held.missing:
        reason += f"; the model's own where they are not found: {', '.join(held.missing[:3])}"
    exact = torch_outputs(path, held.model, inputs, here)
    expected = Expected(exact, Reference.STORED, reason, TOLERANCE, outputs, held.wrong)
    checks = [checked(EVALUATOR, f"coremltools {version('coremltools')}", here, expected, None)]
    if sys.platform == "darwin":
        native = as_values(load(path, native=True).predict(fed))
        checks.append(checked(NATIVE, f"macOS {platform.mac_ver()[0]}", native, expected, None))
    else:
        checks.append(Check(NATIVE, reason="Core ML itself runs on macOS only: run this command there"))
    return verification(path, expected, here, checks)


def decoded_weights(path: Path, model: nn.Module, example: Tensor) -> list[DecodedWeight]:
    """The weights of a package, under the names of the modules they came from.

    Raises:
        UserError: it is not a package, or it is damaged.
    """
    with well_formed(path):
        contents = read_package(path)
        layers = weighted_layers(model, example)
        named = name_layers(read_program(contents), layers, contents.spec.specificationVersion)
    return [DecodedWeight(facts.name, weight.value, facts.encoding) for facts, weight in named]
