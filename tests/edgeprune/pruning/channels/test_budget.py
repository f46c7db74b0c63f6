import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small, resnet18

from edgeprune.errors import UserError
from edgeprune.models.cost import count_macs, count_parameters
from edgeprune.pruning import least_channels, remove, resize, shrink_to

EXAMPLE = torch.zeros(1, 3, 32, 32)


def batches(count: int = 2, images: int = 4, side_px: int = 32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(images, 3, side_px, side_px, generator=generator), torch.arange(images) % 2)
        for _ in range(count)
    ]


def small(seed: int = 0) -> nn.Sequential:
    """16 channels on 32 x 32 pixels, then 32 on as many, then two classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 2),
    ).eval()


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("build", [mobilenet_v3_small, resnet18])
def test_the_budget_is_met_and_widths_are_multiples_of_eight(build, of):
    torch.manual_seed(0)
    model = build(num_classes=10).eval()
    dense = {"macs": count_macs(model, EXAMPLE), "parameters": count_parameters(model)}
    widths = shrink_to(model, EXAMPLE, 0.5, of=of, calibration=batches())
    left = {"macs": count_macs(model, EXAMPLE), "parameters": count_parameters(model)}
    assert left[of] / dense[of] == pytest.approx(0.5, abs=0.03)
    assert widths
    for before, after in widths.values():
        assert after < before
        assert after % 8 == 0
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    fresh = build(num_classes=10).eval()
    resize(fresh, model.state_dict())


def test_channels_that_nobody_reads_go_first_and_nothing_changes():
    model = small()
    idle = [1, 4, 5, 7, 8, 11, 14, 15]
    with torch.no_grad():
        model[3].weight[:, idle] = 0
        model[0].weight[idle] *= 100  # Large, and yet of no use.
    images = torch.randn(4, 3, 32, 32)
    before = model(images)
    left = count_parameters(_without(model, {"0": idle})) / count_parameters(model)
    widths = shrink_to(model, EXAMPLE, left, of="parameters", calibration=batches())
    assert widths == {"0": (16, 8)}
    assert torch.allclose(model(images), before, atol=1e-5)


def _without(model: nn.Module, cut: dict[str, list[int]]) -> nn.Module:
    copied = copy.deepcopy(model)
    remove(copied, EXAMPLE, cut)
    return copied


def test_importance_foretells_what_the_loss_changes_by():
    """Weights of readers so small that the loss is all but linear in them."""
    model = small().double()
    with torch.no_grad():
        model[3].weight *= 1e-3
    (images, labels), *_ = batches(1)
    images = images.double()
    dense = F.cross_entropy(model(images), labels)
    changes = []
    for channel in range(16):
        trial = copy.deepcopy(model)
        trial[3].weight.data[:, channel] = 0
        changes.append(float((F.cross_entropy(trial(images), labels) - dense).detach()) ** 2)
    order = torch.tensor(changes).argsort().tolist()
    cut = least_channels(
        model, EXAMPLE.double(), 0.55, of="parameters", calibration=[(images, labels)], keep=["3"], round_to=1
    )
    assert cut["0"] == sorted(order[: len(cut["0"])])
    assert 2 < len(cut["0"]) < 16


def test_what_costs_more_for_the_same_importance_goes_first():
    """The first layer's channels see 1024 pixels, the hidden ones behind the pooling one."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 2),
    ).eval()  # fmt: skip
    for_speed = shrink_to(copy.deepcopy(model), EXAMPLE, 0.6, of="macs", calibration=batches())
    for_bytes = shrink_to(copy.deepcopy(model), EXAMPLE, 0.6, of="parameters", calibration=batches())
    assert for_speed["0"][1] < 32
    assert for_bytes["4"][1] < 512
    assert "0" not in for_bytes


def test_the_model_is_left_as_it_was_and_the_answer_is_the_same_again():
    model = small()
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = (least_channels(model, EXAMPLE, 0.7, calibration=batches()) for _ in range(2))
    assert first == second != {}
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_grouped_convolutions_keep_their_channels():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(16, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2),
    ).eval()  # fmt: skip
    widths = shrink_to(model, EXAMPLE, 0.7, of="parameters", calibration=batches())
    assert set(widths) == {"3"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"left": 1.0}, "fraction left 1 is not between 0 and 1"),
        ({"left": 0.5, "of": "bytes"}, "unknown count 'bytes': choose from macs, parameters"),
        ({"left": 0.5, "keep": ["head"]}, "no layer 'head' to keep"),
        ({"left": 0.01}, "0.01 of the macs cannot be left"),
        (
            {"left": 0.5, "calibration": [torch.zeros(2, 3, 32, 32)]},
            "give calibration as .images, labels. pairs",
        ),
        ({"left": 0.5, "calibration": None}, "looks at images"),
        (
            {"left": 0.5, "calibration": [(torch.full((2, 3, 32, 32), torch.nan), torch.zeros(2).long())]},
            "NaN or infinite",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        shrink_to(small(), EXAMPLE, **{"calibration": batches(), **settings})


def test_attention_is_refused():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32).eval()
    with pytest.raises(UserError, match="is attention: use shrink_transformer"):
        shrink_to(model, EXAMPLE, 0.5, calibration=batches())
