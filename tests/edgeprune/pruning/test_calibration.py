"""What calibration sees of a layer is what the layer computes with, whatever its settings."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from edgeprune.pruning import Unstructured, prune
from edgeprune.pruning import calibration as c


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = draw(st.integers(1, 2))
    padding = draw(st.sampled_from(["same", "valid", 0, 1, (0, 2)]))
    stride = 1 if padding == "same" else draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return nn.Conv2d(
        groups * draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
        padding_mode=mode,
    )


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_a_convolution_is_its_rows_times_the_patches(layer):
    images = torch.randn(2, layer.in_channels, 7, 8)
    (columns,) = c.patches(layer, images)
    rows = layer.weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
    outputs = layer(images)
    expected = outputs.permute(1, 0, 2, 3).reshape(layer.groups, -1, outputs[:, 0].numel())
    assert torch.allclose(rows @ columns, expected, atol=1e-5)


def test_a_linear_layer_is_its_rows_times_the_patches():
    layer, tokens = nn.Linear(5, 3, bias=False), torch.randn(2, 7, 5)
    (columns,) = c.patches(layer, tokens)
    assert torch.allclose(layer.weight @ columns[0], layer(tokens).reshape(-1, 3).T, atol=1e-6)


def test_large_inputs_come_in_parts(monkeypatch):
    layer, images = nn.Conv2d(4, 4, 3), torch.randn(5, 4, 6, 6)
    (whole,) = c.patches(layer, images)
    monkeypatch.setattr(c, "PATCH_ELEMENTS", 2 * 4 * 36 * 9)
    parts = list(c.patches(layer, images))
    assert len(parts) == 3
    assert torch.equal(torch.cat(parts, dim=2), whole)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt", "taylor"])
def test_hooks_go_and_modes_come_back_even_after_a_failure(criterion, fails):
    class Failing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if fails:
                raise ZeroDivisionError
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3), Failing())
    model[1].eval()
    modes = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    batches = [(torch.randn(4, 3, 2, 2), torch.arange(4) % 3)]
    try:
        prune(model, Unstructured(), 0.5, criterion=criterion, calibration=batches)
    except ZeroDivisionError:
        assert fails
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(model[1].running_mean, statistics)


def test_calibration_may_be_a_generator():
    model = nn.Sequential(nn.Linear(4, 4))
    assert prune(
        model,
        Unstructured(),
        0.5,
        criterion="sparsegpt",
        calibration=(torch.randn(8, 4) for _ in range(2)),
    ) == {"0": 0.5}
