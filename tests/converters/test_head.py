"""A MobileNetV3 head as 1x1 convolutions computes exactly what it computed before."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small

from converters.head import PointwiseHead, with_pointwise_head


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
