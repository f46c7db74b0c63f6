"""A program of one image written anew for many, with what Apple's runtime does quickly off its own systems.

It has a quick kernel for products of matrices and a slow one for convolutions, and handles rows one by one
where they are no multiple of 16 values. So values are laid out (channels, pixels * images): 1x1 convolutions
become one product for all images, and small depthwise convolutions, padding included, a product for each
channel. Only the order of sums changes; `runtime` compares the two programs before it uses this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.coreai.framework import mlir, ops
from converters.coreai.program import (
    CONSTANT,
    CONV,
    MATMULS,
    TRANSPOSE,
    MalformedError,
    constant,
    constant_array,
    main_graph,
    producer,
    shape_of,
)

PAD = "coreai.pad"
_BROADCASTING = "decomposable.broadcasting_"
# Operations on each value by itself, and those that spread the smaller of two operands over the larger.
_ALONE = {"abs", "erf", "exp", "gelu", "relu", "rsqrt", "sigmoid", "silu", "sqrt", "tanh"}
_PAIRS = {"add", "divide", "maximum", "minimum", "mul", "pow", "sub"}
_POOLING = {"max_pool_2d", "sum_pool_2d"}
_SPATIAL = [2, 3]
# A depthwise convolution becomes products where its maps have up to so many pixels for each weight of a
# kernel: they are that much quicker.
_PIXELS_PER_WEIGHT = 32
# Rows of a multiple of so many values lie one after the other in memory.
ROW = 16
_Padding = tuple[int, int, int, int]
_NONE: _Padding = (0, 0, 0, 0)


class NotBatchedError(Exception):
    """A program has an operation that is not known here; names it."""


@dataclass(frozen=True)
class _Maps:
    """What a value of the program is for many images.

    Attributes:
        value: (channels, pixels * images), or (images, channels, height, width) where `by_image`; of what
            has no pixels (images, channels).
        shape: in the program of one image.
        by_image: how it is laid out.
        padding: zeros above, below, left and right of it, still to be added.
    """

    value: Any
    shape: tuple[int, ...]
    by_image: bool
    padding: _Padding = _NONE

    @property
    def size(self) -> tuple[int, int]:
        """(height, width); (1, 1) of what has no pixels."""
        return (self.shape[2], self.shape[3]) if len(self.shape) == 4 else (1, 1)

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.size[0] * self.size[1]


def batch(module: Any, count: int) -> None:
    """Make a program that takes (1, channels, height, width) take (count, ...); in place.

    Its results are (count, ...) too.

    Raises:
        NotBatchedError: it has an operation that is not known here; the program is of no use then.
    """
    try:
        _write_anew(module, count)
    except MalformedError as reason:  # Sizes that are known when it runs, for one.
        raise NotBatchedError(str(reason)) from None


def _write_anew(module: Any, count: int) -> None:
    with module.context, mlir.Location.unknown():
        graph = main_graph(module)
        block = graph.regions[0].blocks[0]
        graphs = {
            operation.attributes["sym_name"].value: operation
            for operation in module.body.operations
            if operation.name == "coreai.graph"
        }
        (argument,) = block.arguments
        shape = shape_of(argument)
        *made, output = list(block.operations)
        argument.set_type(mlir.RankedTensorType.get([count, *shape[1:]], argument.type.element_type))
        with mlir.InsertionPoint(output):
            writer = _Writer(count, graphs)
            known = {argument: _Maps(argument, shape, by_image=True)}
            for operation in made:
                writer.write(operation, known)
            results = [writer.images(writer.maps(value, known)) for value in output.operands]
            mlir.Operation.create("coreai.output", operands=results)
        output.operation.erase()
        kind = mlir.FunctionType.get([argument.type], [value.type for value in results])
        graph.attributes["function_type"] = mlir.TypeAttr.get(kind)
        for operation in reversed(made):
            operation.operation.erase()


class _Writer:
    """Writes each operation anew, at the insertion point."""

    def __init__(self, count: int, graphs: dict[str, Any]) -> None:
        self._count = count
        self._graphs = graphs

    def maps(self, value: Any, known: dict[Any, _Maps]) -> _Maps:
        """What is known of a value, its padding done."""
        if value not in known:
            raise NotBatchedError("a constant where images are expected")
        found = known[value]
        return found if found.padding == _NONE else self._padded(found)

    def images(self, maps: _Maps) -> Any:
        """A value as the program of one image has it, with many."""
        if maps.by_image:
            return maps.value
        turned = _turn(_reshape(maps.value, (maps.shape[1] * maps.pixels, self._count)), (1, 0))
        return _reshape(turned, (self._count, *maps.shape[1:]))

    def _by_pixel(self, maps: _Maps) -> Any:
        """A value as (channels, pixels * images)."""
        if not maps.by_image:
            return maps.value
        turned = _turn(_reshape(maps.value, (self._count, maps.shape[1] * maps.pixels)), (1, 0))
        return _reshape(turned, (maps.shape[1], maps.pixels * self._count))

    def _each_channel(self, maps: _Maps) -> Any:
        """A value as (channels, pixels, images)."""
        return _reshape(self._by_pixel(maps), (maps.shape[1], maps.pixels, self._count))

    def write(self, operation: Any, known: dict[Any, _Maps]) -> None:
        """Write an operation on images; those on constants alone are read where they are needed."""
        if not any(value in known for value in operation.operands):
            return
        name = operation.name.removeprefix("coreai.").removeprefix(_BROADCASTING)
        if name == "invoke":
            self._invoke(operation, known)
            return
        (result,) = operation.results
        shape = shape_of(result)
        if len(shape) not in (2, 4) or shape[0] != 1:
            raise NotBatchedError(f"{operation.name} that gives {shape}")
        if name in _PAIRS:
            known[result] = self._pair(operation, name, known, shape)
        elif operation.name == CONV:
            known[result] = self._convolution(operation, known, shape)
        else:
            given = self.maps(operation.operands[0], known)
            known[result] = self._of_one(operation, name, given, shape)

    def _of_one(self, operation: Any, name: str, given: _Maps, shape: tuple[int, ...]) -> _Maps:
        """An operation that has nothing but constants beside what it is given."""
        if name in _ALONE:
            value = given.value if _stays(given) else self._by_pixel(given)
            return _Maps(_alone(operation, value), shape, by_image=_stays(given))
        if operation.name == PAD and (padding := zeros_around(operation)) is not None:
            return _Maps(given.value, given.shape, given.by_image, padding)
        if operation.name in MATMULS:
            return self._linear(operation, given, shape)
        if name == "reduce_mean" and len(shape) == len(given.shape) == 4:
            return self._mean(operation, given, shape)
        if name in _POOLING:
            return self._in_place(operation, given, shape)
        if name in ("reshape", "shrink_dims", "expand_dims"):
            maps = _Maps(self._by_pixel(given), shape, by_image=False)
            value = _reshape(maps.value, (shape[1], maps.pixels * self._count))
            return _Maps(value, shape, by_image=False)
        raise NotBatchedError(operation.name)

    def _invoke(self, operation: Any, known: dict[Any, _Maps]) -> None:
        """Write what a function does where it is called."""
        found = re.search(r"@([\w.$-]+)", str(operation.attributes["callee"]))
        if found is None or found[1] not in self._graphs:
            raise NotBatchedError(operation.name)
        block = self._graphs[found[1]].regions[0].blocks[0]
        inner = {
            inside: known[outside]
            for inside, outside in zip(block.arguments, operation.operands, strict=True)
            if outside in known
        }
        *made, output = list(block.operations)
        for each in made:
            self.write(each, inner)
        for result, value in zip(operation.results, output.operands, strict=True):
            known[result] = self.maps(value, inner)

    def _pair(self, operation: Any, name: str, known: dict[Any, _Maps], shape: tuple[int, ...]) -> _Maps:
        write: Callable[..., Any] = getattr(ops, f"broadcasting_{name}")
        given = [self.maps(value, known) if value in known else None for value in operation.operands]
        maps = [each for each in given if each is not None]
        by_image = all(map(_stays, maps))
        spread = len({each.pixels for each in maps}) > 1
        values = []
        for operand, each in zip(operation.operands, given, strict=True):
            if each is None:
                values.append(self._spread(operand, operation, shape, by_image, spread))
            elif by_image:
                values.append(each.value)
            else:
                values.append(self._each_channel(each) if spread else self._by_pixel(each))
        value = write(*values)
        if not by_image:
            value = _reshape(value, (shape[1], int(np.prod(shape[2:], dtype=int)) * self._count))
        return _Maps(value, shape, by_image)

    def _spread(
        self, operand: Any, operation: Any, shape: tuple[int, ...], by_image: bool, apart: bool
    ) -> Any:
        """A constant that is spread over values of a shape, laid out as they are."""
        array, element = _constant_of(operand, operation), operand.type.element_type
        if array.size == 1:
            return constant(array.reshape(()), element)
        full = array.reshape([1] * (len(shape) - array.ndim) + list(array.shape))
        if full.shape[0] != 1 or full.shape[1] != shape[1] or full.size != shape[1]:
            raise NotBatchedError("a constant that is not one number for each channel")
        if by_image:
            return constant(full, element)
        return constant(full.reshape(shape[1], *[1] * (2 if apart else 1)), element)

    def _convolution(self, operation: Any, known: dict[Any, _Maps], shape: tuple[int, ...]) -> _Maps:
        if operation.operands[0] not in known:
            raise NotBatchedError("a convolution of a constant")
        given = known[operation.operands[0]]
        kernel = _constant_of(operation.operands[1], operation)
        stride, dilation, groups = (_numbers(operation, index) for index in (2, 3, 4))
        element = given.value.type.element_type
        plain = given.padding == _NONE and tuple(stride) == (1, 1)
        if groups[0] == 1 and kernel.shape[2:] == (1, 1) and plain:
            weight = constant(np.ascontiguousarray(kernel[:, :, 0, 0]), element)
            result = ops.broadcasting_batch_matmul(weight, self._by_pixel(given))
            return _Maps(result, shape, by_image=False)
        small = given.pixels <= _PIXELS_PER_WEIGHT * kernel[0].size
        if groups[0] == given.shape[1] == len(kernel) and small:
            places = placed(kernel[:, 0], given.size, given.padding, stride, dilation)
            result = ops.broadcasting_batch_matmul(constant(places, element), self._each_channel(given))
            pixels = places.shape[1] * self._count
            return _Maps(_reshape(result, (len(kernel), pixels)), shape, by_image=False)
        return self._in_place(operation, self._padded(given), shape)

    def _linear(self, operation: Any, given: _Maps, shape: tuple[int, ...]) -> _Maps:
        """(1, in) by (in, out)."""
        weight = _constant_of(operation.operands[1], operation)
        if len(shape) != 2 or weight.ndim != 2:
            raise NotBatchedError(operation.name)
        turned = constant(np.ascontiguousarray(weight.T), given.value.type.element_type)
        result = ops.broadcasting_batch_matmul(turned, self._by_pixel(given))
        return _Maps(result, shape, by_image=False)

    def _mean(self, operation: Any, given: _Maps, shape: tuple[int, ...]) -> _Maps:
        """Over all pixels: a product with a row of equal shares."""
        if sorted(axis % 4 for axis in _numbers(operation, 1)) != _SPATIAL or shape[2:] != (1, 1):
            raise NotBatchedError(operation.name)
        shares = np.full((given.shape[1], 1, given.pixels), 1 / given.pixels, np.float32)
        share = constant(shares, given.value.type.element_type)
        result = ops.broadcasting_batch_matmul(share, self._each_channel(given))
        return _Maps(_reshape(result, (given.shape[1], self._count)), shape, by_image=False)

    def _padded(self, given: _Maps) -> _Maps:
        """Zeros around maps, by products with zeros and ones: one for the rows, one for the columns."""
        if given.padding == _NONE:
            return given
        above, below, left, right = given.padding
        height, width = given.size
        element = given.value.type.element_type
        rows = constant(np.ascontiguousarray(_placing(height, above, below).T), element)
        columns = constant(_placing(width, left, right), element)
        widened = ops.broadcasting_batch_matmul(self.images(given), columns)
        shape = (1, given.shape[1], height + above + below, width + left + right)
        return _Maps(ops.broadcasting_batch_matmul(rows, widened), shape, by_image=True)

    def _in_place(self, operation: Any, given: _Maps, shape: tuple[int, ...]) -> _Maps:
        """By the program's own operation, on images first, channels second."""
        images = self.images(given)
        constants = [
            constant(_constant_of(value, operation), value.type.element_type)
            for value in operation.operands[1:]
        ]
        kind = mlir.RankedTensorType.get([self._count, *shape[1:]], images.type.element_type)
        made = mlir.Operation.create(
            operation.name,
            results=[kind],
            operands=[images, *constants],
            attributes={each.name: each.attr for each in operation.attributes},
        )
        return _Maps(made.results[0], shape, by_image=True)


