"""The road end to end, on real runtimes: a tiny folder of images, three epochs."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from converters import coreml, litert
from converters.facts import sha256, size_bytes
from converters.litert.graph import read_file
from converters.litert.storage import MIN_INT8_VALUES
from edgeprune import recipe as recipes
from edgeprune.budget import Budget
from edgeprune.cli import main, run_recipe
from edgeprune.data.dataset import InMemory
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.models import build as models
from edgeprune.models.resize import resize
from edgeprune.pipeline.files import calibration_images
from edgeprune.pipeline.run_folder import read_recipe
from edgeprune.pipeline.variants import schedule
from edgeprune.pruning import Block, Rule, Sparsifier
from edgeprune.recipe import Variant
from edgeprune.report import records
from edgeprune.training import predict
from edgeprune.training.config import TrainConfig

VARIANTS = ("dense", "block80", "channels")


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def row(report, variant, target):
    return next(r for r in report.rows if (r.variant, r.target) == (variant, target))


@pytest.mark.parametrize("name", recipes.SCHEDULES)
def test_a_schedule_by_name_ends_in_time(name):
    steps, layer = 100, nn.Linear(16, 16)
    sparsifier = Sparsifier(layer, [Rule(Block(1, 4), 0.75)], schedule(name, steps))
    seen = []
    for _ in range(steps + 1):
        sparsifier.step()
        seen.append(float((layer.weight == 0).double().mean()))
    assert seen[-1] == 0.75
    assert seen == sorted(seen)
    # A layer of 64 blocks: cubic growth rises by whole blocks, ever more slowly.
    different = len(set(seen))
    assert different == {"one-shot": 1, "stepwise": 5}.get(name, different)
    if name == "cubic":
        assert different > 20
        assert seen[steps // 4] > 0.75 / 2


def test_every_variant_has_a_row_on_every_target(finished_run, small_recipe):
    report = records.read(finished_run)
    assert [(r.variant, r.target) for r in report.rows] == [
        (v, t) for v in VARIANTS for t in small_recipe.targets
    ]
    assert (finished_run / "report.html").is_file()
    assert (finished_run / "report.md").is_file()


def test_rows_tell_what_is_on_disk(finished_run):
    for measured in records.read(finished_run).rows:
        file = finished_run / measured.path
        assert measured.bytes == size_bytes(file)
        assert measured.sha256 == sha256(file)
        assert measured.images == 24
        assert 0 <= measured.score <= 1
        assert measured.input_range == (0.0, 255.0)


@pytest.mark.parametrize("target", ["coreml-ios16", "litert-arm64-int8"])
def test_top1_is_that_of_the_file(finished_run, small_recipe, target):
    from rich.console import Console

    from edgeprune.data import image_folder as data
    from edgeprune.progress import Progress

    held_out = data.load(small_recipe.data, Preprocessing(32), Progress(Console(quiet=True))).held_out
    measured = row(records.read(finished_run), "block80", target)
    load = coreml.load if target.startswith("coreml") else litert.load
    outputs = load(finished_run / measured.path).predict(held_out.images.float().numpy())
    assert measured.score == pytest.approx(float((outputs.argmax(1) == held_out.labels.numpy()).mean()))


def test_float_files_answer_as_their_torch_models(finished_run):
    """A model trained for three epochs is badly conditioned: float16 alone moves its answers."""
    report = records.read(finished_run)
    for variant in VARIANTS:
        assert row(report, variant, "coreml-ios16").max_relative_error < 0.03


@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_files_answer_as_the_torch_model_with_rounded_weights(finished_run, small_recipe, variant):
    """What int8 changes is the rounding of the weights, however badly the model takes it."""
    model = models.build(small_recipe.model, 3).eval()
    resize(model, load_file(finished_run / "variants" / f"{variant}.safetensors"))
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    normalization = small_recipe.preprocessing.normalization
    with torch.no_grad():
        expected = rounded_to_int8(model)(predict.normalized(images, normalization)).numpy()
    file = finished_run / "files" / f"{variant}-litert-arm64-int8.tflite"
    # Folding alone moves a model trained so little by 2e-5, rounding its weights by 0.6.
    assert np.abs(litert.load(file).predict(images.numpy()) - expected).max() < 1e-3 * np.abs(expected).max()


def rounded_to_int8(model):
    """Batch norms folded into the convolutions before them, then weights rounded per output channel."""
    for block in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        for name, following in itertools.pairwise(dict(block.named_children())):
            pair = getattr(block, name), getattr(block, following)
            if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(*pair))
                setattr(block, following, nn.Identity())
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.numel() >= MIN_INT8_VALUES:
            largest = layer.weight.data.abs().flatten(1).amax(1)
            scale = torch.where(largest > 0, largest / 127, 1.0).view(-1, *[1] * (layer.weight.ndim - 1))
            layer.weight.data = (layer.weight.data / scale).round() * scale
    return model


def test_block_files_hold_the_zeros_and_are_sparse(finished_run):
    for target, inspect in (("coreml-ios16", coreml.inspect), ("litert-arm64-int8", litert.inspect)):
        suffix = ".mlpackage" if target.startswith("coreml") else ".tflite"
        facts = inspect(finished_run / "files" / f"block80-{target}{suffix}")
        prunable = [layer for layer in facts.layers if layer.kind in ("conv1x1", "linear")]
        weights = [torch.Size(layer.shape).numel() for layer in prunable]
        zeros = sum(layer.zero_fraction * count for layer, count in zip(prunable, weights, strict=True))
        assert zeros / sum(weights) >= 0.79
        assert sum(layer.encoding.startswith("sparse") for layer in prunable) > 0.9 * len(prunable)


def test_compressed_files_are_smaller(finished_run):
    report = records.read(finished_run)
    for target, block, channels in (("coreml-ios16", 0.40, 0.60), ("litert-arm64-int8", 0.45, 0.60)):
        dense = row(report, "dense", target).bytes
        assert row(report, "block80", target).bytes <= block * dense
        assert row(report, "channels", target).bytes <= channels * dense


def test_sparse_kernels_are_claimed_only_where_they_run(finished_run):
    report = records.read(finished_run)
    assert row(report, "dense", "litert-arm64-int8").sparse_runtime is False
    assert row(report, "block80", "litert-arm64-int8").sparse_runtime is True
    unknown = row(report, "block80", "coreml-ios16")
    assert unknown.sparse_runtime is None
    assert "Core ML does not say" in unknown.sparse_runtime_reason


def test_static_int8_files_compute_in_integers(finished_run):
    """What people would ship otherwise: calibrated on training images, and dense whatever the weights."""
    report = records.read(finished_run)
    for variant in VARIANTS:
        measured = row(report, variant, "litert-arm64-static-int8")
        assert measured.sparse_runtime is False
        stored = row(report, "channels" if variant == "channels" else "dense", "litert-arm64-int8")
        assert measured.bytes < 1.2 * stored.bytes
        graph = read_file(finished_run / measured.path)
        convolutions = [op for op in graph.ops if graph.op_name(op) == "CONV_2D"]
        assert {graph.type_name(int(tensor)) for op in convolutions for tensor in op.inputs[:2]} == {"INT8"}


def test_calibration_images_are_training_images_of_every_class():
    labels = torch.arange(10).repeat_interleave(30)
    images = labels[:, None, None, None].expand(-1, 3, 2, 2).to(torch.uint8)
    chosen = calibration_images(InMemory(images, labels))
    assert chosen.shape == (64, 3, 2, 2)
    assert chosen.dtype == np.float32
    assert set(chosen[:, 0, 0, 0]) == set(range(10))


def test_channels_go_by_what_is_left_step_by_step_and_weights_regrow(small_recipe, tmp_path):
    fit = TrainConfig(epochs=1, batch_size=16)
    lean = Variant(
        after="channels", macs_left=0.7, sparsity=0.8, criterion="squared_magnitude", regrow=True, fit=fit
    )
    recipe = replace(
        small_recipe,
        model="timm/lcnet_050",
        dense=fit,
        variants={"channels": Variant(macs_left=0.6, fit=fit), "lean": lean},
        targets=("coreml-ios16",),
        budget=Budget(),
        output=tmp_path / "run",
    )
    assert run_recipe(recipe, "", []) == 0
    report = records.read(tmp_path / "run")
    macs = {training.variant: training.macs for training in report.trainings}
    assert macs["channels"] / macs["dense"] == pytest.approx(0.6, abs=0.03)
    assert macs["lean"] / macs["channels"] == pytest.approx(0.7, abs=0.03)
    assert report.rows[2].prunable_zero_fraction == pytest.approx(0.8, abs=0.01)


def test_the_dense_weights_are_the_baseline_of_the_variants(finished_run):
    block = load_file(finished_run / "variants" / "block80.safetensors")
    zeros = (block["features.12.0.weight"] == 0).float().mean()
    assert zeros == pytest.approx(0.8, abs=0.001)
    assert (block["features.0.0.weight"] != 0).all()


def test_the_same_command_trains_nothing_again(copied_run, small_recipe, capsys):
    def written() -> dict[Path, int]:
        folders = ("variants", "files", "rows", "examinations", "thumbnails")
        files = [file for name in folders for file in (copied_run / name).rglob("*")]
        return {file: file.stat().st_mtime_ns for file in files if file.is_file()}

    before = written()
    assert run_recipe(small_recipe, "", ["--output", str(copied_run)]) == 0
    assert written() == before
    assert "training" not in capsys.readouterr().out


def test_the_report_is_rebuilt_without_training(copied_run, capsys):
    before = (copied_run / "report.json").read_text()
    for page in copied_run.glob("report.*"):
        page.unlink()
    assert main(["report", str(copied_run)]) == 0
    assert (copied_run / "report.json").read_text() == before
    assert (copied_run / "report.html").is_file()


def test_a_file_changed_after_measuring_is_noticed(copied_run, capsys):
    file = copied_run / "files" / "block80-litert-arm64-int8.tflite"
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    assert main(["report", str(copied_run)]) == 2
    assert "block80 on litert-arm64-int8" in capsys.readouterr().err


def test_over_budget_is_status_1_and_names_each_file(copied_run, tmp_path, capsys):
    budget = tmp_path / "budget.toml"
    budget.write_text('[bytes]\n"litert-arm64-int8" = 1000\n')
    assert main(["check", str(copied_run), "--budget", str(budget)]) == 1
    told = capsys.readouterr().out
    for measured in records.read(copied_run).rows:
        if measured.target == "litert-arm64-int8":
            assert measured.path in told
            assert f"{measured.bytes:,}" in told.replace(" ", ",")
    assert "1,000" in told.replace(" ", ",")


def test_the_recipe_s_own_budget_decides_the_exit_status(copied_run, small_recipe, capsys):
    tight = ["--output", str(copied_run), "--budget.bytes", "litert-arm64-int8=1000"]
    assert run_recipe(small_recipe, "", tight) == 1
    assert "block80-litert-arm64-int8.tflite" in capsys.readouterr().out
    assert main(["check", str(copied_run)]) == 1


def test_another_recipe_s_run_is_not_overwritten(copied_run, small_recipe, capsys):
    assert run_recipe(small_recipe, "", ["--output", str(copied_run), "--dense.epochs", "9"]) == 2
    assert "dense.epochs: 3 there, 9 now" in capsys.readouterr().err
    assert recipes.read(copied_run / "recipe.toml").dense.epochs == 3


def test_changed_images_are_not_mixed_into_a_run(copied_run, small_recipe, tmp_path, capsys):
    inputs = copied_run / "inputs.json"
    inputs.write_text(json.dumps({**json.loads(inputs.read_text()), "data": "0" * 64}))
    assert run_recipe(small_recipe, "", ["--output", str(copied_run)]) == 2
    assert "the data changed since this run began" in capsys.readouterr().err


def test_killed_in_fine_tuning_it_goes_on_and_ends_the_same(finished_run, small_recipe, tmp_path):
    folder = tmp_path / "killed"
    recipe = tmp_path / "recipe.toml"
    # One target and one variant are enough: what follows from the weights is compared too.
    variants = {"block80": small_recipe.variants["block80"]}
    shorter = replace(
        small_recipe, output=folder, variants=variants, targets=("coreml-ios16",), budget=Budget()
    )
    recipe.write_text(recipes.to_toml(shorter))
    command = [sys.executable, "-m", "edgeprune.cli", "run", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "variants" / "block80.partial").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "variants" / "block80.safetensors").exists()
    assert not (folder / "report.json").exists()

    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "block80: goes on after epoch" in told
    for variant in ("dense", "block80"):
        weights = Path("variants", f"{variant}.safetensors")
        assert (folder / weights).read_bytes() == (finished_run / weights).read_bytes()
        resumed, uninterrupted = (
            row(records.read(run), variant, "coreml-ios16") for run in (folder, finished_run)
        )
        assert (resumed.score, resumed.sha256) == (uninterrupted.score, uninterrupted.sha256)
    assert not list(folder.rglob("*.tmp"))
    assert not list(folder.rglob("*.partial"))


def test_a_checkpoint_is_taken_as_the_dense_model(finished_run, small_recipe, tmp_path, capsys):
    model = models.build("mobilenet_v3_small", 3)
    checkpoint = tmp_path / "dense.pt"
    torch.save(model.state_dict(), checkpoint)
    options = [
        "--output",
        str(tmp_path / "run"),
        "--checkpoint",
        str(checkpoint),
        "--targets",
        "coreml-ios16",
    ]
    assert run_recipe(replace(small_recipe, variants={}, budget=Budget()), "", options) == 0
    report = records.read(tmp_path / "run")
    assert report.trainings[0].epochs == ()
    weights = load_file(tmp_path / "run" / "variants" / "dense.safetensors")
    assert torch.equal(weights["classifier.3.weight"], model.classifier[3].weight)


def test_variants_whose_names_begin_alike_do_not_collide(small_recipe, tmp_path):
    fit = TrainConfig(epochs=1, batch_size=16)
    both = replace(
        small_recipe,
        model="timm/test_efficientnet",
        dense=fit,
        variants={"block80": Variant(sparsity=0.5, fit=fit), "block": Variant(sparsity=0.8, fit=fit)},
        targets=("coreml-ios16",),
        budget=Budget(),
        output=tmp_path / "run",
    )
    assert run_recipe(both, "", []) == 0
    found = {measured.variant: measured for measured in records.read(both.output).rows}
    assert list(found) == ["dense", "block80", "block"]
    assert found["block80"].prunable_zero_fraction == pytest.approx(0.5, abs=0.01)
    assert found["block"].prunable_zero_fraction == pytest.approx(0.8, abs=0.01)
    for path in both.output.rglob("block[.-]*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert list(read_recipe(both.output).variants) == ["block80", "block"], "one is not the other's old name"


@pytest.fixture
def older_run(copied_run):
    """A run of before names were keys: its recipe says "block", its files are called block80."""
    recipe = copied_run / "recipe.toml"
    text = recipe.read_text()
    assert "[variants.block80" in text
    recipe.write_text(text.replace("[variants.block80", "[variants.block"))
    return copied_run


def test_a_run_of_before_names_were_keys_is_read(older_run, finished_run, capsys):
    assert list(recipes.read(older_run / "recipe.toml").variants) == ["block", "channels"]
    assert list(read_recipe(older_run).variants) == ["block80", "channels"]
    assert main(["report", str(older_run)]) == 0
    assert records.read(older_run).rows == records.read(finished_run).rows


def test_a_run_of_before_names_were_keys_goes_on_without_training(older_run, finished_run, capsys):
    command = ["run", str(older_run / "recipe.toml"), "--output", str(older_run)]
    assert main(command) == 0
    assert "training" not in capsys.readouterr().out
    assert not list(older_run.rglob("block.*"))
    assert records.read(older_run).rows == records.read(finished_run).rows
    assert list(recipes.read(older_run / "recipe.toml").variants) == ["block80", "channels"]
