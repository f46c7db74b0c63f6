"""Heads as 1x1 convolutions compute exactly what they computed before."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small

from converters.head import PointwiseHead, PointwiseLinear, with_pointwise_head, with_pointwise_layers


def test_the_head_of_mobilenet_v3_gives_the_same_under_the_same_names():
    torch.manual_seed(0)
    model = mobilenet_v3_small(num_classes=10).eval().double()
    changed = with_pointwise_head(model)
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        before, after = model(images), changed(images)
    assert float((before - after).abs().max()) <= 1e-12 * float(before.abs().max())
    assert isinstance(changed.classifier, PointwiseHead)
    assert [name for name, _ in changed.named_modules()] == [name for name, _ in model.named_modules()]
    for name in ("classifier.0", "classifier.3"):
        old, new = model.get_submodule(name), changed.get_submodule(name)
        assert torch.equal(old.weight, new.weight[:, :, 0, 0])
        assert torch.equal(old.bias, new.bias)
    assert isinstance(model.classifier[0], nn.Linear)  # the model itself is as it was


def test_weights_are_copied_not_shared():
    model = mobilenet_v3_small(num_classes=10).eval()
    changed = with_pointwise_head(model)
    with torch.no_grad():
        changed.get_submodule("classifier.0").weight.zero_()
    assert int(model.classifier[0].weight.count_nonzero()) > 0


def test_a_head_without_hard_swish_stays():
    model = mobilenet_v2(num_classes=10).eval()
    assert with_pointwise_head(model) is model


def test_a_model_that_is_a_head_alone():
    head = nn.Sequential(nn.Linear(8, 16), nn.Hardswish(), nn.Linear(16, 4, bias=False)).eval()
    features = torch.randn(5, 8)
    changed = with_pointwise_head(head)
    assert isinstance(changed, PointwiseHead)
    torch.testing.assert_close(changed(features), head(features), rtol=1e-6, atol=1e-6)


class Mixed(nn.Module):
    """Linear layers of tokens, of vectors, of both, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.both, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.again = self.last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.both(self.tokens(x.flatten(2).transpose(1, 2)))
        return self.again(self.last(self.both(tokens.mean(1))))


def test_linear_layers_of_one_vector_an_image_and_no_others():
    torch.manual_seed(0)
    model, images = Mixed().eval().double(), torch.rand(2, 3, 4, 4, dtype=torch.float64)
    changed = with_pointwise_layers(model, images)
    torch.testing.assert_close(changed(images), model(images), rtol=1e-12, atol=1e-12)
    kinds = {name: type(module) for name, module in changed.named_modules() if name}
    assert kinds == {"tokens": nn.Linear, "both": nn.Linear, "last": PointwiseLinear}
    assert changed.again is changed.last
    assert torch.equal(changed.last.weight[:, :, 0, 0], model.last.weight)
    assert isinstance(model.last, nn.Linear)  # the model itself is as it was
    convolution = nn.Conv2d(3, 2, 1).eval()
    assert with_pointwise_layers(convolution, images.float()) is convolution


class Doubled(nn.Linear):
    """A linear layer that does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_timms_linear_layer_is_one_and_any_other_kind_stays_what_it_is():
    from timm.layers.linear import Linear

    images = torch.rand(2, 3, 4, 4)
    for kind, found in ((Linear, PointwiseLinear), (Doubled, Doubled)):
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), kind(3, 5)).eval()
        changed = with_pointwise_layers(model, images)
        assert type(changed[2]) is found
        torch.testing.assert_close(changed(images), model(images))
