"""Whole runs on images that are decoded as they are needed, one of them truncated."""

import pytest

from edgeprune.cli import run_recipe
from edgeprune.data import loading
from edgeprune.recipe import Recipe
from edgeprune.report import records
from edgeprune.training.config import TrainConfig
from tests.support.images import write_folder


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "IN_MEMORY_FRACTION", 1e-9)
    root = write_folder(tmp_path / "images", train=40)
    file = root / "train" / "red" / "007.jpg"
    file.write_bytes(file.read_bytes()[:300])
    return Recipe(
        "mobilenet_v3_small",
        data=root,
        image_size_px=32,
        dense=TrainConfig(epochs=1, batch_size=24),
        targets=("litert-arm64-int8",),
        output=tmp_path / "run",
    )


def test_a_truncated_image_is_named_before_training_and_nothing_is_written(recipe, capsys):
    assert run_recipe(recipe, "", []) == 2
    told = capsys.readouterr().err
    assert "train/red/007.jpg: not an image that can be read" in told
    assert not recipe.output.exists()


@pytest.mark.slow
def test_unchecked_it_is_skipped_and_the_report_names_it(recipe, capsys):
    assert run_recipe(recipe, "", ["--check-images", "False", "--tensorboard"]) == 0
    report = records.read(recipe.output)
    data = report.environment["data"]
    assert (data["images"], data["skipped_images"]) == ("decoded as needed", 1)
    assert "train/red/007.jpg" in data["skipped"][0]
    assert report.rows[0].images == 24
    (training,) = report.trainings
    assert training.epochs[0]["images_per_second"] > 0
    assert 0 <= training.epochs[0]["waiting_fraction"] <= 1
    assert len(list((recipe.output / "tensorboard" / "dense").iterdir())) == 1
    page = (recipe.output / "report.html").read_text()
    assert "Training images as training sees them" in page
    assert (recipe.output / "thumbnails" / "augmented.jpg").stat().st_size > 1000
    assert "they are decoded as they are needed" in capsys.readouterr().out
