"""MIL operations that pick, place, order or count elements, as torch functions: see `operations`.

Indices come as tensors where the program computes them, as lists where they are fixed in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Ints = Sequence[int]


def _indices(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(values, device=like.device).long()


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.dim())) if axes is None else list(axes)


def gather(
    x: Tensor, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Entries of `x` along an axis; the axes of `indices` take its place, but for those of a batch."""
    axis %= x.dim()
    places = _indices(indices, x)
    places = torch.where(places < 0, places + x.shape[axis], places)
    if batch_dims == 0:
        found = x.index_select(axis, places.reshape(-1))
        return found.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
    if batch_dims != axis or places.dim() != batch_dims + 1:
        raise ValueError(f"gather over {batch_dims} axes of a batch along axis {axis} is not supported")
    tail = x.shape[axis + 1 :]
    wide = places.reshape(*places.shape, *[1] * len(tail)).expand(*places.shape, *tail)
    return x.gather(axis, wide)


def gather_along_axis(x: Tensor, indices: Any, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """`x[..., indices[i, j, k], ...]` along an axis, `indices` with as many axes as `x`."""
    places = _indices(indices, x)
    return torch.gather(x, axis, torch.where(places < 0, places + x.shape[axis], places))


def gather_nd(x: Tensor, indices: Any, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """Entries, or slices, of `x` at the places that the last axis of `indices` names."""
    if batch_dims:
        raise ValueError("gather_nd over axes of a batch is not supported")
    found: Tensor = x[tuple(_indices(indices, x).unbind(-1))]
    return found


UPDATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "update": lambda old, new: new,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
}


def scatter(
    data: Tensor,
    indices: Any,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with slices along an axis replaced by, or combined with, those of `updates`, in order."""
    result, axis = data, axis % data.dim()
    for number, place in enumerate(_indices(indices, data).reshape(-1).tolist()):
        place %= data.shape[axis]
        new = UPDATES[mode](result.select(axis, place), updates.select(axis, number))
        result = torch.select_scatter(result, new.to(result.dtype), axis, place)
    return result


def scatter_along_axis(
    data: Tensor,
    indices: Any,
    updates: Tensor,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """`data` with the elements that `indices` names along an axis replaced, or combined with `updates`."""
    places = _indices(indices, data)
    updates = updates.to(data.dtype)
    if mode == "update":
        return torch.scatter(data, axis, places, updates)
    ways = {"add": ("sum", updates), "sub": ("sum", -updates), "mul": ("prod", updates),
            "div": ("prod", 1 / updates), "max": ("amax", updates), "min": ("amin", updates)}  # fmt: skip
    way, values = ways[mode]
    return torch.scatter_reduce(data, axis, places, values, way)


def scatter_nd(
    data: Tensor, indices: Any, updates: Tensor, mode: str = "add", validate_indices: bool = False
) -> Tensor:
    """`data` with what the last axis of `indices` names replaced by, or added to by, `updates`."""
    if mode not in ("update", "add", "sub"):
        raise ValueError(f"scatter_nd with mode {mode!r} is not supported")
    values = (-updates if mode == "sub" else updates).to(data.dtype)
    places = tuple(_indices(indices, data).unbind(-1))
    return torch.index_put(data, places, values, accumulate=mode != "update")


def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """`x` with `x[begin:end:stride]` replaced; masks as for `slice_by_index`."""
    no = [False] * x.dim()
    picks: list[slice | int] = []
    for axis in range(x.dim()):
        if (squeeze_mask or no)[axis]:
            picks.append(begin[axis])
            continue
        first = None if (begin_mask or no)[axis] else begin[axis]
        last = None if (end_mask or no)[axis] else end[axis]
        picks.append(slice(first, last, stride[axis] if stride is not None else 1))
    result = x.clone()
    result[tuple(picks)] = update.to(x.dtype)
    return result


def topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest, or smallest, values along an axis, in order, and where they are."""
    values, places = torch.topk(x, k, axis, largest=not ascending, sorted=True)
    return (values, places.int()) if return_indices else values


def argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    """Where the values in order along an axis come from, the largest first unless `ascending`."""
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True).int()


def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Where the largest value along an axis is."""
    return x.argmax(axis, keepdim=keep_dims).int()


def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Where the smallest value along an axis is."""
    return x.argmin(axis, keepdim=keep_dims).int()


def one_hot(
    indices: Any, one_hot_vector_size: int, axis: int = -1, on_value: float = 1, off_value: float = 0
) -> Tensor:
    """A new axis, `on_value` at the place each index names and `off_value` elsewhere."""
    places = torch.as_tensor(indices).long()
    hits = places.unsqueeze(-1) == torch.arange(one_hot_vector_size)
    result = torch.where(hits, on_value, off_value)
    return result if axis in (-1, result.dim() - 1) else result.movedim(-1, axis)


def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """`x` with all but a band about the diagonal set to zero; -1 keeps a whole triangle."""
    if lower >= 0:
        x = torch.triu(x, -lower)
    return torch.tril(x, upper) if upper >= 0 else x


def cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    """Sums of all elements up to each along an axis, itself left out where `exclusive`."""
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis) - (x if exclusive else 0)
    return total.flip(axis) if reverse else total


def non_zero(x: Tensor) -> Tensor:
    """The places of all elements that are not zero, (count, axes)."""
    return torch.nonzero(x).int()


def fill(shape: Ints, value: Any = 0.0) -> Tensor:
    """A tensor of one value."""
    return torch.full([int(size) for size in shape], value)


def fill_like(ref_tensor: Tensor, value: Any = 0.0) -> Tensor:
    """A tensor of one value, of another's shape."""
    return torch.full(tuple(ref_tensor.shape), value)


def range_1d(end: Any, start: Any, step: Any) -> Tensor:
    """Numbers from `start` up to `end`, `step` apart."""
    return torch.arange(*(v.item() if isinstance(v, Tensor) else v for v in (start, end, step)))


def shape(x: Tensor) -> Tensor:
    """How long each axis is."""
    return torch.tensor(tuple(x.shape), dtype=torch.int32)


def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """The last two axes with rows and columns taken away, (before, after) of each."""
    height, width = x.shape[-2:]
    return x[..., crop_height[0] : height - crop_height[1], crop_width[0] : width - crop_width[1]]


OPERATIONS: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    function.__name__: function
    for function in (
        gather, gather_along_axis, gather_nd, scatter, scatter_along_axis, scatter_nd, slice_update, topk,
        argsort, reduce_argmax, reduce_argmin, one_hot, band_part, cumsum, non_zero, fill, fill_like,
        range_1d, shape, crop,
    )
}  # fmt: skip
