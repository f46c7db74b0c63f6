"""A model split in two computes what it did, to the bit, or says what is in the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.models import build
from edgeprune.models.early_exit import FEATURES, ExitHead, Front, deepest, places, split

EXAMPLE = torch.zeros(1, 3, 32, 32)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """Three stages; the last may look at the first one's map again, or at the image."""

    def __init__(self, again: str = "") -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1))
        self.third = nn.Conv2d(8, 16, 1)
        self.head = nn.Linear(16, 5)
        self.shift = nn.Parameter(torch.ones(1))
        self.again = again

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        first = self.first(x) + self.shift
        value = self.second(first)
        if self.again == "map":
            value = value + first
        if self.again == "image":
            value = value + x.mean()
        return self.head(self.third(value * self.shift).mean((2, 3)))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    torch.manual_seed(0)
    return build.build("mobilenet_v3_small", 10).eval()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mobilenet_v3_small", "features.8"),
        ("timm/tf_efficientnet_lite0", "blocks.4"),
        ("resnet18", "layer2.0"),
    ],
)
def test_the_halves_together_are_the_model_to_the_bit(name: str, place: str) -> None:
    torch.manual_seed(0)
    model = build.build(name, 10).eval()
    halves = split(model, place, EXAMPLE)
    with torch.no_grad():
        features = halves.front(images())
        assert features.shape[1] == halves.channels
        assert torch.equal(halves.rest(features), model(images()))
    assert 0.1 < halves.macs_share < 0.9
    own = {id(weight) for weight in model.parameters()}
    parts = [{id(weight) for weight in half.parameters()} for half in (halves.front, halves.rest)]
    assert parts[0] | parts[1] == own
    assert not parts[0] & parts[1]
    assert not any(module.training for half in (halves.front, halves.rest) for module in half.modules())


def test_layers_keep_their_names(mobile: nn.Module) -> None:
    halves = split(mobile, "features.8", EXAMPLE)
    assert "features.8.block.0.0" in dict(halves.front.named_modules())
    assert "features.9.block.0.0" in dict(halves.rest.named_modules())
    assert "features.9.block.0.0" not in dict(halves.front.named_modules())


def test_a_parameter_of_its_own_may_be_used_on_both_sides() -> None:
    model = Small().eval()
    halves = split(model, "second", EXAMPLE)
    assert torch.equal(halves.rest(halves.front(images())), model(images()))


@pytest.mark.parametrize(
    ("again", "crossing"), [("map", r"add \(add\)"), ("image", "the image itself"), ("", None)]
)
def test_only_one_map_may_cross(again: str, crossing: str | None) -> None:
    model = Small(again).eval()
    if crossing is None:
        split(model, "second", EXAMPLE)
        return
    with pytest.raises(UserError, match=f"behind second: what comes after it needs {crossing}, too") as told:
        split(model, "second", EXAMPLE)
    assert "third" in str(told.value)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nose", "the model has no module 'nose' to split it behind"),
        ("", "the model has no module ''"),
        ("features.8.block.1", "needs the output of features.7, too"),
        ("classifier.0", "its output has shape (1, 1024), and a feature map has four axes"),
        ("features.8.block", "needs the output of features.7, too"),
    ],
)
def test_a_place_that_does_not_work_is_told_with_those_that_do(
    mobile: nn.Module, place: str, message: str
) -> None:
    with pytest.raises(UserError) as told:
        split(mobile, place, EXAMPLE)
    assert message in told.value.problems[0]
    assert "features.7 (33 %)" in told.value.problems[1]


def test_places_are_in_order_and_all_work(mobile: nn.Module) -> None:
    found = places(mobile, EXAMPLE)
    shares = [place.macs_share for place in found]
    assert shares == sorted(set(shares))
    assert {"features.0", "features.3", "features.11"} <= {place.name for place in found}
    for place in found:
        assert split(mobile, place.name, EXAMPLE).macs_share == place.macs_share


def test_the_deepest_place_has_at_most_that_share(mobile: nn.Module) -> None:
    shares = {place.name: place.macs_share for place in places(mobile, EXAMPLE)}
    for most in (0.3, 0.5):
        name = deepest(mobile, EXAMPLE, most)
        assert shares[name] == max(share for share in shares.values() if share <= most)
    with pytest.raises(UserError, match="no place has at most 1% of the multiplications"):
        deepest(mobile, EXAMPLE, 0.01)


def test_models_that_cannot_be_split_say_why() -> None:
    with pytest.raises(UserError, match=r"torch\.fx cannot trace Branches, so it cannot be split: .*control"):
        places(Branches().eval(), EXAMPLE)
    with pytest.raises(UserError, match="in training mode"):
        split(Small().train(), "second", EXAMPLE)
    with pytest.raises(UserError, match="does not give"):
        split(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)).eval(), "0", EXAMPLE)


def test_a_module_that_runs_twice_is_no_place() -> None:
    layer = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(UserError, match="behind 0: it runs 2 times in it"):
        split(model, "0", EXAMPLE)


def test_the_front_gives_scores_and_the_map_as_it_is(mobile: nn.Module) -> None:
    halves = split(mobile, "features.8", EXAMPLE)
    head = ExitHead(halves.channels, 10, 16).eval()
    with torch.no_grad():
        given = Front(halves.front, head).eval()(images())
        assert list(given) == ["scores", FEATURES]
        assert torch.equal(given[FEATURES], halves.front(images()))
        assert torch.equal(given["scores"], head(given[FEATURES]))
    assert given["scores"].shape == (3, 10)