def _stays(maps: _Maps) -> bool:
    """Whether a value is as quickly handled image by image: its rows are long enough."""
    return maps.by_image and maps.shape[-1] % ROW == 0


def _alone(operation: Any, value: Any) -> Any:
    """The same operation on another value of any shape."""
    attributes = {each.name: each.attr for each in operation.attributes}
    made = mlir.Operation.create(
        operation.name, results=[value.type], operands=[value], attributes=attributes
    )
    return made.results[0]


def pad_by_products(operation: Any) -> None:
    """Write a padding of (1, channels, height, width) with zeros as two products with zeros and ones."""
    padding = zeros_around(operation)
    if padding is None:
        return
    _, _, height, width = shape_of(operation.operands[0])
    with mlir.InsertionPoint(operation):
        element = operation.results[0].type.element_type
        rows = constant(_placing(height, *padding[:2]).T, element)
        columns = constant(_placing(width, *padding[2:]), element)
        widened = ops.broadcasting_batch_matmul(operation.operands[0], columns)
        padded = ops.broadcasting_batch_matmul(rows, widened)
    operation.results[0].replace_all_uses_with(padded)
    operation.operation.erase()


def zeros_around(operation: Any) -> _Padding | None:
    """What a padding of maps with zeros adds above, below, left and right; None: it is another one."""
    amounts = _numbers(operation, 1)
    filling = float(_constant_of(operation.operands[2], operation).reshape(-1)[0])
    mode = str(operation.attributes["padding_mode"])
    if len(shape_of(operation.operands[0])) != 4 or any(amounts[:4]) or filling or "constant" not in mode:
        return None
    above, below, left, right = amounts[4:]
    return above, below, left, right


