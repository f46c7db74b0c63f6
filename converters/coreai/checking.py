"""A Core AI program just made, run by Apple's runtime and held against its model before a file is kept."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from converters import agreement
from converters.agreement import Probe
from converters.arguments import FLOAT16_LIMIT
from converters.coreai.apart import RuntimeApart, tensors_of
from converters.errors import ToolError, UserError

# With constants rounded to float16; what is above may be as far off as torch's own float16, and so much more.
FLOAT16_TOLERANCE, FLOAT16_ARITHMETIC = 2e-2, 5.0


def check_computes(content: bytes, model: nn.Module, of: Probe, name: str) -> None:
    """Hold a float32 program against the torch model.

    Args:
        content: of the program.
        model: the torch module.
        of: images and what `model` gives for them.
        name: of what is checked, for messages.

    Raises:
        ToolError: the program is off, and by how much, and where first; or Apple's runtime does not run it.
    """
    error = agreement.worst(_run(content, of, name), of.wanted)
    if not agreement.within(error, model, of):
        kept = partial(tensors_of, Path(name), content, of.fed[:1])
        raise agreement.refused(name, error, model, of.inputs[:1], kept)


def check_narrow(content: bytes, model: nn.Module, of: Probe, name: str) -> None:
    """Hold a float16 program, weights not yet compressed, against the torch model, computing in float32.

    In float16 the plain kernels of this machine take minutes for an image of a transformer.

    Args:
        content: see `check_computes`, as for the other arguments.
        model: as there.
        of: as there.
        name: as there.

    Raises:
        UserError: values on the way are above what float16 holds.
        ToolError: the program is further off than float16 explains, and where first.
    """
    tensors = _tensors(content, of, name)
    # What a maximum is taken over is padded with minus infinity, which float16 has.
    reached = (np.where(np.isneginf(values), 0, np.abs(values)) for values in tensors)
    largest = max((float(values.max(initial=0.0)) for values in reached), default=0.0)
    if not largest <= FLOAT16_LIMIT:
        raise UserError(
            f"{name}: its activations reach {largest:,.0f}, and float16, which phones compute in, ends at "
            "65,504: scale the layers with large activations down"
        )
    error = max(_nearest(tensors, wanted[:1]) for wanted in of.wanted)
    if error > FLOAT16_TOLERANCE and error > FLOAT16_ARITHMETIC * _half(model, of):
        raise agreement.refused(name, error, model, of.inputs[:1], lambda: tensors)


def _tensors(content: bytes, of: Probe, name: str) -> list[np.ndarray]:
    """All that a program computes on the way for the first image."""
    try:
        return tensors_of(Path(name), content, of.fed[:1])
    except UserError as reason:
        raise ToolError(f"Apple's runtime does not run what was made of the program: {reason}") from None


def _nearest(tensors: list[np.ndarray], wanted: np.ndarray) -> float:
    """How far the tensor that is most like an output is from it."""
    alike = [tensor for tensor in tensors if tensor.size == wanted.size]
    return min((agreement.difference(tensor, wanted) for tensor in alike), default=float("inf"))


def _run(content: bytes, of: Probe, name: str) -> list[np.ndarray]:
    try:
        runtime = RuntimeApart(Path(name), content, "float16", of.fed.shape[1:])
        return runtime.run(of.fed)
    except UserError as reason:
        raise ToolError(f"Apple's runtime does not run what coreai-torch wrote: {reason}") from None


def _half(model: nn.Module, of: Probe) -> float:
    """How far torch's own float16 is off on these images; 0 where the model has none."""
    try:
        found = agreement.answers(copy.deepcopy(model).half(), of.inputs.astype(np.float16))
    except Exception:  # Whatever the model's own code raises on another type.
        return 0.0
    return agreement.worst(found, of.wanted)
