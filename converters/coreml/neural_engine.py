"""What Apple's Neural Engine can make of a package: zeros it may skip, operations it leaves to others.

Nothing here is measured. Apple documents the first (the chapter on the performance of pruned models in the
coremltools guide); the second is that it computes in float16, and what users of it found and collected in
github.com/hollance/neural-engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.coreml.constexpr import Constant
from converters.coreml.program import Operation, Program, Reference, StoredWeight

# Zeros anywhere are skipped from this share on, rounded to whole weights in a layer's favour.
_SKIPPED_FRACTION = 0.75
_LOOKUPS = dict.fromkeys(("gather", "gather_nd", "gather_along_axis"), "looks values up")
_LEAVING = _LOOKUPS | {"lstm": "is recurrent", "gru": "is recurrent", "rnn": "is recurrent"}


def output_block(weight: np.ndarray) -> int:
    """Largest power of 2 such that zeros come in whole blocks of so many successive output channels.

    Args:
        weight: (out, in, ...); blocks start at output channel 0.

    Returns:
        1 where they come singly, or where there are none.

    >>> output_block(np.array([[0, 1], [0, 1], [1, 0], [1, 0]]))
    2
    """
    zero = weight.reshape(len(weight), -1) == 0
    if not zero.any():
        return 1
    block = 1
    while len(zero) % (2 * block) == 0:
        blocks = zero.reshape(len(zero) // (2 * block), 2 * block, -1)
        if not np.array_equal(blocks.all(1), blocks.any(1)):
            break
        block *= 2
    return block


def skips(weight: StoredWeight) -> str | None:
    """Why the Neural Engine may skip the zeros of a layer; None where it computes them like the rest."""
    if not weight.encoding.startswith("sparse"):
        return None
    if np.count_nonzero(weight.value == 0) >= math.floor(_SKIPPED_FRACTION * weight.value.size):
        return f"{weight.zero_fraction:.0%} zeros"
    block = output_block(weight.value)
    return f"zeros in blocks of {block} output channels" if block > 1 else None


def leaving_operations(program: Program) -> tuple[str, ...]:
    """Operations known to leave the Neural Engine, a line each: where, and why."""
    lines = []
    for operation in program.operations:
        reason = why_it_leaves(operation, program)
        if reason:
            lines.append(f"{operation.type} at {operation.name}: {reason}")
    return tuple(lines)


def why_it_leaves(operation: Operation, program: Program) -> str | None:
    """Why an operation is known to leave the Neural Engine; None where nothing is known against it."""
    if operation.type in _LEAVING:
        return _LEAVING[operation.type]
    if operation.type == "conv" and max(_numbers(operation, "dilations", program), default=1) > 1:
        return "is dilated"
    # Values at the border of the program are float32, and cast on the way in and out.
    if operation.type not in ("cast", "classify") and any(
        out.dtype == "FLOAT32" for out in operation.outputs
    ):
        return "is computed in float32"
    return None


def _numbers(operation: Operation, argument: str, program: Program) -> Sequence[int]:
    for value in operation.arguments.get(argument, ()):
        stored = program.constants.get(value.name) if isinstance(value, Reference) else value
        array = stored.value if isinstance(stored, Constant) else stored
        if isinstance(array, np.ndarray):
            return [int(number) for number in array.reshape(-1)]
    return []
