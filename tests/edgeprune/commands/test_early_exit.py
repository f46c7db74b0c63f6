"""The command, on a real run: two files a target, a record that is true, and mistakes in one message."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from converters import coreml
from edgeprune.cli import main
from edgeprune.commands.early_exit import EarlyExitOptions, make
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import Data, InMemory
from edgeprune.data.image_folder import load
from edgeprune.evaluation.early_exit_files import open_pair
from edgeprune.evaluation.early_exit_result import EarlyExit, read
from edgeprune.pipeline import run_folder
from edgeprune.progress import Progress
from edgeprune.report.records import read as read_report

TARGET = "litert-arm64-int8"


@pytest.fixture(scope="module")
def run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("early_exit") / "run"
    shutil.copytree(finished_run, folder)
    return folder


@pytest.fixture(scope="module")
def told(run: Path) -> str:
    """What the command prints, run with times."""
    shown = io.StringIO()
    options = ["--target", TARGET, "--epochs", "2", "--width", "16", "--most-lost-points", "2"]
    with contextlib.redirect_stdout(shown):
        command = ["early-exit", str(run), *options, "--runtime", "host", "--rounds", "3"]
        assert main([*command, "--json", str(run / "copy.json")]) == 0
    return shown.getvalue()


@pytest.fixture(scope="module")
def result(run: Path, told: str) -> EarlyExit:
    return read(run / "early_exit" / "early_exit.json")


def data_of(run: Path) -> Data:
    recipe = run_folder.read_recipe(run)
    from rich.console import Console

    return load(recipe.data, recipe.preprocessing, Progress(Console(quiet=True)))


def test_two_files_a_record_and_a_table(run: Path, told: str, result: EarlyExit) -> None:
    folder = run / "early_exit"
    names = [f"dense-{TARGET}-front.tflite", f"dense-{TARGET}-rest.tflite"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "early_exit.json"]
    assert (run / "copy.json").read_bytes() == (folder / "early_exit.json").read_bytes()
    (files,) = result.files
    assert [files.front, files.rest] == names
    assert [files.front_bytes, files.rest_bytes] == [(folder / name).stat().st_size for name in names]
    assert files.full_bytes == (run / "files" / f"dense-{TARGET}.tflite").stat().st_size
    assert f"{files.front_bytes + files.rest_bytes:,}" in told
    assert f"{100 * files.measured.combined:.2f} %" in told
    assert f"Split behind {result.place}, " in told
    assert 0 < result.macs_share <= 0.5


def test_accuracies_are_those_of_the_files_on_the_held_out_images(run: Path, result: EarlyExit) -> None:
    data, (files,) = data_of(run), result.files
    chain = open_pair(
        *(run / "early_exit" / name for name in (files.front, files.rest)), result.choice.threshold
    )
    images, labels = data.held_out.batch(torch.arange(len(data.held_out)))
    answers = chain.run(images.float().numpy())
    assert files.measured.images == len(labels)
    assert files.measured.combined == (answers.predictions == labels.numpy()).mean()
    assert files.measured.continues == (~answers.exited).mean()
    row = next(r for r in read_report(run).rows if (r.variant, r.target) == ("dense", TARGET))
    assert files.measured.full == pytest.approx(row.score)


def test_the_threshold_is_what_was_asked_for(result: EarlyExit) -> None:
    choice = result.choice
    assert 100 * (choice.full - choice.combined) <= 2 + 1e-9
    assert choice.images > 1
    assert "the exit was not trained on" in result.chosen_on


def test_times_are_those_of_the_files(result: EarlyExit) -> None:
    (files,) = result.files
    times = files.times
    assert times is not None
    assert files.times_reason is None
    assert (times.runtime, times.rounds, times.emulated) == ("host", 3, False)
    assert times.front_ms > 0
    wanted = times.front_ms + files.measured.continues * times.rest_ms
    assert times.average_ms == pytest.approx(wanted)
    assert 0 < times.average_fraction < 10


@pytest.mark.slow
def test_held_out_images_decide_nothing(
    run: Path, result: EarlyExit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With noise in their place the exit and its threshold are the same; without a runtime no times."""
    from rich.console import Console

    loaded = datasets.load

    def without_held_out(*arguments: object) -> Data:
        data = loaded(*arguments)  # type: ignore[arg-type]
        noise = torch.randint_like(data.held_out.images, 0, 256)
        return replace(data, held_out=InMemory(noise, data.held_out.labels))

    monkeypatch.setattr(datasets, "load", without_held_out)
    options = EarlyExitOptions(
        run, epochs=2, width=16, most_lost_points=2.0, targets=(TARGET,), output=tmp_path / "new"
    )
    again = make(options, Progress(Console(quiet=True)))
    assert again.choice == result.choice
    assert again.files[0].times is None
    assert again.files[0].times_reason == "not measured: name a runtime with --runtime"
    for name in (result.files[0].front, result.files[0].rest):
        assert (tmp_path / "new" / name).read_bytes() == (run / "early_exit" / name).read_bytes()


@pytest.mark.slow
def test_a_pruned_variant_and_a_place_of_ones_own(run: Path, tmp_path: Path) -> None:
    """Its files are sparse, and no file of the whole model is needed in the run."""
    shutil.rmtree(run / "files" / "block80-coreml-ios16.mlpackage")
    command = ["early-exit", str(run), "--variant", "block80", "--after", "features.8", "--epochs", "1"]
    assert main([*command, "--target", "coreml-ios16", "--output", str(tmp_path)]) == 0
    found = read(tmp_path / "early_exit.json")
    assert (found.variant, found.place) == ("block80", "features.8")
    for half in ("front", "rest"):
        layers = coreml.inspect(tmp_path / f"block80-coreml-ios16-{half}.mlpackage").layers
        assert any(layer.encoding.startswith("sparse") for layer in layers)
    (files,) = found.files
    assert files.measured.images == len(data_of(run).held_out)
    assert files.full_bytes > files.rest_bytes
    assert "Core ML" in str(files.times_reason) or "runtime" in str(files.times_reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--after", "nose"], "the model has no module 'nose' to split it behind"),
        (["--variant", "nose"], "--variant nose: the run has dense, block80, channels"),
        (["--target", "litert-mars"], "unknown target litert-mars: choose from"),
        (["--target", "litert-arm64-static-int8"], "early exits are not written with static int8 weights"),
        (["--epochs", "0"], "--epochs 0: 1 or more"),
        (["--most-lost-points", "-1"], "--most-lost-points -1.0: 0 or more"),
        (["--runtime", "moon"], "unknown runtime 'moon'"),
        (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json: no such folder"),
    ],
)
def test_mistakes_are_told(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["early-exit", str(run), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_run_must_have_the_variant_and_its_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["early-exit", str(tmp_path)]) == 2
    assert "a recipe is a TOML file" in capsys.readouterr().err
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    inputs = json.loads((copy / "inputs.json").read_text())
    (copy / "inputs.json").write_text(json.dumps({**inputs, "data": "0"}))
    assert main(["early-exit", str(copy)]) == 2
    assert "the images changed since this run began" in capsys.readouterr().err
    (copy / "variants" / "dense.safetensors").unlink()
    assert main(["early-exit", str(copy)]) == 2
    assert "dense is not trained yet" in capsys.readouterr().err
