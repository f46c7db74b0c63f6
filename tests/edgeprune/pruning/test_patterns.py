import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import Block, NofM, Unstructured, smallest

sparsities = st.floats(0, 0.99)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_smallest_marks_exactly_the_count_even_with_ties(values, data):
    scores = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    marked = smallest(scores, count)
    assert int(marked.sum()) == count
    if 0 < count < len(values):
        assert scores[marked].max() <= scores[~marked].min()


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
