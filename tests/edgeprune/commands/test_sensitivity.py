"""What the command writes can be read back, says the same thrice, and has not seen the held-out images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeprune.cli import main
from edgeprune.commands.output import json_text
from edgeprune.commands.sensitivity import SensitivityOptions, measure_run
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import Split
from edgeprune.evaluation.sensitivity import curves_of
from edgeprune.evaluation.sensitivity_result import read, to_plain
from edgeprune.progress import Progress
from edgeprune.pruning import Block
from edgeprune.pruning.allocation.shares import by_sensitivity


@pytest.fixture(scope="module")
def measured(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, measured by the command."""
    run = tmp_path_factory.mktemp("sensitivity") / "run"
    shutil.copytree(finished_run, run)
    options = ["--layers", "classifier.*", "--sparsities", "0.9", "0.5", "--images", "30"]
    assert main(["sensitivity", str(run), *options, "--json", str(run / "copy.json")]) == 0
    return run


def test_json_table_and_picture_say_the_same(measured: Path):
    result = read(measured / "sensitivity.json")
    assert (measured / "copy.json").read_bytes() == (measured / "sensitivity.json").read_bytes()
    assert [layer.name for layer in result.layers] == ["classifier.0", "classifier.3"]
    assert result.left_dense == {}
    assert result.sparsities == (0.5, 0.9)
    assert result.images == 30
    table = (measured / "sensitivity.md").read_text()
    drops = result.drops_points()[0]
    assert f"| classifier.0 | 589,824 | {drops[0]:.1f} | {drops[1]:.1f} |" in table
    assert "30 images, a fixed subset of the training images" in table
    with Image.open(measured / "sensitivity.png") as picture:
        assert picture.width > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_the_curves_decide_an_allocation(measured: Path, finished_run: Path):
    result = read(measured / "sensitivity.json")
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(576, 1024))
    allocation = by_sensitivity(model, Block(1, 4), 0.6, curves=curves_of(result.layers, result.sparsities))
    assert allocation.sparsities["classifier.0"] == pytest.approx(0.6, abs=1e-5)


def test_held_out_images_are_not_looked_at(measured: Path, monkeypatch: pytest.MonkeyPatch):
    """With noise in their place everything comes out the same."""
    load = datasets.load

    def without_held_out(*arguments):
        data = load(*arguments)
        noise = torch.randint_like(data.held_out.images, 0, 256)
        return replace(data, held_out=Split(noise, data.held_out.labels))

    before = (measured / "sensitivity.json").read_text()
    monkeypatch.setattr(datasets, "load", without_held_out)
    from rich.console import Console

    options = SensitivityOptions(measured, "classifier.*", (0.5, 0.9), 30)
    assert json_text(to_plain(measure_run(options, Progress(Console(quiet=True))))) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "nose*"], "--layers 'nose*' matches none of the"),
        (["--sparsities", "80"], "--sparsities [80.0]: each above 0 and below 1; 0.8 means 80 % zeros"),
        (["--images", "0"], "--images 0: 1 or more"),
        (["--block", "0", "4"], "--block (0, 4): both sides 1 or more"),
        (["--json", "/nowhere/at/all.json"], "cannot write /nowhere/at/all.json: no such folder"),
    ],
)
def test_mistakes_are_told(measured: Path, capsys, options: list[str], message: str):
    assert main(["sensitivity", str(measured), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_run_must_have_a_dense_model_and_its_images(measured: Path, tmp_path: Path, capsys):
    assert main(["sensitivity", str(tmp_path)]) == 2
    assert "a recipe is a TOML file" in capsys.readouterr().err
    run = tmp_path / "run"
    shutil.copytree(measured, run)
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps({**inputs, "data": "0"}))
    assert main(["sensitivity", str(run)]) == 2
    assert "the images changed since this run began" in capsys.readouterr().err
    (run / "variants" / "dense.safetensors").unlink()
    assert main(["sensitivity", str(run)]) == 2
    assert "its dense model is not trained yet" in capsys.readouterr().err
