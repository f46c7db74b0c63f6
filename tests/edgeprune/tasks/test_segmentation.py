"""The road of a segmentation end to end, on real runtimes: a tiny folder of images and masks, two epochs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from converters import coreml, litert
from edgeprune.budget import Budget, Limits
from edgeprune.cli import main, run_recipe
from edgeprune.data import scenes, segmentation_folder, sources
from edgeprune.data.labels import LabelKind
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.models import weights
from edgeprune.models.resize import resize
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe, Variant
from edgeprune.report import records
from edgeprune.tasks import TASKS
from edgeprune.tasks.segmentation import MapExamination
from edgeprune.tasks.task import score
from edgeprune.training import augment, predict
from edgeprune.training.config import Augment, TrainConfig
from tests.support.images import write_masks

SIZE_PX = 32
SEGMENTATION = TASKS["segmentation"]
TARGETS = ("coreml-ios16", "litert-arm64", "litert-arm64-static-int8")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    fit = TrainConfig(epochs=2, batch_size=8)
    return Recipe(
        model="lraspp_mobilenet_v3_large",
        task="segmentation",
        data=write_masks(folder / "data"),
        image_size_px=SIZE_PX,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit)},
        targets=TARGETS,
        budget=Budget(bytes={"litert-arm64": 20_000_000}, drop_points={"miou": 100.0}),
        output=folder / "run",
    )


@pytest.fixture(scope="module")
def finished(recipe):
    assert run_recipe(recipe, "", []) == 0
    return recipe.output


@pytest.fixture(scope="module")
def held_out(recipe):
    return segmentation_folder.load(recipe.data, recipe.preprocessing, Progress(Console(quiet=True))).held_out


def torch_model(folder, variant, recipe):
    model = models.build(recipe.model, 4, SIZE_PX).eval()
    resize(model, load_file(folder / "variants" / f"{variant}.safetensors"))
    return model


def load_of(row, folder):
    return (coreml if row.target.startswith("coreml") else litert).load(folder / row.path)


def test_every_file_has_its_mean_iou_and_no_top1(finished):
    report = records.read(finished)
    assert [(row.variant, row.target) for row in report.rows] == [
        (v, t) for v in ("dense", "block80") for t in TARGETS
    ]
    for row in report.rows:
        assert row.metric == "miou"
        assert "each pixel" in row.not_measured["top1"]
        assert 0 < row.score < 1
        assert row.images == 8
        dense = report.trainings[0]
        assert row.drop_points == pytest.approx(100 * (dense.score - row.score))
    for plain in json.loads((finished / "report.json").read_text())["rows"]:
        assert (plain["top1"], plain["top1_drop_points"]) == (None, None)
        assert 0 < plain["miou"] < 1
    for training in report.trainings:
        assert [0 < epoch["miou"] < 1 for epoch in training.epochs] == [True, True]
        assert not any("top1" in epoch for epoch in training.epochs)


@pytest.mark.parametrize("place", range(2 * len(TARGETS)))
def test_the_mean_iou_is_that_of_the_file(place, finished, held_out):
    row = records.read(finished).rows[place]
    outputs = load_of(row, finished).predict(held_out.images.float().numpy())
    assert outputs.shape == (8, 4, SIZE_PX, SIZE_PX)
    assert row.score == pytest.approx(score(SEGMENTATION, torch.from_numpy(outputs), held_out.labels))


@pytest.mark.parametrize("variant", ["dense", "block80"])
@pytest.mark.parametrize(("target", "most"), [("coreml-ios16", 0.03), ("litert-arm64", 1e-3)])
def test_files_give_the_maps_of_their_torch_models(target, most, variant, finished, recipe, held_out):
    row = next(r for r in records.read(finished).rows if (r.variant, r.target) == (variant, target))
    model = torch_model(finished, variant, recipe)
    normalization = recipe.preprocessing.normalization
    expected = predict.predict(model, held_out, normalization).numpy()
    outputs = load_of(row, finished).predict(held_out.images.float().numpy())
    assert np.abs(outputs - expected).max() < most * np.abs(expected).max()
    assert row.max_relative_error < most


def test_block_files_are_stored_sparse_and_the_report_says_why_they_run_dense(finished):
    rows = {(row.variant, row.target): row for row in records.read(finished).rows}
    for target, inspect in (("coreml-ios16", coreml.inspect), ("litert-arm64", litert.inspect)):
        row = rows["block80", target]
        prunable = [layer for layer in inspect(finished / row.path).layers if layer.kind == "conv1x1"]
        assert sum(layer.encoding.startswith("sparse") for layer in prunable) > 0.8 * len(prunable)
        assert row.prunable_zero_fraction == pytest.approx(0.8, abs=0.01)
        assert row.bytes < 0.55 * rows["dense", target].bytes
    lint = litert.lint(finished / rows["block80", "litert-arm64"].path, runtime="arm64")
    assert rows["block80", "litert-arm64"].sparse_runtime is lint.sparse
    assert not lint.sparse, "this model's zeros are not where the runtime's sparse kernels begin"
    assert rows["block80", "litert-arm64"].sparse_runtime_reason


def test_files_name_their_classes(finished):
    for row in records.read(finished).rows:
        assert load_of(row, finished).input.labels == ("grey", "blue", "green", "red")


def test_the_pages_tell_of_mean_iou_class_by_class(finished):
    report = records.read(finished)
    page, text = (finished / "report.html").read_text(), (finished / "report.md").read_text()
    for told in (page, text):
        assert "ean IoU" in told
        assert "op-1 in torch" not in told
        assert "Class by class" in told
    assert [found.variant for found in report.of(MapExamination)] == ["dense", "block80"]
    ious = [known.iou for known in report.of(MapExamination)[1].classes]
    assert np.mean(ious) == pytest.approx(report.trainings[1].score)
    pictures = report.of(MapExamination)[1].pictures
    assert len(pictures) == 4
    assert page.count('<img class="strip"') == 4
    assert all((finished / path).is_file() for path in pictures)
    assert "confusions and robustness to corruptions are reported" in page


def test_the_report_is_rebuilt_the_same(finished, capsys):
    before = (finished / "report.json").read_text()
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.json").read_text() == before


def test_check_and_compare_speak_of_mean_iou(finished, tmp_path, capsys):
    budget = tmp_path / "budget.toml"
    budget.write_text("miou_drop_points = 0\n[target.coreml-ios16]\nmiou_drop_points = 100\n")
    assert main(["check", str(finished), "--budget", str(budget)]) == 0
    budget.write_text("top1_drop_points = 50\n")
    assert main(["check", str(finished), "--budget", str(budget)]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "accuracy not measured: this model names a class for each pixel" in told
    assert main(["compare", str(finished), str(finished)]) == 0
    assert "mean IoU" in capsys.readouterr().out


def test_verify_compares_maps_pixel_by_pixel(finished, capsys):
    file = finished / "files" / "block80-litert-arm64.tflite"
    assert main(["verify", str(file), "--runtime", "host", "--images", "4"]) == 0
    assert "100.0 %" in capsys.readouterr().out


def test_sensitivity_is_told_in_mean_iou(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    options = ["--layers", "classifier.*", "--sparsities", "0.9", "--images", "8"]
    assert main(["sensitivity", str(run), *options]) == 0
    assert "Points of mean IoU lost" in " ".join(capsys.readouterr().out.split())
    plain = json.loads((run / "sensitivity.json").read_text())
    assert 0 < plain["miou"] < 1
    assert plain["layers"]
    assert all(0 <= value <= 1 for layer in plain["layers"] for value in layer["miou"])
    assert "top1" not in json.dumps(plain)
    assert main(["report", str(run)]) == 0
    told = json.loads((run / "report.json").read_text())["sensitivity"]
    assert told["miou"] == plain["miou"]
    assert not {"top1", "score", "metric"} & set(told)
    assert records.read(run).sensitivity.metric == "miou"


@pytest.mark.slow
def test_zeros_are_shared_out_by_what_mean_iou_says(recipe, finished, tmp_path):
    fit = TrainConfig(epochs=1, batch_size=8)
    measured = replace(
        recipe,
        checkpoint=finished / "variants" / "dense.safetensors",
        variants={"measured": Variant(sparsity=0.6, allocation="sensitivity", fit=fit)},
        targets=("coreml-ios16",),
        budget=Budget(),
        output=tmp_path / "run",
    )
    assert run_recipe(measured, "", []) == 0
    dense, row = records.read(measured.output).rows
    assert (row.variant, row.metric) == ("measured", "miou")
    assert row.prunable_zero_fraction == pytest.approx(0.6, abs=0.02)
    assert row.drop_points != dense.drop_points
    fractions = {round(layer["zero_fraction"], 2) for layer in row.layers if layer["kind"] == "conv1x1"}
    assert len(fractions) > 3, "each layer has its own share"


SENSELESS = {
    "task 'poses': choose from classification, segmentation, detection": {"task": "poses"},
    "budget.top1_drop_points: a segmentation is measured by miou_drop_points": {
        "budget": Budget(drop_points={"top1": 0.5})
    },
    "budget.target.litert-arm64.top1_drop_points: a segmentation is": {
        "budget": Budget(target={"litert-arm64": Limits(drop_points={"top1": 1.0})})
    },
    "augment.erase_px: a square without its pixels has no class": {"augment": Augment(erase_px=4)},
    "budget.miou_drop_points: a classification is measured by top1_drop_points": {"task": "classification"},
}


@pytest.mark.parametrize("message", SENSELESS)
def test_what_makes_no_sense_is_refused(message, recipe):
    with pytest.raises(UserError) as caught:
        replace(recipe, **SENSELESS[message])
    assert message in str(caught.value)


def test_a_model_of_another_task_is_refused(recipe, tmp_path, capsys):
    wrong = replace(recipe, model="mobilenet_v3_small", output=tmp_path / "run")
    assert run_recipe(wrong, "", []) == 2
    assert "model mobilenet_v3_small and task segmentation do not fit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_labels_move_with_their_pixels():
    images = torch.randint(
        0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    labels = images[:, 0].long()
    shift = augment.random_shift(images, 4, torch.Generator().manual_seed(1))
    moved = shift.images(images)
    assert torch.equal(moved[:, 0].long(), SEGMENTATION.transform_labels(labels, shift))
    assert not torch.equal(moved, images)
    mirror = augment.mirror(torch.tensor([True, False] * 3), 16)
    mirrored = mirror.images(images)
    assert torch.equal(mirrored[::2], images[::2].flip(3))
    assert torch.equal(mirrored[1::2], images[1::2])
    assert torch.equal(mirrored[:, 0].long(), SEGMENTATION.transform_labels(labels, mirror))
    assert TASKS["classification"].transform_labels(labels, mirror) is labels
    doubled = SEGMENTATION.transform_labels(labels, augment.resize(16, 32))
    assert torch.equal(doubled, labels.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_the_generated_scenes_serve_where_there_is_no_folder(recipe, monkeypatch):
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 6)
    monkeypatch.setattr(scenes, "HELD_OUT_SCENES", 3)
    source = sources.source(None, LabelKind.MAP)
    made = source.load(None, recipe.preprocessing, Progress(Console(quiet=True)))
    assert (len(made.train), len(made.held_out), len(made.classes)) == (6, 3, 11)
    assert len(source.held_out(None, recipe.preprocessing, 2)) == 2


def test_torchvision_s_own_weights_fit(tmp_path):
    """Only the dict around its map is taken away: layers keep their names."""
    from torchvision.models import segmentation

    theirs = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = models.build("lraspp_mobilenet_v3_large", 4).eval()
    weights.load_checkpoint(ours, tmp_path / "theirs.pt")
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images)["out"])
    assert SEGMENTATION.takes_model("lraspp_mobilenet_v3_large")
    assert not SEGMENTATION.takes_model("mobilenet_v3_small")
    assert TASKS["classification"].takes_model("mobilenet_v3_small")
    assert not TASKS["classification"].takes_model("lraspp_mobilenet_v3_large")
