from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from edgeprune.errors import UserError
from edgeprune.pruning import patterns
from edgeprune.pruning.patterns import Block, Channels, NofM, Unstructured, smallest

sparsities = st.floats(0, 0.99)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_smallest_marks_exactly_the_count_even_with_ties(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    marked = smallest(scores, count)
    assert int(marked.sum()) == count
    if 0 < count < len(values):
        assert scores[marked].max() <= scores[~marked].min()


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from([5, 40, 4000]),
    st.sampled_from(["normal", "ties", "zeros", "sorted", "falling", "constant", "negative", "spikes"]),
    st.floats(0, 1),
    st.integers(0, 100),
)
def test_smallest_is_the_start_of_a_stable_sort(count, kind, share, seed):
    """Also where only a sample is sorted, and where the sample misleads."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, generator=generator).abs()
    if kind == "ties":
        scores = scores.mul(2).round()
    elif kind == "zeros":
        scores[scores < 0.7] = 0
    elif kind == "constant":
        scores.fill_(1.5)
    elif kind == "negative":
        scores = -scores
    elif kind == "spikes":
        scores[:: max(count // 16, 1) | 1] *= 1e6  # Just where the sample looks.
    elif kind != "normal":
        scores = scores.sort(descending=kind == "falling").values
    wanted = round(share * count)
    expected = torch.zeros(count, dtype=torch.bool)
    expected[scores.argsort(stable=True)[:wanted]] = True
    with mock_limits(direct=8, sample=16):
        assert torch.equal(smallest(scores, wanted), expected)


def test_a_large_selection_is_exact():
    scores = torch.rand(3 * patterns.DIRECT_COUNT).mul(1e5).round()  # With ties.
    expected = torch.zeros(len(scores), dtype=torch.bool)
    expected[scores.argsort(stable=True)[:400_000]] = True
    assert torch.equal(smallest(scores, 400_000), expected)


@contextmanager
def mock_limits(direct: int, sample: int) -> Iterator[None]:
    """Small limits, so that small examples go the way of large ones."""
    before = patterns.DIRECT_COUNT, patterns.SAMPLE_COUNT
    patterns.DIRECT_COUNT, patterns.SAMPLE_COUNT = direct, sample
    try:
        yield
    finally:
        patterns.DIRECT_COUNT, patterns.SAMPLE_COUNT = before


def test_ties_are_broken_by_index():
    assert smallest(torch.ones(6), 3).tolist() == [True, True, True, False, False, False]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), sparsities
)
def test_blocks_are_whole_and_as_many_as_asked_for(rows, columns, kernel, out, in_, sparsity):
    weight = torch.randn(rows * out, columns * in_, kernel, kernel)
    mask = Block(out, in_).mask(weight.abs(), sparsity)
    blocks = mask.reshape(rows, out, columns, in_, kernel, kernel).permute(0, 2, 4, 5, 1, 3).flatten(4)
    assert bool((blocks.all(-1) | ~blocks.any(-1)).all())
    dropped = int((~blocks.any(-1)).sum())
    assert dropped == round(sparsity * rows * columns * kernel * kernel)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), sparsities)
def test_single_weights_are_within_one_of_the_target(rows, columns, sparsity):
    mask = Unstructured().mask(torch.randn(rows, columns).abs(), sparsity)
    assert abs(int((~mask).sum()) - sparsity * rows * columns) <= 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 8), st.data())
def test_n_of_m_keeps_exactly_n_in_every_group(rows, groups, of, data):
    keep = data.draw(st.integers(1, of - 1))
    importance = torch.randint(0, 3, (rows, groups * of)).float()  # full of ties
    mask = NofM(keep, of).mask(importance, 1 - keep / of)
    assert (mask.reshape(rows, groups, of).sum(-1) == keep).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 9), st.data())
def test_n_of_m_drops_the_first_of_equals(rows, groups, of, data):
    keep = data.draw(st.integers(1, of - 1))
    importance = torch.randint(0, 3, (rows, groups * of, 2)).float()
    expected = torch.ones_like(importance, dtype=torch.bool)
    for row in range(rows):
        for group in range(groups):
            for place in range(2):
                part = importance[row, group * of : (group + 1) * of, place]
                expected[row, group * of + part.argsort(stable=True)[: of - keep], place] = False
    assert torch.equal(NofM(keep, of).mask(importance, 1 - keep / of), expected)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 5), sparsities)
def test_channels_go_whole(out, in_, sparsity):
    importance = torch.randint(0, 3, (out, in_, 2, 2)).float()
    kept = Channels().mask(importance, sparsity).flatten(1)
    assert torch.equal(kept.all(1), kept.any(1))
    expected = torch.ones(out, dtype=torch.bool)
    expected[importance.flatten(1).sum(1).argsort(stable=True)[: round(sparsity * out)]] = False
    assert torch.equal(kept.any(1), expected)


def test_n_of_m_on_the_way_drops_only_what_the_pattern_will_drop():
    importance = torch.rand(8, 16)
    full = NofM(2, 4).mask(importance, 0.5)
    half_way = NofM(2, 4).mask(importance, 0.25)
    assert int((~half_way).sum()) == 32
    assert bool((half_way | ~full).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Block(0, 4), "both sides must be 1 or more"),
        (lambda: NofM(4, 4), "keep must be from 1 to of - 1"),
        (lambda: NofM(0, 4), "keep must be from 1 to of - 1"),
    ],
)
def test_senseless_patterns_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
