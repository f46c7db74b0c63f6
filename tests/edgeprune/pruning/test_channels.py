import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from edgeprune.errors import UserError
from edgeprune.pruning import resize, shrink

EXAMPLE = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def shrunk() -> tuple[nn.Module, dict[str, tuple[int, int]]]:
    model = mobilenet_v3_small(num_classes=10).eval()
    return model, shrink(model, EXAMPLE, 0.35)


def test_widths_are_multiples_of_eight_and_the_model_runs(shrunk):
    model, widths = shrunk
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert widths["classifier.0"] == (1024, 664)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels % 8 == 0, name
    assert all(after < before for before, after in widths.values())


def test_weights_are_really_gone(shrunk):
    model, _ = shrunk
    dense = mobilenet_v3_small(num_classes=10)
    count = [sum(p.numel() for p in m.parameters()) for m in (model, dense)]
    assert count[0] < 0.45 * count[1]


def test_the_class_layer_keeps_its_width(shrunk):
    model, widths = shrunk
    assert model.classifier[3].out_features == 10
    assert "classifier.3" not in widths


@pytest.mark.parametrize("build", [mobilenet_v3_small, resnet18])
def test_a_fresh_model_takes_the_saved_widths(build):
    model = build(num_classes=10).eval()
    shrink(model, EXAMPLE, 0.25)
    fresh = build(num_classes=10).eval()
    resize(fresh, model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(fresh(images), model(images))


def test_the_least_important_channels_go():
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    big = torch.arange(16) % 2 == 1
    with torch.no_grad():
        model[0].weight[~big] *= 1e-3
        model[3].weight[:, ~big] *= 1e-3
    kept = model[0].weight[big].clone()
    shrink(model, torch.zeros(1, 3, 1, 1), 0.5)
    assert torch.equal(model[0].weight, kept)


def test_a_second_model_is_not_touched_by_the_first():
    first, second = (mobilenet_v3_small(num_classes=10).eval() for _ in range(2))
    before = copy.deepcopy(second.state_dict())
    shrink(first, EXAMPLE, 0.25)
    assert all(torch.equal(before[key], value) for key, value in second.state_dict().items())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.7])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(UserError, match="not between 0 and 1"):
        shrink(resnet18().eval(), EXAMPLE, fraction)


def test_unknown_layers_to_keep_are_refused():
    with pytest.raises(UserError, match="no layer 'head' to keep"):
        shrink(resnet18().eval(), EXAMPLE, 0.5, keep=["head"])


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(UserError, match="of another architecture"):
        resize(mobilenet_v3_small(), resnet18().state_dict())
