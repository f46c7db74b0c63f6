"""A variant's allocation, from the recipe to the zeros of each layer and the bytes of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from converters import litert
from converters.facts import Normalization
from edgeprune.data.dataset import Data, InMemory
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.pipeline import checks
from edgeprune.pipeline.allocation import allocate, measured_curves
from edgeprune.pipeline.variants import rules_of
from edgeprune.progress import Progress
from edgeprune.pruning import OneShot, Sparsifier, select
from edgeprune.recipe import Recipe, Variant
from edgeprune.tasks import TASKS
from edgeprune.training import predict
from edgeprune.training.config import Augment
from edgeprune.training.loop import Setting


@pytest.fixture(scope="module")
def setting() -> Setting:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = InMemory(images, torch.arange(24) % 5)
    data = Data(split, split, ("a", "b", "c", "d", "e"), "noise", photographs=False, sha256="0")
    return Setting(
        data, TASKS["classification"], Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), Augment(), seed=0
    )


class Small(nn.Module):
    """Big enough for its weights to be most of the file, small enough to convert in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.wide = nn.Conv2d(32, 256, 1)
        self.head = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.wide(torch.relu(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize("way", ["erdos-renyi", "multiplications", "global", "sensitivity"])
def test_a_variant_has_its_sparsity_whatever_the_allocation(setting: Setting, way: str):
    torch.manual_seed(0)
    model = models.build("mobilenet_v3_small", 5).eval()
    variant = Variant(sparsity=0.8, allocation=way)
    rules, left_dense = rules_of(variant, model, setting)
    assert left_dense == {}, "every layer is a multiple of 4 wide"
    assert len({rule.sparsity for rule in rules}) > 10  # By layer, each its own.
    names = {rule.layers for rule in rules}
    achieved = Sparsifier(model, rules, OneShot()).finalize()
    assert set(achieved) == names
    uniform, _ = rules_of(Variant(sparsity=0.8), model, setting)
    everything = select(model, uniform)
    total = sum(s.layer.weight.numel() for s in everything)
    zeros = sum(achieved.get(s.name, 0.0) * s.layer.weight.numel() for s in everything)
    assert zeros / total == pytest.approx(0.8, abs=4 / total)


def test_a_budget_becomes_a_file_of_that_size(setting: Setting, tmp_path: Path):
    """With what else is in the file, labels and normalisation, counted."""
    torch.manual_seed(0)
    model = Small().eval()
    target, budget = "litert-arm64-int8", 90_000
    variant = Variant(allocation="budget", bytes={target: budget})
    curves = measured_curves(variant, model, setting, Progress(Console(quiet=True)))
    allocation = allocate(variant, model, setting, curves)
    Sparsifier(model, allocation.rules, OneShot()).finalize()
    file = litert.convert(
        model,
        predict.normalized(setting.data.held_out.images[:1], setting.normalization),
        tmp_path / "file.tflite",
        target=target,
        labels=setting.data.classes,
        normalization=setting.normalization,
    )
    assert 0.95 * budget <= file.bytes <= budget


def test_a_time_becomes_zeros_where_they_save_it(setting: Setting):
    torch.manual_seed(0)
    model = models.build("mobilenet_v3_small", 5).eval()
    variant = Variant(allocation="time", time_left={"arm64": 0.6})
    allocation = allocate(variant, model, setting)
    assert 0.55 < allocation.time_fractions["arm64"] <= 0.6
    assert allocation.sparsities["classifier.0"] == 0, "a layer that no sparse kernel runs"
    assert allocation.sparsities["features.2.block.0.0"] > 0.3


def test_multiplications_are_left_as_asked(setting: Setting):
    torch.manual_seed(0)
    model = Small().eval()
    allocation = allocate(Variant(allocation="macs", sparse_macs_left=0.7), model, setting)
    assert 0.68 < allocation.macs_fraction <= 0.7


def test_an_impossible_budget_is_refused_before_anything_is_trained(setting: Setting):
    variants = {"tiny": Variant(allocation="budget", bytes={"litert-arm64": 3000})}
    recipe = Recipe(model="mobilenet_v3_small", image_size_px=32, variants=variants)
    with pytest.raises(UserError, match="variant tiny: litert-arm64: 3,000 bytes cannot be met"):
        checks.refuse_misfits(recipe, Small().eval(), setting)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"sparsity": 0.8, "allocation": "fair"}, "allocation 'fair': choose from auto, uniform"),
        ({"allocation": "budget"}, "bytes and allocation 'budget' go together"),
        ({"allocation": "time"}, "time_left and allocation 'time' go together"),
        ({"sparsity": 0.8, "time_left": {"arm64": 0.4}}, "time_left and allocation 'time' go together"),
        ({"allocation": "macs"}, "sparse_macs_left and allocation 'macs' go together"),
        ({"allocation": "time", "time_left": {"arm64": 40}}, "time_left 'arm64'=40: above 0 and below 1"),
        ({"allocation": "time", "time_left": {"pc": 0.4}}, "time_left 'pc': no times were fitted for it"),
        (
            {"allocation": "macs", "sparse_macs_left": 0.3, "sparsity": 0.5},
            "allocation 'macs' finds the sparsity: leave it 0",
        ),
        ({"sparsity": 0.8, "bytes": {"litert-arm64": 9}}, "bytes and allocation 'budget' go together"),
        (
            {"sparsity": 0.8, "allocation": "budget", "bytes": {"litert-arm64": 9}},
            "allocation 'budget' finds the sparsity: leave it 0",
        ),
        ({"channels": 0.5, "allocation": "global"}, "allocation 'global': sparsity says how many zeros"),
        (
            {"sparsity": 0.8, "layers": {"classifier.*": 0.5}, "allocation": "global"},
            "layers and an allocation that is not uniform: choose one of them",
        ),
        (
            {"allocation": "budget", "bytes": {"litert-arm64-static-int8": 9}},
            "bytes 'litert-arm64-static-int8'=9: a target that stores zeros",
        ),
        ({"allocation": "budget", "bytes": {"litert-arm64": 0}}, "bytes 'litert-arm64'=0"),
    ],
)
def test_senseless_allocations_are_refused(variant: dict, message: str):
    with pytest.raises(UserError, match=f"variants.x.{message}"):
        Recipe(model="mobilenet_v3_small", variants={"x": Variant(**variant)})
