"""One layer at a time, put back exactly, on training images only."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from converters.facts import Normalization
from edgeprune.data.dataset import Data, InMemory, Split, fixed_subset
from edgeprune.evaluation.sensitivity import answer_curves, prune_each_layer
from edgeprune.pruning import Block, Rule, prune, select
from edgeprune.pruning.allocation.shares import by_sensitivity
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training.config import Augment
from edgeprune.training.loop import Setting
from edgeprune.training.predict import predict

PLAIN = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()


@pytest.fixture
def setting(split: Split) -> Setting:
    data = Data(split, split, tuple("abcde"), "noise", photographs=False, sha256="0")
    return Setting(data, TASKS["classification"], PLAIN, Augment(), seed=0)


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return InMemory(images, torch.randint(0, 5, (60,), generator=generator))


def test_each_layer_is_pruned_alone_and_put_back(model: nn.Module, split: Split, setting: Setting):
    before = copy.deepcopy(model.state_dict())
    layers = select(model, [Rule(Block(1, 4), 0.5)])
    told: list[int] = []
    dense, found = prune_each_layer(model, layers, (0.25, 0.75), split, setting, told.append)
    assert told == [1, 2, 3, 4, 5]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert dense[0] == score(setting.task, predict(model, split, PLAIN), split.labels)
    for layer in found:
        for sparsity, top1, loss in zip((0.25, 0.75), layer.score, layer.loss, strict=True):
            pruned = copy.deepcopy(model)
            prune(pruned, Block(1, 4), sparsity, layers=[layer.name])
            outputs = predict(pruned, split, PLAIN)
            assert top1 == score(setting.task, outputs, split.labels)
            assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, split.labels)))
    assert found[0].loss != found[1].loss


def test_weights_are_put_back_when_it_is_interrupted(model: nn.Module, split: Split, setting: Setting):
    before = copy.deepcopy(model.state_dict())

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_each_layer(model, select(model, [Rule(Block(1, 4), 0.5)]), (0.9, 0.95), split, setting, stop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_how_far_answers_move_without_labels(model: nn.Module):
    """Of the first images alone, batch norms of theirs; the model stays as it is, and allocations take it."""
    model.insert(1, nn.BatchNorm2d(16))
    model.train()  # Eval mode inside, whatever it was.
    before = copy.deepcopy(model.state_dict())
    images = torch.rand(40, 3, 8, 8)
    curves = answer_curves(model, Block(1, 4), [images[:20], (images[20:], None)], images=30)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (curves.layers, curves.sparsities) == (("3", "7"), (0.0, 0.35, 0.6, 0.8))
    assert (curves.loss[:, 0] == 0).all()
    assert (curves.loss[:, 1:] > 0).all()
    pruned = copy.deepcopy(model)
    prune(pruned, Block(1, 4), 0.8, layers=["7"])
    with torch.no_grad():
        normalized = nn.functional.batch_norm(model[0](images[:30]), None, None, *model[1].parameters(), True)
        given, wanted = (of[2:](normalized).log_softmax(1) for of in (pruned, model))
    moved = nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
    assert curves.at("7", np.array([0.8]))[0] == pytest.approx(float(moved), rel=1e-4)
    found = by_sensitivity(model, Block(1, 4), 0.5, curves=curves, maximum=0.7)
    assert found.sparsity == pytest.approx(0.5, abs=0.02)


def test_the_subset_is_fixed_and_fair():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    split = InMemory(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 3, 2, 2), labels)
    subset = fixed_subset(split, 20)
    assert torch.bincount(subset.labels).tolist() == [12, 6, 2]
    assert torch.equal(subset.indices, fixed_subset(split, 20).indices)
    assert len(fixed_subset(split, 500)) == 100
