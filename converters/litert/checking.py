"""A `.tflite` file just made, held against its model before it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from converters import agreement, rounding
from converters.agreement import Probe
from converters.errors import ToolError
from converters.litert.apart import InterpreterApart
from converters.litert.evaluation import output_layouts, split_outputs, taken
from converters.litert.graph import Graph, weights
from converters.litert.inspection import dequantized
from converters.litert.interpreter import Refused
from converters.litert.reference import Reference, UnknownOpError

# Integers between the layers: each runtime may round one up where another rounds it down.
INTEGER_TOLERANCE = 0.1
# Of half a step of a stored integer; the rest is float32.
STEP_SLACK = 1.01


def outputs_of(content: bytes, graph: Graph, fed: np.ndarray, source: str) -> list[np.ndarray]:
    """What LiteRT here gives for images (n, channels, h, w) as the file takes them, laid out as torch does.

    A part for each output.

    Raises:
        ToolError: it does not run the file.
    """
    _, channels_last = taken(graph, Path(source))
    given = fed.transpose(0, 2, 3, 1) if channels_last else fed
    try:
        values = InterpreterApart(content, None, graph).run(np.ascontiguousarray(given))
        return split_outputs(values, output_layouts(graph, channels_last))
    except (Refused, ValueError) as reason:
        raise ToolError(f"{source}: litert-torch wrote what LiteRT does not run: {reason}") from None


def check_computes(graph: Graph, content: bytes, model: nn.Module | None, of: Probe, source: str) -> None:
    """Hold a file whose weights are float32 against the torch model.

    Args:
        graph: of the file.
        content: the file.
        model: the torch module; None where it is a Keras model.
        of: images and what `model` gives for them.
        source: the file's name, for messages.

    Raises:
        ToolError: the file is off, and by how much, and where first.
    """
    found = outputs_of(content, graph, of.fed, source)
    error = agreement.worst(found, of.wanted)
    if agreement.within(error, model, of):
        return
    if _is_right(graph, model, of):
        raise ToolError(
            f"{source}: LiteRT here does not compute what the file says: off by {error:.2g} of the largest "
            "value; no file is kept"
        )
    if model is None:
        raise ToolError(f"{source} does not compute what the model does: off by {error:.2g} of the largest")
    image = of.fed[:1].transpose(0, 2, 3, 1)
    raise agreement.refused(source, error, model, of.inputs[:1], partial(tensors, graph, image))


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
        if not _rounds(graph, tensor, exact)
    ]
    if wrong:
        raise ToolError(f"{source}: weights further off than rounding explains: {', '.join(wrong)}")


def check_runs_as_stored(graph: Graph, content: bytes, of: Probe, integers: bool, source: str) -> None:
    """Hold what LiteRT gives against what the file's own weights and ops give in float64.

    Raises:
        ToolError: it gives something else.
    """
    found = outputs_of(content, graph, of.fed, source)
    try:
        exact = references(graph, of.fed)
    except UnknownOpError:
        exact = [
            wanted if np.isfinite(part).all() else np.zeros(0)
            for part, wanted in zip(found, of.wanted, strict=True)
        ]
        integers = True
    error = agreement.worst(found, exact)
    if error > (INTEGER_TOLERANCE if integers else tolerance(graph, of.fed, exact, error)):
        raise ToolError(
            f"{source}: LiteRT here does not compute what the file says: off by {error:.2g} of the largest "
            "value; no file is kept"
        )


def references(graph: Graph, fed: np.ndarray, of: Reference | None = None) -> list[np.ndarray]:
    """What a file says should come out for images (n, channels, h, w), as torch lays it out, float64.

    A part for each output.

    Raises:
        UnknownOpError: it has an op that is not defined there.
    """
    _, channels_last = taken(graph, Path(graph.source))
    given = fed.transpose(0, 2, 3, 1) if channels_last else fed
    computed = (of or Reference(graph)).run(given)
    return split_outputs(computed.reshape(len(fed), -1), output_layouts(graph, channels_last))


def reference(graph: Graph, fed: np.ndarray, of: Reference | None = None) -> np.ndarray:
    """The same of a file of one output."""
    (exact,) = references(graph, fed, of)
    return exact


def tolerance(graph: Graph, fed: np.ndarray, exact: Sequence[np.ndarray], error: float) -> float:
    """What float32 may be off a file's own result, see `agreement.allowed`.

    Args:
        graph: of the file, without integers between its layers.
        fed: images as the file takes them.
        exact: what `references` gives for them.
        error: to be judged; where it is within the usual, nothing is computed.
    """

    def own() -> float:
        return agreement.worst(references(graph, fed, Reference(graph, dtype=torch.float32)), exact)

    return agreement.allowed(error, own)


def explained(graph: Graph, fed: np.ndarray, exact: np.ndarray, error: float) -> float:
    """The error that the rounding of a file's weights explains; see `rounding.explained`.

    Args:
        graph: of the file.
        fed: images as the file takes them.
        exact: what `reference` gives for them without rounding between the layers.
        error: to be explained.
    """

    def run(random: np.random.Generator) -> list[np.ndarray]:
        def vary(graph: Graph, tensor: int, values: np.ndarray) -> np.ndarray:
            return rounding.moved(values, _half_steps(graph, tensor, values), random)

        return [reference(graph, fed, Reference(graph, vary=vary, rounds=False))]

    return rounding.explained([exact], error, run)


def tensors(graph: Graph, image: np.ndarray) -> list[np.ndarray]:
    """All that a file computes on the way, for one image (1, ...) as it has it inside."""
    found: list[np.ndarray] = []
    Reference(graph, rounds=False).run(image, lambda _, value: found.append(value.numpy()))
    return found


def named_tensors(graph: Graph, image: np.ndarray) -> dict[str, np.ndarray]:
    """The results of the main graph's ops for one image (1, ...) as it has it inside, by name."""
    own = {int(t) for op in graph.ops for t in op.outputs if t >= 0}
    found: dict[str, np.ndarray] = {}

    def keep(tensor: int, value: Tensor) -> None:
        if tensor in own and tuple(value.shape) == tuple(graph.shape(tensor)):
            found[graph.name(tensor)] = value.numpy()

    Reference(graph, rounds=False).run(image, keep)
    return found


