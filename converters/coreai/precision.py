"""The floating point type that a program computes with, changed throughout: what is stored stays exact.

coreai-torch gives a float32 program. Files for a phone compute in float16, as the Neural Engine does; to tell
rounding between layers from rounding of weights, a file is run widened to float32 again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from converters.coreai.framework import mlir, ops
from converters.coreai.program import (
    CAST,
    CONSTANT,
    CONV,
    DECODING,
    constant,
    constant_array,
    main_graph,
    operations,
    producer,
)
from converters.float16 import keeping_sums

RESIZE = "coreai.interpolate"
SPARSE_PARTS = ("coreai.build_sparse_with_bitmask", "coreai.lut_to_sparse_with_bitmask")


def narrow(module: Any) -> None:
    """Make a float32 program compute in float16, images and results staying float32; in place."""
    with module.context, mlir.Location.unknown():
        places = _places(module)
        filters = {producer(o.operands[1]) for o in operations(module) if o.name == CONV}
        _retype(
            module,
            mlir.F32Type.get(),
            mlir.F16Type.get(),
            lambda made, values: keeping_sums(values) if made in filters else values.astype(np.float16),
            keep=places,
        )
        _float32_at_the_border(module)


def widen(module: Any) -> None:
    """Make a float16 program compute in float32, each weight decoded as it is stored; in place."""
    with module.context, mlir.Location.unknown():
        stored = _decoding(module)
        _retype(
            module,
            mlir.F16Type.get(),
            mlir.F32Type.get(),
            lambda _, values: values.astype(np.float32),
            keep=stored,
        )
        for operation in stored:
            if operation.name in DECODING and not _feeds(operation, stored):
                _cast_after(operation, mlir.F32Type.get())
        _without_idle_casts(module)


def _places(module: Any) -> set[Any]:
    """The constants that say where resizing takes its values, which stay float32; copies of their own."""
    found = set()
    for operation in operations(module):
        if operation.name != RESIZE:
            continue
        for number in range(2, len(operation.operands)):
            with mlir.InsertionPoint(operation):
                made = producer(operation.operands[number])
                own = constant(constant_array(made), operation.operands[number].type.element_type)
                operation.operands[number] = own
            found.add(producer(own))
    return found


def _decoding(module: Any) -> set[Any]:
    """The operations that decode weights, and the constants that they take."""
    found: set[Any] = set()
    for operation in operations(module):
        if operation.name in (*DECODING, *SPARSE_PARTS):
            found.add(operation)
            found |= {made for value in operation.operands if (made := producer(value)) is not None}
    return found


def _feeds(operation: Any, others: set[Any]) -> bool:
    return any(use.owner in others for use in operation.results[0].uses)


def _retype(
    module: Any,
    before: Any,
    after: Any,
    rounded: Callable[[Any, np.ndarray], np.ndarray],
    keep: set[Any],
) -> None:
    """Change the type of all but `keep`; `rounded` gives a constant's numbers in the new type."""

    def new(kind: Any) -> Any:
        if isinstance(kind, mlir.RankedTensorType) and kind.element_type == before:
            return mlir.RankedTensorType.get(list(kind.shape), after, kind.encoding)
        return kind

    for operation in operations(module):
        if operation in keep:
            continue
        for region in operation.regions:
            for block in region.blocks:
                for argument in block.arguments:
                    argument.set_type(new(argument.type))
        if operation.name == CONSTANT and new(operation.results[0].type) != operation.results[0].type:
            with mlir.InsertionPoint(operation):
                replacement = constant(rounded(operation, constant_array(operation)), after)
            _replace(operation, replacement)
            continue
        if operation.name == "coreai.graph":
            kind = operation.attributes["function_type"].value
            changed = mlir.FunctionType.get([new(t) for t in kind.inputs], [new(t) for t in kind.results])
            operation.attributes["function_type"] = mlir.TypeAttr.get(changed)
        for result in operation.results:
            result.set_type(new(result.type))


def _replace(operation: Any, value: Any) -> None:
    operation.results[0].replace_all_uses_with(value)
    operation.operation.erase()


def _cast(value: Any, element: Any) -> Any:
    kind = mlir.RankedTensorType.get(list(value.type.shape), element)
    return ops.CastOp(kind, value).result


def _cast_after(operation: Any, element: Any) -> None:
    uses = [(use.owner, use.operand_number) for use in operation.results[0].uses]
    following = operation.operation.next_op if hasattr(operation.operation, "next_op") else None
    point = mlir.InsertionPoint(following) if following is not None else mlir.InsertionPoint.after(operation)
    with point:
        widened = _cast(operation.results[0], element)
    for owner, number in uses:
        owner.operands[number] = widened


def _float32_at_the_border(module: Any) -> None:
    """Give the main function float32 arguments and results, cast inside."""
    graph = main_graph(module)
    block = graph.regions[0].blocks[0]
    single, half = mlir.F32Type.get(), mlir.F16Type.get()
    for argument in block.arguments:
        argument.set_type(mlir.RankedTensorType.get(list(argument.type.shape), single))
        uses = [(use.owner, use.operand_number) for use in argument.uses]
        with mlir.InsertionPoint.at_block_begin(block):
            inside = _cast(argument, half)
        for owner, number in uses:
            owner.operands[number] = inside
    output = next(operation for operation in block.operations if operation.name == "coreai.output")
    for number, value in enumerate(list(output.operands)):
        with mlir.InsertionPoint(output):
            output.operands[number] = _cast(value, single)
    kind = mlir.FunctionType.get(
        [argument.type for argument in block.arguments], [value.type for value in output.operands]
    )
    graph.attributes["function_type"] = mlir.TypeAttr.get(kind)


def _without_idle_casts(module: Any) -> None:
    for operation in operations(module):
        if operation.name == CAST and operation.results[0].type == operation.operands[0].type:
            _replace(operation, operation.operands[0])
