"""A Core ML program just made, held against its model before a package is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from converters import agreement, rounding
from converters.agreement import Probe
from converters.arguments import FLOAT16_LIMIT
from converters.coreml.blobs import MalformedError
from converters.coreml.constexpr import Constant
from converters.coreml.evaluation import Evaluator, result_names, takes_bgr, well_formed
from converters.coreml.package import Contents, read_package
from converters.coreml.program import Operation, Program, layer_weights, read_program
from converters.errors import ToolError, UserError

# float16 weights, computed in float32: what is above is asked what its rounding explains.
TOLERANCE = 5e-3
# Largest difference, root mean square over the layer's, that a way to store weights brings about.
ROUNDING = {"float16": 1e-3, "int8": 0.05, "6-bit": 0.15, "4-bit": 0.5}
# Rows of very different size leave the small ones few values of a table; none that was fitted is worse than
# as many evenly spaced values, half a step off everywhere.
TABLE_VALUES = {"6-bit": 64, "4-bit": 16}
# What coremltools appends to the name of a weight that it encodes.
SUFFIXES = ("_sparsified", "_quantized", "_palettized")


def check_computes(contents: Contents, model: nn.Module, of: Probe, name: str) -> None:
    """Hold a program whose weights are float16 against the torch model.

    Args:
        contents: of the package.
        model: the torch module.
        of: images and what `model` gives for them.
        name: of the file, for messages.

    Raises:
        ToolError: the program is off, and by how much, and where first; or it cannot be evaluated.
        UserError: values on the way are above what float16 holds.
    """
    try:
        program = read_program(contents)
        run = _evaluator(contents, program)
        found = run(of.fed)
    except MalformedError as reason:
        raise ToolError(f"{name}: it cannot be evaluated here, so not compared: {reason}") from reason
    _check_range(run, of, name)
    error = agreement.worst(found, of.wanted)
    off = rounding.rms(found, of.wanted)
    if error <= TOLERANCE or off <= explained(contents, program, of.fed, found, off):
        return
    if agreement.within(error, model, of):
        return

    kept = partial(tensors, contents, program, of.fed[:1])
    raise agreement.refused(name, error, model, of.inputs[:1], kept)


def explained(
    contents: Contents, program: Program, fed: np.ndarray, found: Sequence[np.ndarray], error: float
) -> float:
    """The error that the rounding of a program's constants explains; see `rounding.explained`."""

    def run(random: np.random.Generator) -> list[np.ndarray]:
        def vary(_: str, stored: Constant) -> np.ndarray:
            return rounding.stored_otherwise(stored.value, stored.encoding, random)

        return _evaluator(contents, program, vary)(fed)

    return rounding.explained(found, error, run)


def check_stored(dense: Contents, path: Path) -> None:
    """Hold a written package against the dense float16 program that it stores.

    Raises:
        ToolError: its operations are others, or a weight is further off than its storage explains.
    """
    with well_formed(path):
        program = read_program(read_package(path))
    original = read_program(dense)
    if [op.type for op in program.operations if op.type != "classify"] != [
        op.type for op in original.operations
    ]:
        raise ToolError(f"{path.name}: compression changed its operations; no file is kept")
    before = {weight.name: weight.value for weight in layer_weights(original)}
    wrong = [
        weight.name
        for weight in layer_weights(program)
        if not _close(weight.value, _original(before, weight.name), weight.encoding)
    ]
    if wrong:
        raise ToolError(
            f"{path.name}: weights further off than rounding explains: {', '.join(wrong[:5])}; "
            "no file is kept"
        )


def _close(value: np.ndarray, exact: np.ndarray | None, encoding: str) -> bool:
    if exact is None or value.shape != exact.shape or value[exact == 0].any():
        return False
    size = float(np.linalg.norm(exact.astype(np.float64)))
    off = float(np.linalg.norm(value.astype(np.float64) - exact.astype(np.float64)))
    limit = next((limit for name, limit in ROUNDING.items() if name in encoding), max(ROUNDING.values()))
    values = next((values for name, values in TABLE_VALUES.items() if name in encoding), 0)
    half_step = float(np.ptp(exact.astype(np.float64))) / (values - 1) / 2 if values else 0.0
    return bool(off <= max(limit * size, half_step * exact.size**0.5))


def _original(before: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    names = [name, *(name.removesuffix(suffix) for suffix in SUFFIXES)]
    return next((before[known] for known in names if known in before), None)


def _evaluator(contents: Contents, program: Program, vary: object = None) -> Evaluator:
    names = result_names(program)
    return Evaluator(program, names, bgr=takes_bgr(contents), vary=vary)  # type: ignore[arg-type]


def _check_range(run: Evaluator, of: Probe, name: str) -> None:
    """Refuse values that the float16 of a phone turns into infinity."""
    largest: dict[str, float] = {}

    def note(operation: Operation, value: Tensor) -> None:
        if operation.outputs[0].dtype == "FLOAT16" and value.is_floating_point() and value.numel():
            largest[operation.name] = max(largest.get(operation.name, 0.0), float(value.abs().max()))

    for image in of.fed:
        run.trace(image[None], note)
    above = [(place, value) for place, value in largest.items() if FLOAT16_LIMIT < value < float("inf")]
    if above:
        place, value = above[0]
        raise UserError(
            f"{name}: its activations reach {value:,.0f} at {place!r} (of {len(above)} places), and float16, "
            "which Core ML computes in, ends at 65,504: phones would give NaN; scale the layer down"
        )


def tensors(contents: Contents, program: Program, image: np.ndarray) -> list[np.ndarray]:
    """All that a program computes on the way, for one image (1, 3, h, w) as it takes it."""
    found: list[np.ndarray] = []
    run = _evaluator(contents, program)
    run.trace(image, lambda _, value: found.append(value.double().numpy()))
    return found
