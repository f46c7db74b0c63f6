"""The exit learns, and nothing else changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgeprune.models.early_exit import ExitHead, Halves
from edgeprune.training.early_exit import Seen, seen, train_head


@pytest.fixture
def halves() -> Halves:
    torch.manual_seed(0)
    front = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)).eval()
    rest = nn.Sequential(nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    return Halves("x", front, rest, 8, 0.5)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of three brightnesses, by their labels."""
    random = torch.Generator().manual_seed(0)
    made = []
    for _ in range(6):
        labels = torch.randint(0, 3, (32,), generator=random)
        noise = torch.randn(32, 3, 8, 8, generator=random)
        made.append((noise * 0.3 + labels[:, None, None, None] - 1, labels))
    return made


def test_the_exit_learns_and_the_body_stays(halves: Halves) -> None:
    before = copy.deepcopy([halves.front.state_dict(), halves.rest.state_dict()])
    head, told = ExitHead(8, 3, 8), []
    losses = train_head(
        head,
        lambda epoch: seen(halves, batches()),
        epochs=20,
        steps=6,
        distill=0.0,
        show=lambda done, loss: told.append((done, loss)),
    )
    assert told == list(enumerate(losses, 1))
    assert losses[-1] < 0.7 * losses[0]
    assert not head.training
    for half, state in zip((halves.front, halves.rest), before, strict=True):
        assert not any(module.training for module in half.modules())
        assert all(torch.equal(value, half.state_dict()[name]) for name, value in state.items())
        assert all(weight.grad is None for weight in half.parameters())
    images, labels = batches()[0]
    with torch.no_grad():
        assert (head(halves.front(images)).argmax(1) == labels).float().mean() > 0.9


def test_what_the_exit_sees_has_no_gradients_and_is_not_changed_by_the_rest(halves: Halves) -> None:
    (batch, *_) = seen(halves, batches())
    images, _ = batches()[0]
    assert not batch.features.requires_grad
    with torch.no_grad():
        assert torch.equal(batch.features, halves.front(images))
        assert (batch.features < 0).any()  # The rest begins with a ReLU in place.
        assert torch.equal(batch.answers, halves.rest(halves.front(images)))


def test_with_all_weight_on_the_answers_labels_do_not_count() -> None:
    torch.manual_seed(0)
    features, answers = torch.randn(16, 4, 2, 2), 5 * torch.eye(3)[torch.arange(16) % 3]
    start = ExitHead(4, 3, 8)

    def trained(labels: torch.Tensor, distill: float) -> ExitHead:
        head = copy.deepcopy(start)
        train_head(head, lambda _: [Seen(features, answers, labels)] * 4, epochs=3, steps=4, distill=distill)
        return head

    zeros, ones = torch.zeros(16, dtype=torch.int64), torch.ones(16, dtype=torch.int64)
    assert torch.equal(trained(zeros, 1.0)(features), trained(ones, 1.0)(features))
    assert not torch.equal(trained(zeros, 0.5)(features), trained(ones, 0.5)(features))
