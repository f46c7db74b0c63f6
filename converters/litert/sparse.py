"""Sparse tensors as TFLite stores them: which encoding is smallest, writing it, and reading any of them back.

A tensor is walked dimension by dimension in a stated order, blocks last. A dense dimension visits every
position; a sparse one keeps, for each parent, a run of an index array (compressed rows). For a weight of
(out, in) = (2, 8) with the zeros in blocks of one output by four inputs

    [[0 0 0 0 5 6 7 8]         rows dense, block columns sparse, four values a block:
     [1 2 3 4 0 0 0 0]]        segments [0 1 2], indices [1 0], values [5 6 7 8 1 2 3 4]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# Blocks (out, in) tried for each weight, single weights first. Four is what every runtime measured reads back
# right, and what the pruning patterns make.
BLOCKS = ((1, 1), (1, 4), (4, 1))
# The format's fixed cost of one sparse tensor beside its arrays: tables, lengths, a tensor, an operator.
OVERHEAD_BYTES = 400


@dataclass(frozen=True)
class Level:
    """One step of the walk: `size` positions if dense, else runs of `indices` bounded by `segments`."""

    size: int | None
    segments: np.ndarray | None = None
    indices: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """Where the stored values belong.

    Attributes:
        traversal: for each level the dimension it walks; the tensor's own are 0..rank-1, blocks follow.
        block_map: for each block dimension the tensor's dimension it splits.
        levels: one for each entry of `traversal`.
    """

    traversal: tuple[int, ...]
    block_map: tuple[int, ...]
    levels: tuple[Level, ...]

    @property
    def index_bytes(self) -> int:
        """Bytes of all segments and indices as stored."""
        arrays = [a for level in self.levels for a in (level.segments, level.indices) if a is not None]
        return sum(a.nbytes for a in arrays)

    @property
    def block(self) -> tuple[int, int]:
        """(out, in) values that share one index, for a weight whose first dimension is out and last is in."""
        rank = len(self.traversal) - len(self.block_map)
        sizes = [level.size or 1 for level in self.levels[rank:]]
        out = math.prod(s for s, d in zip(sizes, self.block_map, strict=True) if d == 0)
        return out, math.prod(sizes) // out


def smallest(weight: np.ndarray) -> tuple[np.ndarray, Layout] | None:
    """Encode a weight in the smallest of the encodings tried, or None where stored dense it is smaller.

    Args:
        weight: (out, ..., in), all dimensions between of size 1.

    Returns:
        The stored values, (n,), and their layout.
    """
    best = min(
        (block for block in BLOCKS if fits(weight, block)), key=lambda block: encoded_bytes(weight, block)
    )
    if encoded_bytes(weight, best) + OVERHEAD_BYTES >= weight.nbytes:
        return None
    return encode(weight, best)


def fits(weight: np.ndarray, block: tuple[int, int]) -> bool:
    """Whether blocks divide the weight."""
    return not (weight.shape[0] % block[0] or weight.shape[-1] % block[1])


def encoded_bytes(weight: np.ndarray, block: tuple[int, int]) -> int:
    """Bytes of values, segments and indices, without building them."""
    occupied = _occupied(weight, block)
    rows, columns = occupied.shape
    count = int(np.count_nonzero(occupied))
    indices = (rows + 1) * _index_dtype(count).itemsize + count * _index_dtype(columns - 1).itemsize
    return int(count * block[0] * block[1] * weight.itemsize + indices)


def encode(weight: np.ndarray, block: tuple[int, int] = (1, 1)) -> tuple[np.ndarray, Layout]:
    """Encode a weight of (out, ..., in), all dimensions between of size 1, in blocks of (out, in).

    Returns:
        The stored values, (n,), and their layout.
    """
    occupied = _occupied(weight, block)
    rows, columns = np.nonzero(occupied)
    values = _blocks(weight, block)[rows, columns].reshape(-1)
    segments = np.concatenate([[0], np.cumsum(np.count_nonzero(occupied, axis=1))])
    compressed = Level(
        None,
        segments.astype(_index_dtype(len(rows))),
        columns.astype(_index_dtype(occupied.shape[1] - 1)),
    )
    rank = weight.ndim
    levels = [Level(occupied.shape[0]), *[Level(1)] * (rank - 2), compressed]
    split = [(dim, size) for dim, size in ((0, block[0]), (rank - 1, block[1])) if size > 1]
    levels += [Level(size) for _, size in split]
    return values, Layout(tuple(range(len(levels))), tuple(dim for dim, _ in split), tuple(levels))


def decode(values: np.ndarray, shape: tuple[int, ...], layout: Layout) -> np.ndarray:
    """The dense tensor of any valid layout.

    Raises:
        ValueError: values, shape and layout disagree.
    """
    check(len(values), shape, layout)
    strides = _strides(shape, layout)
    position = np.zeros(1, np.int64)  # of each node of the walk so far, in the flat dense tensor
    for dim, level in zip(layout.traversal, layout.levels, strict=True):
        if level.size is not None:
            steps = np.arange(level.size, dtype=np.int64) * strides[dim]
            position = (position[:, None] + steps[None, :]).reshape(-1)
        else:
            segments, indices = _arrays(level)
            position = np.repeat(position, np.diff(segments)) + indices[: segments[-1]] * strides[dim]
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[position] = values
    return dense.reshape(shape)


def check(value_count: int, shape: tuple[int, ...], layout: Layout) -> None:
    """Refuse a layout that does not describe exactly `value_count` values within `shape`.

    Raises:
        ValueError: says what disagrees.
    """
    rank, blocks = len(shape), len(layout.block_map)
    if sorted(layout.traversal) != list(range(rank + blocks)) or len(layout.levels) != rank + blocks:
        raise ValueError(
            f"sparsity parameters walk dimensions {list(layout.traversal)} with {blocks} blocks of a tensor "
            f"of {rank} dimensions"
        )
    if any(not 0 <= dim < rank for dim in layout.block_map) or len(set(layout.block_map)) != blocks:
        raise ValueError(f"sparsity parameters split dimensions {list(layout.block_map)} of {rank}")
    if set(layout.traversal[:rank]) != set(range(rank)):
        raise ValueError("sparsity parameters walk a block before the dimension it splits")
    if math.prod(shape) == 0:
        raise ValueError(f"a sparse tensor of shape {list(shape)} holds nothing")
    extents = _extents(shape, layout)
    nodes = 1
    for number, (dim, level) in enumerate(zip(layout.traversal, layout.levels, strict=True)):
        extent = extents[dim]
        if level.size is not None:
            if level.size != extent:
                raise ValueError(f"sparse dimension {dim} has size {level.size}, the shape says {extent}")
            nodes *= level.size
        else:
            if number >= rank:
                raise ValueError("a block dimension must be dense")
            nodes = _check_compressed(level, nodes, extent, dim)
    if nodes != value_count:
        raise ValueError(f"sparsity parameters place {nodes:,} values, {value_count:,} are stored")


def from_table(table: Any) -> Layout:
    """Read the schema's `SparsityParametersT`.

    Raises:
        ValueError: it is incomplete.
    """
    if table.traversalOrder is None or not table.dimMetadata:
        raise ValueError("sparsity parameters are incomplete")
    levels = []
    for entry in table.dimMetadata:
        if entry.format == 0:
            levels.append(Level(int(entry.denseSize)))
        elif entry.format == 1:
            levels.append(Level(None, _values(entry.arraySegments), _values(entry.arrayIndices)))
        else:
            raise ValueError(f"sparse dimension format {entry.format} is unknown")
    block_map = () if table.blockMap is None else tuple(int(d) for d in table.blockMap)
    return Layout(tuple(int(d) for d in table.traversalOrder), block_map, tuple(levels))


def _blocks(weight: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(out, ..., in) -> (out / block out, in / block in, block out, block in)."""
    out, in_ = weight.shape[0], weight.shape[-1]
    return weight.reshape(out // block[0], block[0], in_ // block[1], block[1]).transpose(0, 2, 1, 3)


def _occupied(weight: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Which blocks hold anything, (out / block out, in / block in) bool.

    One is kept where none does: the runtime takes a tensor without any bytes for one that is not constant.
    """
    found: np.ndarray = (_blocks(weight, block) != 0).any(axis=(2, 3))
    found[0, 0] |= not found.any()
    return found


def _index_dtype(largest: int) -> np.dtype[Any]:
    """The smallest index type of the format that holds `largest`."""
    return np.dtype("u1") if largest <= 255 else np.dtype("<u2") if largest <= 65535 else np.dtype("<i4")


def _values(vector: Any) -> np.ndarray:
    if vector is None or vector.values is None:
        raise ValueError("a sparse dimension has no segments or no indices")
    values = np.asarray(vector.values)
    return values if values.dtype.kind in "iu" else np.zeros(0, np.int32)


def _arrays(level: Level) -> tuple[np.ndarray, np.ndarray]:
    if level.segments is None or level.indices is None:
        raise ValueError("a sparse dimension has no segments or no indices")
    return level.segments.astype(np.int64), level.indices.astype(np.int64)


def _extents(shape: tuple[int, ...], layout: Layout) -> dict[int, int]:
    """Positions along each walked dimension: blocks take their size, what they split is divided by it."""
    rank = len(shape)
    extents = dict(enumerate(shape))
    for number, dim in enumerate(layout.traversal):
        if dim < rank:
            continue
        size, owner = layout.levels[number].size, layout.block_map[dim - rank]
        if not size or size < 1 or shape[owner] % size:
            raise ValueError(f"blocks of {size} do not divide dimension {owner} of shape {list(shape)}")
        extents[owner] = shape[owner] // size
        extents[dim] = size
    return extents


def _strides(shape: tuple[int, ...], layout: Layout) -> list[int]:
    """Distance in the flat dense tensor between neighbours along each walked dimension, blocks last."""
    rank = len(shape)
    strides = [math.prod(shape[dim + 1 :]) for dim in range(rank)]
    blocks = [strides[owner] for owner in layout.block_map]
    for dim, level in zip(layout.traversal[rank:], layout.levels[rank:], strict=True):
        strides[layout.block_map[dim - rank]] *= level.size or 1
    return strides + blocks


def _check_compressed(level: Level, parents: int, extent: int, dim: int) -> int:
    """Check one compressed dimension; returns how many positions it keeps."""
    segments, indices = _arrays(level)
    if len(segments) != parents + 1:
        raise ValueError(f"sparse dimension {dim} has {len(segments):,} segments for {parents:,} parents")
    if segments[0] != 0 or (np.diff(segments) < 0).any() or segments[-1] != len(indices):
        raise ValueError(
            f"segments of sparse dimension {dim} do not cover its {len(indices):,} indices in order"
        )
    if len(indices) and (indices.min() < 0 or indices.max() >= extent):
        raise ValueError(f"an index of sparse dimension {dim} is outside 0..{extent - 1}")
    rows = np.repeat(np.arange(parents), np.diff(segments))
    if len(indices) > 1 and ((np.diff(indices) <= 0) & (rows[1:] == rows[:-1])).any():
        raise ValueError(f"indices of sparse dimension {dim} are not in rising order")
    return len(indices)
