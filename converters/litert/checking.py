"""A `.tflite` file just made, held against its model before it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from converters import agreement
from converters.agreement import Probe
from converters.errors import ToolError
from converters.litert.apart import InterpreterApart
from converters.litert.evaluation import image_input, output_layout
from converters.litert.graph import WEIGHTED_OPS, Graph, weights
from converters.litert.inspection import dequantized
from converters.litert.interpreter import Refused
from converters.litert.reference import Reference, UnknownOpError

# Integers between the layers: each runtime may round one up where another rounds it down.
INTEGER_TOLERANCE = 0.1
# Of half a step of a stored integer; the rest is float32.
STEP_SLACK = 1.01


def run(content: bytes, graph: Graph, fed: np.ndarray, source: str) -> np.ndarray:
    """What LiteRT here gives for images (n, channels, h, w) as the file takes them, laid out as torch does.

    Raises:
        ToolError: it does not run the file.
    """
    _, channels_last = image_input(graph, Path(source))
    given = fed.transpose(0, 2, 3, 1) if channels_last else fed
    try:
        values = InterpreterApart(content, None).run(np.ascontiguousarray(given))
    except Refused as reason:
        raise ToolError(f"{source}: litert-torch wrote what LiteRT does not run: {reason}") from None
    return output_layout(graph, channels_last).of(values)


def check_computes(
    graph: Graph, content: bytes, model: nn.Module | None, deployed: nn.Module | None, of: Probe, source: str
) -> None:
    """Hold a file whose weights are float32 against the torch model.

    Args:
        graph: of the file.
        content: the file.
        model: the torch module.
        deployed: `model` as it was traced, taking `of.fed`; None: say no place where the file is off.
        of: images and what `model` gives for them.
        source: the file's name, for messages.

    Raises:
        ToolError: the file is off, and by how much, and where first.
    """
    found = run(content, graph, of.fed, source)
    (wanted,) = of.wanted
    error = agreement.difference(found, wanted)
    if agreement.within(error, model, of):
        return
    if _is_right(graph, model, of):
        raise ToolError(
            f"{source}: LiteRT here does not compute what the file says: off by {error:.2g} of the largest "
            "value; no file is kept"
        )
    if deployed is None:
        raise ToolError(f"{source} does not compute what the model does: off by {error:.2g} of the largest")
    image = torch.from_numpy(of.fed[:1].transpose(0, 2, 3, 1).copy())
    raise agreement.refuse(
        source, error, deployed, image, lambda: _tensors(graph, image), agreement.TOLERANCE * 10
    )


def check_rounding(before: Sequence[np.ndarray], graph: Graph, source: str) -> None:
    """Hold stored weights against those they were made from: no further off than half a step, zeros zero.

    Args:
        before: each weight, float32, in execution order.
        graph: of the file.
        source: the file's name, for messages.

    Raises:
        ToolError: names the layers that are.
    """
    wrong = [
        graph.name(int(op.inputs[1]))
        for (op, tensor), exact in zip(weights(graph), before, strict=True)
        if not _rounds(graph, op, tensor, exact)
    ]
    if wrong:
        raise ToolError(f"{source}: weights further off than rounding explains: {', '.join(wrong)}")


def check_runs_as_stored(graph: Graph, content: bytes, of: Probe, integers: bool, source: str) -> None:
    """Hold what LiteRT gives against what the file's own weights and ops give in float64.

    Raises:
        ToolError: it gives something else.
    """
    found = run(content, graph, of.fed, source)
    try:
        exact = reference(graph, of.fed)
    except UnknownOpError:
        exact = of.wanted[0] if np.isfinite(found).all() else np.zeros(0)
        integers = True
    error = agreement.difference(found, exact)
    if error > (INTEGER_TOLERANCE if integers else agreement.TOLERANCE):
        raise ToolError(
            f"{source}: LiteRT here does not compute what the file says: off by {error:.2g} of the largest "
            "value; no file is kept"
        )


def reference(graph: Graph, fed: np.ndarray, of: Reference | None = None) -> np.ndarray:
    """What a file says should come out for images (n, channels, h, w), as torch lays it out, float64.

    Raises:
        UnknownOpError: it has an op that is not defined there.
    """
    _, channels_last = image_input(graph, Path(graph.source))
    given = fed.transpose(0, 2, 3, 1) if channels_last else fed
    computed = (of or Reference(graph)).run(given)
    return output_layout(graph, channels_last).of(computed.reshape(len(fed), -1))


def _is_right(graph: Graph, model: nn.Module | None, of: Probe) -> bool:
    try:
        error = agreement.difference(reference(graph, of.fed), of.wanted[0])
    except UnknownOpError:
        return False
    return agreement.within(error, model, of)


def _tensors(graph: Graph, image: Tensor) -> Iterable[np.ndarray]:
    found: list[np.ndarray] = []
    Reference(graph).run(image.numpy(), lambda _, value: found.append(value.numpy()))
    return found


def _rounds(graph: Graph, op: object, tensor: int, exact: np.ndarray) -> bool:
    """Whether a stored weight is `exact`, or its mirror image, up to rounding."""
    stored = dequantized(graph, tensor)
    quantization = graph.tensors[tensor].quantization
    step: np.ndarray | float = 0.0
    if graph.type_name(tensor) != "FLOAT32" and quantization is not None and quantization.scale is not None:
        shape = [1] * stored.ndim
        scale = np.asarray(quantization.scale, np.float64)
        shape[WEIGHTED_OPS[graph.op_name(op)] if len(scale) > 1 else 0] = len(scale)
        step = scale.reshape(shape)
    slack = step / 2 * STEP_SLACK + 1e-6 * np.abs(exact).max(initial=0.0)
    mirrored = exact[:, ::-1, ::-1] if exact.ndim == 4 else exact
    return any(
        bool((np.abs(stored - way) <= slack).all() and not stored[way == 0].any())
        for way in (exact, mirrored)
    )
