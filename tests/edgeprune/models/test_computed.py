"""Layers that compute the weight they use: seen, made plain, and refused by pruning until they are."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from converters import coreml, litert
from edgeprune import pruning
from edgeprune.errors import UserError
from edgeprune.models.branches import mergeable, merged
from edgeprune.models.build import build
from edgeprune.models.computed import keeps_zeros, made_plain

IMAGES = torch.randn(2, 8, 11, 12, generator=torch.Generator().manual_seed(0))
LAYERS = {
    "StdConv2d": (lambda: StdConv2d(8, 6, 3, stride=2), nn.Conv2d),
    "StdConv2d, groups": (lambda: StdConv2d(8, 6, 3, groups=2, bias=True), nn.Conv2d),
    "StdConv2dSame": (lambda: StdConv2dSame(8, 6, 3, stride=2), Conv2dSame),
    "StdConv2dSame, even": (lambda: StdConv2dSame(8, 6, 1), nn.Conv2d),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(8, 6, 3, dilation=2, gamma=1.7), nn.Conv2d),
    "ScaledStdConv2dSame": (lambda: ScaledStdConv2dSame(8, 6, 3, stride=2, gamma=1.7), Conv2dSame),
    "a user's linear layer": (lambda: Centred(8, 6), nn.Linear),
    "a user's convolution": (lambda: WeightStandardized(8, 6, 3, padding=1), nn.Conv2d),
}


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class WeightStandardized(nn.Conv2d):
    """As in the paper's own code: by `_conv_forward`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        centred = weight - weight.mean((1, 2, 3), keepdim=True)
        return super()._conv_forward(x, centred / centred.std((1, 2, 3), keepdim=True), bias)


class Rounded(nn.Conv2d):
    """A quantisation-aware layer: its weight is computed, and zeros stay."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, (self.weight * 64).round() / 64, self.bias)


class Gated(nn.Linear):
    """Its forward takes more than an image: there is no telling."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return super().forward(x) * gate


def perturbed(model: nn.Module) -> nn.Module:
    """Gains and biases that are not those of a new model."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1 or "gain" in name:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_computes_its_weight_becomes_a_plain_one_with_the_same_answers(name):
    make, kind = LAYERS[name]
    layer = perturbed(make())
    images = IMAGES if isinstance(layer, nn.Conv2d) else IMAGES[:, :, 0, 0]
    model = nn.Sequential(layer)
    wanted = model(images)
    assert mergeable(model) == "weights that are computed whenever it runs"
    plain = merged(model)
    assert type(plain[0]) is kind
    assert torch.equal(plain(images), wanted)
    assert type(model[0]) is type(layer), "the given model was changed"
    assert mergeable(plain) is None
    # Zeros in it count: where all weights but one channel's are zero, nothing else is read.
    with torch.no_grad():
        plain[0].weight[:, 1:] = 0
    other = images.clone()
    other[:, 1 : plain[0].weight.shape[1]] += 1
    assert torch.equal(plain(other), plain(images))


def test_what_keeps_its_zeros_or_cannot_be_known_is_left():
    for layer in (nn.Conv2d(8, 6, 3), Conv2dSame(8, 6, 3, 2), Rounded(8, 6, 3), Gated(8, 6)):
        assert keeps_zeros(layer, torch.rand(layer.weight.shape) < 0.5)
        model, names = made_plain(nn.Sequential(layer))
        assert (model[0], names) == (layer, [])


def test_a_layer_used_twice_is_one_layer_afterwards():
    layer = StdConv2d(8, 8, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    wanted = model(IMAGES)
    plain, names = made_plain(copy.deepcopy(model))
    assert names == ["0", "2"]
    assert plain[0] is plain[2]
    assert torch.equal(plain(IMAGES), wanted)


def test_pruning_such_a_layer_is_refused_and_the_way_out_works():
    torch.manual_seed(0)
    model = nn.Sequential(*(ScaledStdConv2d(8, 8, 1) for _ in range(5)), nn.Flatten(), nn.Linear(8, 4)).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as refused:
        pruning.prune(model, pruning.Block(1, 4), 0.5)
    assert str(refused.value) == (
        "layers '0', '1', '2' and 2 more: the weight is computed whenever it runs (standardised), so that "
        "zeros would not stay: merge first (merge_branches in a recipe, --merge-branches, or "
        "edgeprune.models.branches.merged), then prune"
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # Asked for nothing, it is asked for nothing; and whole channels stay zero through standardisation.
    assert list(pruning.prune(model, pruning.Block(1, 4), 0.5, layers=["6"])) == ["6"]
    assert pruning.prune(copy.deepcopy(model), pruning.Channels(), 0.5, layers=["0"]) == {"0": 0.5}
    plain = merged(model)
    zeros = pruning.prune(plain, pruning.Block(1, 4), 0.5)
    assert zeros == {**{str(n): 0.5 for n in range(5)}, "6": 0.5}


def test_the_zeros_of_a_network_without_norms_are_in_its_files(tmp_path: Path):
    torch.manual_seed(0)
    model = perturbed(
        nn.Sequential(
            ScaledStdConv2d(3, 16, 3, stride=2), nn.SiLU(), ScaledStdConv2d(16, 32, 1), nn.SiLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
        )
    )  # fmt: skip
    example = torch.randn(1, 3, 32, 32)
    plain = merged(model)
    assert torch.allclose(plain(example), model(example), rtol=0, atol=1e-6)
    pruning.prune(plain, pruning.Block(1, 4), 0.75, layers=["2"])
    with torch.no_grad():
        wanted = plain(example).numpy()
    for made in (
        litert.convert(plain, example, tmp_path / "m.tflite"),
        coreml.convert(plain, example, tmp_path / "m.mlpackage"),
    ):
        assert {layer.name: layer.zero_fraction for layer in made.layers}["2"] == 0.75
        load = litert.load if made.path.suffix == ".tflite" else coreml.load
        found = load(made.path).predict(example.numpy())
        assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["nf_regnet_b0", "nf_resnet26", "nf_ecaresnet26", "nfnet_l0", "dm_nfnet_f0", "resnetv2_50x1_bit"],
)
def test_timms_models_without_batch_norm_are_merged_to_the_bit(name):
    torch.manual_seed(0)
    model = perturbed(build(f"timm/{name}", 10, 64))
    images = torch.randn(1, 3, 64, 64)
    plain = merged(model)
    with torch.no_grad():
        assert torch.equal(plain(images), model(images))
    assert not [m for m in plain.modules() if "Std" in type(m).__name__]
    zeros = pruning.prune(plain, pruning.Block(1, 4), 0.8)
    assert len(zeros) > 10
