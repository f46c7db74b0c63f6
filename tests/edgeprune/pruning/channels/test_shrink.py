import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from edgeprune.errors import UserError
from edgeprune.models.cost import count_macs
from edgeprune.pruning import fraction_for_macs, resize, shrink

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


def two_layers() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    ).eval()


def test_batch_norm_scales_decide():
    model = two_layers()
    big = torch.arange(16) % 2 == 1
    model[1].weight.data[~big] = -0.01
    kept = model[0].weight[big].clone()
    shrink(model, torch.zeros(1, 3, 1, 1), 0.5, criterion="bn_scale")
    assert torch.equal(model[0].weight, kept)


def test_fpgm_removes_filters_that_others_can_replace():
    model = two_layers()
    with torch.no_grad():
        model[0].weight[:8] = 5.0  # All alike, and the largest of all.
    kept = model[0].weight[8:].clone()
    shrink(model, torch.zeros(1, 3, 1, 1), 0.5, criterion="fpgm")
    assert torch.equal(model[0].weight, kept)


def test_taylor_removes_channels_that_the_loss_does_not_see():
    model = two_layers()
    with torch.no_grad():
        model[4].weight[:, :8] = 0
        model[0].weight[:8] *= 100
        model[0].bias.fill_(1.0)  # Every channel is active.
        model[0].weight.abs_()
    kept = model[0].weight[8:].clone()
    batches = [(torch.rand(4, 3, 1, 1), torch.arange(4) % 2)]
    shrink(model, torch.zeros(1, 3, 1, 1), 0.5, criterion="taylor", calibration=batches)
    assert torch.equal(model[0].weight, kept)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_channels_are_repeatable():
    kept = []
    for seed in (0, 0, 1):
        model = two_layers()
        model[0].weight.data = torch.arange(48.0).view(16, 3, 1, 1)
        shrink(model, torch.zeros(1, 3, 1, 1), 0.5, criterion="random", seed=seed)
        kept.append(model[0].weight.flatten().tolist())
    assert kept[0] == kept[1] != kept[2]


@pytest.mark.parametrize("criterion", ["magnitude", "bn_scale", "fpgm", "random"])
def test_every_criterion_shrinks_a_real_network(criterion):
    model = mobilenet_v3_small(num_classes=10).eval()
    widths = shrink(model, EXAMPLE, 0.35, criterion=criterion)
    assert len(widths) > 30
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "size"}, "unknown criterion 'size' for channels: choose from squared_magnitude"),
        ({"criterion": "taylor"}, "criterion 'taylor' looks at images"),
        (
            {"criterion": "taylor", "calibration": [torch.zeros(1, 3, 1, 1)]},
            "criterion 'taylor' needs the loss",
        ),
        (
            {
                "criterion": "taylor",
                "calibration": [(torch.full((1, 3, 1, 1), float("nan")), torch.zeros(1, dtype=torch.long))],
            },
            "weight '0.weight' has a NaN or infinite gradient",
        ),
    ],
)
def test_criteria_without_their_data_are_refused(settings, message):
    with pytest.raises(UserError) as caught:
        shrink(two_layers(), torch.zeros(1, 3, 1, 1), 0.5, **settings)
    assert message in str(caught.value)


def test_a_second_model_is_not_touched_by_the_first():
    first, second = (mobilenet_v3_small(num_classes=10).eval() for _ in range(2))
    before = copy.deepcopy(second.state_dict())
    shrink(first, EXAMPLE, 0.25)
    assert all(torch.equal(before[key], value) for key, value in second.state_dict().items())


def test_a_target_in_macs_is_met():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(96, 2),
    ).eval()  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    fraction = fraction_for_macs(model, EXAMPLE, 0.5, tolerance=0.03, round_to=1)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    dense = count_macs(model, EXAMPLE)
    shrink(model, EXAMPLE, fraction, round_to=1)
    assert count_macs(model, EXAMPLE) / dense == pytest.approx(0.5, abs=0.03)


def test_macs_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"multiply-accumulates 1\.5 is not between 0 and 1"):
        fraction_for_macs(mobilenet_v3_small().eval(), EXAMPLE, 1.5)


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
