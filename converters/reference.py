"""What a file's outputs are held against, and how far they may be from it.

Each runtime's outputs are held against a reference:

- the torch model, for a file whose weights are float32, and for a package;
- the file's own program with the weights it holds, computed in float64 by torch, where weights were rounded:
  so that only the runtime's arithmetic is judged. How far that is from the torch model is told beside it, and
  more than rounding explains fails the file (see `converters.rounding`);
- the torch model with the file's own decoded weights, for a program that only its own runtime computes;
- the format's runtime on this machine, where there is no torch model, or a file has an op that is not defined
  here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import nn

from converters.agreement import Plain, first_parting
from converters.errors import UserError
from converters.facts import InputSpec, Normalization, sha256

TOLERANCE = 1e-4
BATCH = 50
MAX_PIXEL = 255.0
ROWS_DIMS, MAP_DIMS = 3, 4


class Reference(str, Enum):
    """What a file's outputs are held against."""

    MODEL = "the torch model"
    STORED = "the torch model holding the file's own weights"
    PROGRAM = "the file's own program in float64"
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
class Expected:
    """What the outputs should be, and what else is known of the file; see `Verification`."""

    outputs: np.ndarray
    reference: Reference
    reason: str | None
    tolerance: float
    model: np.ndarray | None
    problems: tuple[str, ...] = ()


def normalized(pixels: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Plain pixels (n, channels, h, w) in [0, 255] as a torch model takes them, float32."""
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (normalization.mean, normalization.std))
    result: np.ndarray = (pixels.astype(np.float32) / MAX_PIXEL - mean) / std
    return result


def compare(outputs: np.ndarray, wanted: np.ndarray) -> tuple[float | None, float]:
    """Largest difference over the largest wanted value, and the share of answers with the same largest value.

    Both are (n, classes); or (n, classes, height, width), then each pixel is an answer; or (n, boxes,
    values), then each box is.

    The first is None where a value is NaN or infinite.

    >>> compare(np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[1.0, 2.5], [3.0, 4.0]]))
    (0.75, 0.5)
    """
    axis = 2 if outputs.ndim == ROWS_DIMS else 1
    same = float((outputs.argmax(axis) == wanted.argmax(axis)).mean())
    if not (np.isfinite(outputs).all() and np.isfinite(wanted).all()):
        return None, same
    largest = float(np.abs(wanted).max())
    difference = float(np.abs(outputs - wanted).max())
    return difference / largest if largest else difference, same


def checked(name: str, release: str, outputs: np.ndarray, expected: Expected, sparse: bool | None) -> Check:
    """Hold what a runtime gave against what is expected; `sparse` is what the linter says of it."""
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


def verification(path: Path, expected: Expected, here: np.ndarray, checks: Sequence[Check]) -> Verification:
    """All of it; `here` is what the file gave on this machine, (n, classes, ...)."""
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


def torch_outputs(path: Path, model: nn.Module, inputs: np.ndarray, here: np.ndarray) -> np.ndarray:
    """What a torch model gives for images as it takes them, (n, classes, ...).

    Raises:
        UserError: as many values as the file gives it does not.
    """
    parts = torch.split(torch.from_numpy(np.ascontiguousarray(inputs)), BATCH)
    try:
        with torch.no_grad():
            outputs = as_values(torch.cat([Plain(model)(part)[0] for part in parts]).numpy())
    except RuntimeError as error:
        line = str(error).splitlines()[0]
        raise UserError(f"{path}: the torch model does not take {inputs.shape[1:]} images: {line}") from None
    if outputs.shape != here.shape:
        raise UserError(
            f"{path} gives {here.shape[1]} values, the torch model {outputs.shape[1]}: "
            "it is not the model that this file was made from"
        )
    return outputs


def unexplained(
    error: float,
    explained: float,
    largest: float,
    model: nn.Module,
    image: np.ndarray,
    kept: Callable[[], list[np.ndarray]],
) -> str:
    """What is wrong with a file whose error rounding does not explain, and where it begins.

    Args:
        error: root mean square, relative.
        explained: the same, by `converters.rounding`.
        largest: the largest error over the largest value.
        model: the torch module.
        image: (1, channels, height, width), as it takes it.
        kept: gives all that the file computed on the way, for the same image.
    """
    # The outputs of one image may be less far off than those of another; no step is, by rounding alone.
    place = first_parting(model, image, kept, min(0.4 * largest, 0.2))
    return (
        f"its program is off by {error:.2g} (root mean square), where rounding its weights explains "
        f"{explained:.2g}{place}"
    )


def as_values(outputs: np.ndarray) -> np.ndarray:
    """Outputs as (n, values); maps of more than one pixel stay maps, rows of boxes rows."""
    values = np.asarray(outputs, np.float32)
    is_map = values.ndim == MAP_DIMS and max(values.shape[2:]) > 1
    return values if is_map or values.ndim == ROWS_DIMS else values.reshape(len(values), -1)


def check_images(path: Path, images: np.ndarray, spec: InputSpec) -> None:
    """Refuse images that a file does not take.

    Raises:
        UserError: they are not (n, channels, height, width) of its size, n at least 1.
    """
    if images.ndim != 4 or images.shape[1:] != spec.shape or not len(images):
        wanted = ", ".join(map(str, spec.shape))
        raise UserError(f"{path}: takes images of (n, {wanted}), got {images.shape}")
