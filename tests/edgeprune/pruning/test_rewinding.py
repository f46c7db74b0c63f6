"""Tickets go back to the very values they had; what a round drops stays dropped."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from edgeprune.errors import UserError
from edgeprune.pruning import Block, NofM, Rule, Sparsifier, Unstructured
from edgeprune.pruning.rewinding import find_ticket, hold, rules_of_round, snapshot


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))


def trainer(seen: list[dict[str, torch.Tensor]], steps: int = 5):
    """A training that keeps the zeros it ends with in `seen`."""

    def train(model: nn.Module, sparsifier: Sparsifier | None) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(8, 16, generator=generator)).square().mean().backward()
            optimizer.step()
            if sparsifier is not None:
                sparsifier.step()
        seen.append({n: m.weight == 0 for n, m in model.named_modules() if isinstance(m, nn.Linear)})

    return train


@pytest.mark.parametrize("pattern", [Unstructured(), Block(1, 4), Block(4, 1)])
def test_weights_are_rewound_to_the_values_they_had(pattern):
    model = network()
    start = snapshot(model)
    seen: list[dict[str, torch.Tensor]] = []
    ticket = find_ticket(model, [Rule(pattern, 0.75)], 3, trainer(seen))
    masks = {"0.weight": ticket.state_dict()["masks"][0], "3.weight": ticket.state_dict()["masks"][1]}
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name] * masks[name] if name in masks else start[name])
    assert ticket.finalize() == {"0": 0.75, "3": 0.75}
    # No zeros in the first training; in each later one those of before, and more of them in the end.
    assert not any(bool(zeros.any()) for zeros in seen[0].values())
    for name in ("0", "3"):
        assert bool((seen[1][name] <= seen[2][name]).all())
        assert bool((seen[2][name] <= ~masks[f"{name}.weight"]).all())


def test_the_start_may_be_another_state():
    model = network()
    trainer([])(model, None)
    early = snapshot(model)
    ticket = find_ticket(model, [Rule(Unstructured(), 0.5)], 1, trainer([]), start=early)
    mask = ticket.state_dict()["masks"][0]
    assert torch.equal(model[0].weight.detach(), early["0.weight"] * mask)
    assert torch.equal(model[1].running_var, early["1.running_var"])


def test_masks_are_held_through_training_and_on_another_model():
    model = network()
    rules = [Rule(Block(1, 4), 0.5)]
    masks = find_ticket(model, rules, 1, trainer([])).state_dict()["masks"]
    control = copy.deepcopy(model)
    for layer in (control[0], control[3]):
        nn.init.normal_(layer.weight)
    held = hold(control, rules, masks)
    assert torch.equal(control[0].weight != 0, masks[0])
    trainer([], steps=20)(control, held)
    assert held.finalize() == {"0": 0.5, "3": 0.5}
    assert torch.equal(control[3].weight != 0, masks[1])


def test_each_round_drops_the_same_share_of_what_is_left():
    rules = [Rule(Unstructured(), 0.8), Rule(NofM(2, 4), 0.5, "0")]
    rounds = [rules_of_round(rules, number, 4) for number in range(1, 5)]
    left = [1.0] + [1 - round_[0].sparsity for round_ in rounds]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.2**0.25] * 4)
    assert all(round_[1].sparsity == 0.5 for round_ in rounds)


def test_no_round_is_refused():
    with pytest.raises(UserError, match="0 rounds of rewinding: 1 or more"):
        find_ticket(network(), [Rule(Unstructured(), 0.5)], 0, trainer([]))


def test_held_masks_follow_a_model_that_moves():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 3, 2, 1]])
    held = hold(model, [Rule(Unstructured(), 0.5)], [torch.tensor([[True, True, False, False]])])
    model.to(torch.float64)
    held.step()
    assert model.weight.tolist() == [[4, 3, 0, 0]]
    model.to("meta")
    held.step()
