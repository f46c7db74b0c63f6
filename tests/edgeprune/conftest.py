"""One real run, small, shared by the tests that look at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.budget import Budget
from edgeprune.cli import run_recipe
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig
from tests.support.images import write_folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def small_recipe(image_folder: Path) -> Recipe:
    fit = TrainConfig(epochs=3, batch_size=16)
    return Recipe(
        model="mobilenet_v3_small",
        data=image_folder,
        image_size_px=32,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit), "channels": Variant(channels=0.35, fit=fit)},
        targets=("coreml-ios16", "litert-arm64-int8", "litert-arm64-static-int8"),
        budget=Budget(bytes={"litert-arm64-int8": 2_000_000}),
    )


@pytest.fixture(scope="session")
def finished_run(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "small"
    assert run_recipe(small_recipe, "", ["--output", str(folder)]) == 0
    return folder
