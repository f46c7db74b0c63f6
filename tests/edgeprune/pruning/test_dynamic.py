"""RigL: the count of blocks never changes, whole blocks move, by magnitude out and by gradient in."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning import Block, NofM, Rule, Unstructured
from edgeprune.pruning.allocation.shares import erdos_renyi
from edgeprune.pruning.dynamic import RigL, moved


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, width, 1), nn.ReLU(), nn.Conv2d(width, 32, 1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * 4, 8), nn.Linear(8, 3))


def train(model: nn.Module, rigl: RigL, steps: int, after=lambda: None, seed: int = 0) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8, 2, 2, generator=generator)).square().mean().backward()
        optimizer.step()
        rigl.step()
        after()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    width=st.integers(2, 10).map(lambda n: 4 * n),
    sparsity=st.floats(0.1, 0.95),
    pattern=st.sampled_from([Unstructured(), Block(1, 4), Block(4, 1), Block(2, 2)]),
    every=st.integers(1, 3),
)
def test_counts_and_blocks_are_exact_at_every_step(width, sparsity, pattern, every):
    model = network(width)
    rigl = RigL(model, [Rule(pattern, sparsity)], steps=12, every=every, share=0.5)
    layers = {name: model.get_submodule(name) for name in rigl.finalize()}
    first = [mask.clone() for mask in rigl.state_dict()["masks"]]
    wanted = [int((~mask).sum()) for mask in first]

    def check() -> None:
        for layer, mask, zeros in zip(layers.values(), rigl.state_dict()["masks"], wanted, strict=True):
            assert int((~mask).sum()) == zeros
            assert bool((layer.weight[~mask] == 0).all())
            units = pattern.units(mask.float())
            assert torch.equal(pattern.spread(units > 0, mask.shape), mask)

    check()
    train(model, rigl, 12, check)
    for name, zeros in zip(layers, wanted, strict=True):
        # A weight that came is zero until its first step.
        assert rigl.finalize()[name] * layers[name].weight.numel() >= zeros


def test_zeros_move_and_then_rest():
    model = network()
    rigl = RigL(model, [Rule(Block(1, 4), 0.75)], steps=20, every=2, until=0.5)
    masks = []
    train(model, rigl, 20, lambda: masks.append(rigl.state_dict()["masks"][0]))
    moves = [not torch.equal(a, b) for a, b in pairwise(masks)]
    assert any(moves[:9])
    assert not any(moves[9:])
    assert rigl.finalize()["0"] == 0.75


def test_the_smallest_go_and_the_largest_gradients_come():
    weight = torch.tensor([[5.0, 5, 1, 1], [0, 0, 0, 0], [0, 0, 3, 3]])
    gradient = torch.tensor([[0.0, 0, 0, 1], [2, 2, 0, 9], [7, 1, 0, 0]])
    mask = moved(Block(1, 2), weight, gradient, weight != 0, share=1 / 3)
    assert mask.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_resumed_training_goes_on_as_if_never_stopped():
    model = network()
    rules = erdos_renyi(model, Unstructured(), 0.7).rules
    one = RigL(model, rules, steps=12, every=2)
    train(model, one, 5)
    other_model = copy.deepcopy(model)
    other = RigL(other_model, rules, steps=12, every=2, seed=9)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(one.state_dict())
    for m, r in ((model, one), (other_model, other)):
        train(m, r, 6, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other_model.parameters(), strict=True))


def test_gradients_cleared_too_early_are_named():
    model = network()
    rigl = RigL(model, [Rule(Unstructured(), 0.5)], steps=10, every=1)
    with pytest.raises(UserError, match="layer '0' has no gradient: call step"):
        rigl.step()


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (Rule(NofM(2, 4), 0.5), {}, "N of M leaves no room to move"),
        (Rule(Unstructured(), 0.5), {"steps": 0}, "0 steps, a move every 100: both must be 1 or more"),
        (Rule(Unstructured(), 0.5), {"share": 0.0}, "moving share 0: above 0 to 1"),
        (Rule(Unstructured(), 0.5), {"until": 1.5}, "moves until 1.5 of the training: above 0 to 1"),
    ],
)
def test_what_makes_no_sense_is_refused(rule, arguments, message):
    with pytest.raises(UserError, match=message):
        RigL(network(), [rule], **{"steps": 10, **arguments})


def test_masks_follow_a_model_that_moves():
    model = nn.Linear(16, 8)
    rigl = RigL(model, [Rule(Block(1, 4), 0.75)], steps=10, every=2)
    model.to(torch.float64)
    model.weight.grad = torch.ones_like(model.weight)
    for _ in range(2):
        rigl.step()
    assert int((model.weight != 0).sum()) <= 32
    model.to("meta")
    rigl.step()
