"""Detection as a task: the road from images to files, and files that find the boxes that torch finds."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from converters import coreml, litert
from converters.facts import Normalization
from edgeprune.budget import Budget
from edgeprune.cli import main, run_recipe
from edgeprune.data import box_scenes
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.sources import SOURCES, source
from edgeprune.errors import UserError
from edgeprune.models.architecture import Architecture
from edgeprune.models.build import build
from edgeprune.recipe import Recipe, Variant
from edgeprune.tasks import TASKS
from edgeprune.tasks.detection.suppression import find
from edgeprune.training.config import Augment, TrainConfig
from tests.support.boxes import write_yolo

MODEL, SIZE_PX = "ssdlite/timm/lcnet_035", 64
TASK = TASKS["detection"].bound(Architecture(MODEL, SIZE_PX))
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSES = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def sure():
    """An untrained detector that is sure of what it says: it gives many boxes."""
    torch.manual_seed(0)
    model = build(MODEL, 3, SIZE_PX).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, SIZE_PX, SIZE_PX), generator=generator).float()
    with torch.no_grad():
        model.train()
        for _ in range(30):  # Batch norms that have seen something.
            model(images / 127.5 - 1)
        model.eval()
        rows = model(images / 127.5 - 1)
        for head, most in ((model.boxes, rows[..., :4].std()), (model.scores, rows[..., 4:].std())):
            for level in head:
                level[-1].weight.mul_(2.5 / most)
        return model, images.numpy(), model(images / 127.5 - 1).numpy()


@pytest.mark.parametrize(
    ("converter", "name", "tolerance"),
    # float16 rounds every value on the way: 3e-3 to 1e-2 of the largest on trained detectors (docs/results).
    [(litert, "dense.tflite", 1e-4), (coreml, "dense.mlpackage", 5e-3)],
)
def test_a_file_gives_torchs_rows_and_the_same_boxes(sure, converter, name, tolerance, tmp_path):
    model, images, wanted = sure
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    path = converter.convert(
        model, example, tmp_path / name, labels=CLASSES, normalization=HALF, metadata=TASK.metadata()
    ).path
    loaded = converter.load(path)
    assert loaded.input.labels == tuple(CLASSES)
    rows = loaded.predict(images)
    assert rows.shape == wanted.shape
    assert np.abs(rows - wanted).max() <= tolerance * np.abs(wanted).max()
    for given, exact in zip(rows, wanted, strict=True):
        found, there = (find(of, TASK.anchors, SIZE_PX, 0.3) for of in (given, exact))
        assert len(there) > 20
        if converter is litert:
            np.testing.assert_array_equal(found.classes, there.classes)
            np.testing.assert_allclose(found.corners, there.corners, atol=0.01)
    # Rounding to float16 may move a score across the limit, or one box before another.
    assert TASK.agreement(torch.from_numpy(rows), torch.from_numpy(wanted)) > 0.98


def test_labels_that_are_not_the_rows_classes_are_refused(sure, tmp_path):
    with pytest.raises(UserError, match="2 labels for rows of 8 values"):
        litert.convert(sure[0], torch.zeros(1, 3, SIZE_PX, SIZE_PX), tmp_path / "a.tflite", labels=["a", "b"])


def test_the_metadata_says_how_rows_become_boxes():
    told = json.loads(TASK.metadata()["boxes"])
    boxes = [
        [(column + 0.5) / level["cells"], (row + 0.5) / level["cells"], *shape]
        for level in told["levels"]
        for row in range(level["cells"])
        for column in range(level["cells"])
        for shape in level["shapes"]
    ]
    np.testing.assert_allclose(
        np.array(boxes) * told["size_px"], TASK.anchors.boxes(SIZE_PX), rtol=1e-4, atol=1e-3
    )


def test_agreement_counts_the_boxes_that_both_find():
    rows = torch.zeros(1, len(TASK.anchors.boxes(SIZE_PX)), 8)
    rows[..., 4] = 9.0
    rows[0, 0, 5:] = torch.tensor([20.0, 0, 0])
    other = rows.clone()
    other[0, 300, 5:] = torch.tensor([0, 20.0, 0])
    assert TASK.agreement(rows, rows) == 1.0
    assert TASK.agreement(rows, other) == pytest.approx(2 / 3)


def test_classes_in_another_order_keep_boxes_and_background():
    rows = torch.arange(8.0).expand(1, 2, 8)
    assert TASK.reordered(rows, [2, 0, 1])[0, 0].tolist() == [0, 1, 2, 3, 4, 7, 5, 6]


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(box_scenes, "TRAIN_SCENES", 16)
    monkeypatch.setattr(box_scenes, "HELD_OUT_SCENES", 6)


@pytest.mark.slow
def test_the_whole_road(few_scenes, tmp_path, capsys):
    fit = TrainConfig(epochs=2, batch_size=8, first_px=32)
    recipe = Recipe(
        model=MODEL,
        task="detection",
        image_size_px=SIZE_PX,
        augment=Augment(flip=True),
        dense=fit,
        variants={"channels": Variant(macs_left=0.6, fit=dataclasses.replace(fit, epochs=1))},
        targets=("litert-arm64",),
        budget=Budget(drop_points={"map": 100.0}),
        output=tmp_path / "run",
    )
    assert run_recipe(recipe, "", []) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["variant"] for row in report["rows"]] == ["dense", "channels"]
    for row in report["rows"]:
        assert 0 <= row["map"] <= row["details"]["map50"] <= 1
        assert row["max_relative_error"] < 1e-4
        assert row["top1"] is None
        assert "boxes" in row["not_measured"]["top1"]
    macs = [training["macs"] for training in report["trainings"]]
    assert 0.5 < macs[1] / macs[0] < 0.7
    assert report["trainings"][0]["epochs"][1]["epoch"] == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Average precision of each class" in page
    (found,) = [found for found in report["detections"] if found["variant"] == "channels"]
    assert [one["name"] for one in found["classes"]] == CLASSES
    assert found["pictures"]
    assert all(f"thumbnails/{name.rpartition('/')[2]}" in name for name in found["pictures"])
    assert page.count("data:image/jpeg;base64,") >= len(found["pictures"])
    assert "Average precision" in (tmp_path / "run" / "report.md").read_text()


def test_bad_boxes_are_the_users_mistake(tmp_path, capsys):
    folder = write_yolo(tmp_path / "data")
    (folder / "labels" / "train" / "a.txt").write_text("9 0.5 0.5 0.1 0.1\n0 2 0.5 0.1 0.1\n")
    recipe = Recipe(model=MODEL, task="detection", image_size_px=SIZE_PX)
    (tmp_path / "recipe.toml").write_text(f'model = "{recipe.model}"\ntask = "detection"\n')
    status = main(
        ["run", str(tmp_path / "recipe.toml"), "--data", str(folder), "--output", str(tmp_path / "run")]
    )
    assert status == 2
    told = capsys.readouterr().err
    assert "line 1: class 9" in told
    assert "line 2: box" in told
    assert not (tmp_path / "run").exists()


def test_what_a_detection_cannot_use_is_refused():
    with pytest.raises(UserError, match="erase_px"):
        Recipe(model=MODEL, task="detection", augment=Augment(erase_px=8))


def test_generated_scenes_are_the_same_every_time_and_hold_what_their_boxes_say(few_scenes):
    prepare = Preprocessing(48, whole_image=True)
    (one, two) = (box_scenes.load(None, prepare, None) for _ in range(2))
    assert source(None, LabelKind.BOXES) is SOURCES["box scenes"]
    assert one.sha256 == two.sha256
    counts = [len(labels) for labels in one.train.labels]
    assert min(counts) == 0
    assert max(counts) > 2
    for labels in one.train.labels:
        sizes = labels.corners[:, 2:] - labels.corners[:, :2]
        assert (sizes > 2).all()
        assert (labels.corners >= 0).all()
        assert (labels.corners <= 48).all()
