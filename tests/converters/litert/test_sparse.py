"""The sparse encoding: smallest, exact, and strict about what it reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.litert import sparse
from converters.litert.sparse import Layout, Level


def blocky(shape: tuple[int, ...], block: tuple[int, int], zeros: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    out, in_ = shape[0], shape[-1]
    weight = random.standard_normal((out // block[0], block[0], in_ // block[1], block[1])).astype(np.float32)
    keep = random.random((out // block[0], 1, in_ // block[1], 1)) >= zeros
    return (weight * keep).reshape(shape)


@settings(deadline=None, max_examples=60)
@given(
    out=st.sampled_from([1, 4, 8, 12]),
    in_=st.sampled_from([1, 4, 16, 300, 1028]),
    block=st.sampled_from(sparse.BLOCKS),
    zeros=st.floats(0, 1),
    int8=st.booleans(),
    conv=st.booleans(),
)
def test_what_is_encoded_is_decoded(out, in_, block, zeros, int8, conv) -> None:
    random = np.random.default_rng(int(zeros * 1000))
    weight = random.standard_normal((out, 1, 1, in_) if conv else (out, in_)).astype(np.float32)
    weight[random.random(weight.shape) < zeros] = 0
    weight = np.rint(weight * 40).astype(np.int8) if int8 else weight
    if not sparse.fits(weight, block):
        return
    values, layout = sparse.encode(weight, block)
    decoded = sparse.decode(values, weight.shape, layout)
    assert np.array_equal(decoded, weight)
    assert decoded.dtype == weight.dtype
    assert values.nbytes + layout.index_bytes == sparse.encoded_bytes(weight, block)
    assert len(values) > 0, "a tensor without bytes counts as not constant"


def test_the_docstring_example() -> None:
    weight = np.array([[0, 0, 0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 0, 0, 0, 0]], np.int8)
    values, layout = sparse.encode(weight, (1, 4))
    assert values.tolist() == [5, 6, 7, 8, 1, 2, 3, 4]
    assert layout.traversal == (0, 1, 2)
    assert layout.block_map == (1,)
    assert layout.levels[1].segments.tolist() == [0, 1, 2]
    assert layout.levels[1].indices.tolist() == [1, 0]
    assert layout.block == (1, 4)


@pytest.mark.parametrize("block", [(1, 4), (4, 1)])
def test_blocks_are_found_and_need_a_quarter_of_the_indices(block: tuple[int, int]) -> None:
    weight = blocky((128, 1, 1, 128), block, 0.8)
    values, layout = sparse.smallest(weight)
    assert layout.block == block
    single_values, single = sparse.encode(weight, (1, 1))
    assert len(layout.levels[3].indices) * 4 == len(single.levels[3].indices)
    assert len(values) == len(single_values)


def test_indices_take_one_byte_up_to_255_and_two_beyond() -> None:
    narrow = sparse.encode(np.eye(4, 256, dtype=np.float32))[1]
    wide = sparse.encode(np.eye(4, 257, dtype=np.float32))[1]
    assert narrow.levels[1].indices.dtype.itemsize == 1
    assert wide.levels[1].indices.dtype.itemsize == 2


@pytest.mark.parametrize("zeros", [0.0, 0.1])
def test_few_zeros_are_stored_dense(zeros: float) -> None:
    assert sparse.smallest(blocky((64, 64), (1, 1), zeros)) is None


def test_any_traversal_is_decoded() -> None:
    """Columns before rows, as other writers may do it."""
    weight = np.array([[0, 7], [5, 0], [6, 8]], np.float32)
    levels = (Level(2), Level(None, np.array([0, 2, 4]), np.array([1, 2, 0, 2])))
    decoded = sparse.decode(np.array([5, 6, 7, 8], np.float32), (3, 2), Layout((1, 0), (), levels))
    assert np.array_equal(decoded, weight)


GOOD = sparse.encode(np.eye(4, 8, dtype=np.float32), (1, 4))[1]


def with_level(number: int, **changes: object) -> Layout:
    levels = list(GOOD.levels)
    levels[number] = dataclasses.replace(levels[number], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(GOOD, levels=tuple(levels))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (dataclasses.replace(GOOD, traversal=(0, 1)), "walk dimensions"),
        (dataclasses.replace(GOOD, traversal=(0, 1, 1)), "walk dimensions"),
        (dataclasses.replace(GOOD, traversal=(0, 2, 1)), "before the dimension it splits"),
        (dataclasses.replace(GOOD, block_map=(5,)), "split dimensions"),
        (with_level(0, size=5), "has size 5, the shape says 4"),
        (with_level(2, size=3), "do not divide"),
        (with_level(2, size=0), "do not divide"),
        (with_level(1, segments=np.array([0, 1, 2])), "3 segments for 4 parents"),
        (with_level(1, segments=np.array([0, 1, 2, 3, 9])), "do not cover"),
        (with_level(1, segments=np.array([0, 2, 1, 3, 4])), "do not cover"),
        (with_level(1, segments=np.array([1, 1, 2, 3, 4])), "do not cover"),
        (with_level(1, indices=np.array([0, 0, 0, 2])), "outside 0..1"),
        (with_level(1, indices=np.array([0, 0, -1, 0])), "outside 0..1"),
        (with_level(1, segments=np.array([0, 2, 2, 3, 4]), indices=np.array([1, 0, 0, 0])), "rising order"),
    ],
)
def test_layouts_that_disagree_are_refused(layout: Layout, message: str) -> None:
    sparse.check(16, (4, 8), GOOD)
    with pytest.raises(ValueError, match=message):
        sparse.check(16, (4, 8), layout)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="place 16 values, 12 are stored"):
        sparse.check(12, (4, 8), GOOD)
