"""Every recipe script runs from its one command; here with few images, one epoch and one target."""

from __future__ import annotations

import dataclasses
from importlib import import_module
from pathlib import Path

import pytest

from edgeprune.cli import run_recipe
from edgeprune.report import records
from edgeprune.training.config import TrainConfig
from tests.support.images import write_boxes, write_folder, write_masks

RECIPES = sorted(path.stem for path in (Path(__file__).parents[2] / "recipes").glob("*.py"))
EPOCH = TrainConfig(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each task, all with 24 held-out images."""
    return {
        "classification": write_folder(tmp_path_factory.mktemp("images")),
        "detection": write_boxes(tmp_path_factory.mktemp("boxes"), held_out=24),
        "segmentation": write_masks(tmp_path_factory.mktemp("masks"), held_out=24),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_the_files_it_promises(name, images, tmp_path):
    recipe = import_module(f"recipes.{name}").RECIPE
    assert set(recipe.budget.bytes) <= set(recipe.targets)
    short = dataclasses.replace(
        recipe,
        data=images[recipe.task],
        image_size_px=32,
        dense=EPOCH,
        variants={key: dataclasses.replace(value, fit=EPOCH) for key, value in recipe.variants.items()},
        # A detector hardly learns anything in an epoch: float32 errors of LiteRT and torch add up to more
        # than is allowed beside stored integers.
        targets=("litert-arm64" if recipe.task == "detection" else "litert-arm64-int8",),
        budget=dataclasses.replace(recipe.budget, bytes={}, drop_points={}),
        output=tmp_path / "run",
    )
    assert run_recipe(short, "", []) == 0
    dense, block, channels = records.read(tmp_path / "run").rows
    assert (block.variant, channels.variant) == ("block80", "channels")
    assert block.prunable_zero_fraction == pytest.approx(0.8, abs=0.01)
    assert channels.bytes < 0.75 * dense.bytes
    if name != "resnet18":  # Its zeros are in 3x3 convolutions, which LiteRT stores dense.
        assert block.bytes < 0.5 * dense.bytes
    assert dense.images == 24