def placed(
    kernels: np.ndarray,
    size: tuple[int, int],
    padding: _Padding,
    stride: Sequence[int],
    dilation: Sequence[int],
) -> np.ndarray:
    """What each pixel of a result takes of each pixel of a map: (channels, pixels of the result, of the map).

    Args:
        kernels: (channels, rows, columns).
        size: (height, width) of the map.
        padding: above, below, left and right of it.
        stride: (vertical, horizontal).
        dilation: as there.
    """
    height, width = size
    above, below, left, right = padding
    rows, columns = kernels.shape[1:]
    high = (height + above + below - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    wide = (width + left + right - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    places = np.zeros((len(kernels), high, wide, height, width), np.float32)
    for y, x, row, column in np.ndindex(high, wide, rows, columns):
        from_row = y * stride[0] + row * dilation[0] - above
        from_column = x * stride[1] + column * dilation[1] - left
        if 0 <= from_row < height and 0 <= from_column < width:
            places[:, y, x, from_row, from_column] = kernels[:, row, column]
    return places.reshape(len(kernels), high * wide, height * width)


def _placing(count: int, before: int, after: int) -> np.ndarray:
    """(count, before + count + after) matrix that puts zeros around what it is multiplied with."""
    matrix = np.zeros((count, before + count + after), np.float32)
    matrix[np.arange(count), np.arange(count) + before] = 1
    return matrix


def _reshape(value: Any, shape: Sequence[int]) -> Any:
    if shape_of(value) == tuple(shape):
        return value
    kind = mlir.RankedTensorType.get(list(shape), value.type.element_type)
    return ops.ReshapeOp(value, _integers(shape), results=[kind]).operation.results[0]


def _turn(value: Any, order: Sequence[int]) -> Any:
    kind = mlir.RankedTensorType.get([shape_of(value)[axis] for axis in order], value.type.element_type)
    return ops.TransposeOp(value, _integers(order), results=[kind]).operation.results[0]


def _integers(numbers: Sequence[int]) -> Any:
    return constant(np.array(numbers, np.uint32), mlir.IntegerType.get_unsigned(32))


def _numbers(operation: Any, index: int) -> list[int]:
    """The integers of a constant operand."""
    return [int(number) for number in _constant_of(operation.operands[index], operation).reshape(-1)]


def _constant_of(value: Any, user: Any) -> np.ndarray:
    """The numbers of a constant, turned where the program turns them."""
    made = producer(value)
    if made is not None and made.name == TRANSPOSE:
        return np.transpose(_constant_of(made.operands[0], user), _numbers(made, 1))
    if made is None or made.name != CONSTANT:
        raise NotBatchedError(f"{user.name} of values that are computed")
    return constant_array(made)
