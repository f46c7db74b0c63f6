"""A task is a class and a row, a source a few functions and a row: toys of both take the whole road."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from edgeprune.cli import run_recipe
from edgeprune.data.dataset import as_data, as_split, spread_subset
from edgeprune.data.labels import LabelKind
from edgeprune.data.sources import SOURCES
from edgeprune.recipe import Recipe, Variant
from edgeprune.tasks import TASKS
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.task import Analysis, Metric, Section
from edgeprune.training.config import TrainConfig


# --- The toy task: which of two halves a class is in, scored by how far the answer is from it ---------------
@dataclass(frozen=True)
class ToyAnalysis:
    variant: str
    weights_sha256: str
    dense_sha256: str
    nearest: float


class ToyEvaluator:
    def __init__(self):
        self.errors = []

    def update(self, outputs, labels):
        self.errors += (outputs.argmax(1) - labels).abs().tolist()

    def state(self):
        return self.errors

    def merge(self, states):
        self.errors = [error for state in states for error in state]

    def score(self):
        return float(1 / (1 + np.mean(self.errors)))

    def details(self):
        return {"worst": float(max(self.errors))}


class Toy(Classification):
    """How far the class named is from the class shown: what is the same as a classification is its own."""

    name = "toy"
    metric = Metric("nearness", "nearness", "nearness", {"top1": "toys only get near", "miou": "no maps"})
    section = Section("toys", ToyAnalysis)

    def evaluator(self, classes):
        return ToyEvaluator()

    def right(self, outputs, labels):
        return None

    def analysis_steps(self):
        return 1

    def analyse(self, variant, dense, data, advance):
        advance(1)
        return Analysis(ToyAnalysis(variant.name, variant.weights_sha256, dense.weights_sha256, 1.0))


# --- The toy source: stripes, as dark as their class --------------------------------------------------------
def _stripes(count, size_px):
    labels = np.arange(count) % 3
    images = np.repeat((40 + 80 * labels).astype(np.uint8), 3 * size_px**2).reshape(
        count, 3, size_px, size_px
    )
    return as_split(images, labels.astype(np.int64))


def _load(path, preprocessing, progress):
    train, held_out = (_stripes(count, preprocessing.image_size_px) for count in (48, 12))
    return as_data(train, held_out, ("dark", "grey", "light"), "stripes", photographs=False)


STRIPES = SimpleNamespace(
    LABELS=LabelKind.CLASS,
    takes=lambda path: path is not None and path.suffix == ".stripes",
    load=_load,
    held_out=lambda path, preprocessing, count: spread_subset(
        _stripes(12, preprocessing.image_size_px), count
    ),
)


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", Toy())
    rows = {"stripes": STRIPES, **SOURCES}  # Before the image folder, which takes any path.
    for name in list(SOURCES):
        monkeypatch.delitem(SOURCES, name)
    for name, source in rows.items():
        monkeypatch.setitem(SOURCES, name, source)


def test_a_toy_task_on_a_toy_source_takes_the_whole_road(toys, tmp_path):
    (tmp_path / "some.stripes").touch()
    fit = TrainConfig(epochs=1, batch_size=16)
    recipe = Recipe(
        model="timm/test_efficientnet",
        task="toy",
        data=tmp_path / "some.stripes",
        image_size_px=32,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit)},
        targets=("litert-arm64",),
    )
    limits = ["--budget.nearness-drop-points", "100", "--output", str(tmp_path / "run")]
    assert run_recipe(recipe, "", limits) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["variant"] for row in report["rows"]] == ["dense", "block80"]
    for row in report["rows"]:
        assert 0 < row["nearness"] <= 1
        assert row["details"]["worst"] >= 0
        assert row["top1"] is None
        assert row["not_measured"] == {"top1": "toys only get near", "miou": "no maps"}
    assert [toy["variant"] for toy in report["toys"]] == ["dense", "block80"]
    assert report["recipe"]["budget"]["nearness_drop_points"] == 100
    assert "nearness" in (tmp_path / "run" / "report.html").read_text()
    assert {"epoch", "nearness"} <= set(report["trainings"][0]["epochs"][0])