def _half_steps(graph: Graph, tensor: int, values: np.ndarray) -> np.ndarray:
    """How far each value of a constant may be from what it was made from."""
    kind = graph.type_name(tensor)
    if kind == "FLOAT16":
        return rounding.half_steps(values, "float16")
    quantization = graph.tensors[tensor].quantization
    if not kind.startswith(("INT", "UINT")) or quantization is None or quantization.scale is None:
        return np.zeros_like(values)
    scale = np.asarray(quantization.scale, np.float64)
    shape = [1] * values.ndim
    if len(scale) > 1:
        shape[quantization.quantizedDimension] = len(scale)
    steps: np.ndarray = np.broadcast_to(
        scale.reshape(shape) / 2 if values.ndim else scale[0] / 2, values.shape
    )
    return steps


def _is_right(graph: Graph, model: nn.Module | None, of: Probe) -> bool:
    try:
        error = agreement.worst(references(graph, of.fed), of.wanted)
    except UnknownOpError:
        return False
    return agreement.within(error, model, of)


def _rounds(graph: Graph, tensor: int, exact: np.ndarray) -> bool:
    """Whether a stored weight is `exact`, or its mirror image, up to rounding; its kernel may lie flat."""
    stored = dequantized(graph, tensor)
    slack = _half_steps(graph, tensor, stored) * STEP_SLACK + 1e-6 * np.abs(exact).max(initial=0.0)
    mirrored = exact[:, ::-1, ::-1] if exact.ndim == 4 else exact
    return any(
        bool((np.abs(stored - way) <= slack).all() and not stored[way == 0].any())
        for way in (exact.reshape(stored.shape), mirrored.reshape(stored.shape))
    )
