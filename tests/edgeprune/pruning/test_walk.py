"""Layers in order: each operation once where torch.fx can follow, else the images again for every layer."""

import copy

import pytest
import timm
import torch
from torch import nn

from edgeprune.pruning import calibration, walk


class Twice(nn.Module):
    """Runs the same layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.shared(torch.relu(self.shared(x)))
        self.runs += 1
        return self.last(x)


class Untraceable(nn.Module):
    """Asks for a number, which torch.fx does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x if x.sum() > 0 else -x)


class Deciding(Untraceable):
    """Goes another way when it is traced: what is traced is not the model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x if type(x) is torch.Tensor else x + 1)


def layers_of(model, *names):
    return {name: model.get_submodule(name) for name in names}


def seen(models, layers, batches):
    """All that each layer reads, a tensor for each model, in order."""
    return {
        name: [torch.cat(parts) for parts in zip(*inputs, strict=True)]
        for name, inputs in walk.inputs_in_order(models, layers, batches)
    }


def test_a_layer_that_runs_twice_is_seen_twice():
    model, images = Twice(), torch.randn(6, 4)
    layers, batches = layers_of(model, "shared", "last"), [(images[:3], None), (images[3:], None)]
    assert walk.calls_in_order(model, layers, batches) == {"shared": 2, "last": 1}
    with torch.no_grad():
        second = torch.relu(model.shared(images))
    found = seen([model], layers, batches)
    assert list(found) == ["shared", "last"]
    wanted = torch.cat([images[:3], second[:3], images[3:], second[3:]])
    assert torch.allclose(found["shared"][0], wanted)
    moments = calibration.second_moments(model.shared, found["shared"])
    assert torch.allclose(moments[0], (wanted.T @ wanted / 12).double(), atol=1e-6)


def test_where_images_run_again_they_run_only_as_far_as_the_layer():
    model, images = Twice(), torch.randn(6, 4)
    walked = walk.inputs_in_order([model], layers_of(model, "shared", "last"), [(images, None)])
    runs = []
    for _, inputs in walked:
        before = model.runs
        list(inputs)
        runs.append(model.runs - before)
    assert runs == [0, 1]


# Whole runs: to see the order, and where the operations can be followed to see that they are the
# model's. timm's transformers ask for sizes, which torch.fx does not know.
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("mobilenetv3_small_050", 2),
        ("tf_efficientnet_lite0", 2),
        ("ghostnet_050", 2),
        ("vit_tiny_patch16_224", 1),
    ],
)
def test_each_operation_once_is_the_same_as_all_again(name, whole, monkeypatch):
    torch.manual_seed(0)
    settings = {"img_size": 32} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **settings).eval()
    dense = copy.deepcopy(model)
    kept = [
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) or getattr(m, "kernel_size", 0) == (1, 1)
    ]
    layers = layers_of(model, *kept[:: max(len(kept) // 6, 1)])
    batches = [(torch.randn(5, 3, 32, 32), None), (torch.randn(2, 3, 32, 32), None)]
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))

    def changed():
        """What each layer reads, every layer halved once it has been seen."""
        model.load_state_dict(dense.state_dict())
        found = {}
        for layer, inputs in walk.inputs_in_order([model, dense], layers, batches):
            found[layer] = [torch.cat(parts) for parts in zip(*inputs, strict=True)]
            layers[layer].weight.data.mul_(0.5)
        return found

    once = changed()
    assert len(runs) == whole
    monkeypatch.setattr(walk, "HELD_FRACTION", 0.0)
    again = changed()
    assert list(once) == list(again)
    assert len(once) >= 6
    for layer, (own, other) in once.items():
        assert torch.allclose(own, again[layer][0], atol=1e-5), layer
        assert torch.allclose(other, again[layer][1], atol=1e-5), layer
    assert any(not torch.equal(own, other) for own, other in once.values())


@pytest.mark.parametrize("kind", [Untraceable, Deciding])
def test_models_that_cannot_be_followed_are_run_again(kind):
    torch.manual_seed(0)
    model, images = kind(), torch.randn(6, 4)
    with torch.no_grad():
        first = model.first(images)
    found = seen([model], layers_of(model, "first", "last"), [(images, None)])
    wanted = first if kind is Deciding or first.sum() > 0 else -first
    assert torch.allclose(found["last"][0], wanted)


def test_modes_and_statistics_stay(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)).train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    for name, inputs in walk.inputs_in_order(
        [model], layers_of(model, "0", "3"), [(torch.randn(4, 3, 2, 2), None)]
    ):
        assert [module.training for module in model.modules()] == modes, name
        list(inputs)
    assert torch.equal(model[1].running_mean, statistics)
