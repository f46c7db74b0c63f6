"""One layer at a time, put back exactly, on training images only; what is written can be read back."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from converters.facts import Normalization
from edgeprune.cli import main
from edgeprune.commands import sensitivity
from edgeprune.commands.sensitivity import Asked
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import InMemory, Split
from edgeprune.evaluation.sensitivity import fixed_subset, measure
from edgeprune.progress import Progress
from edgeprune.pruning import Block, Rule, prune, select
from edgeprune.pruning.allocation.shares import by_sensitivity
from edgeprune.training.predict import predict, score

PLAIN = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return InMemory(images, torch.randint(0, 5, (60,), generator=generator))


def test_each_layer_is_pruned_alone_and_put_back(model: nn.Module, split: Split):
    before = copy.deepcopy(model.state_dict())
    layers = select(model, [Rule(Block(1, 4), 0.5)])
    told: list[int] = []
    dense, found = measure(model, layers, (0.25, 0.75), split, PLAIN, told.append)
    assert told == [1, 2, 3, 4, 5]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert dense[0] == score(predict(model, split, PLAIN), split)
    for layer in found:
        for sparsity, top1, loss in zip((0.25, 0.75), layer.top1, layer.loss, strict=True):
            pruned = copy.deepcopy(model)
            prune(pruned, Block(1, 4), sparsity, layers=[layer.name])
            outputs = predict(pruned, split, PLAIN)
            assert top1 == score(outputs, split)
            assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, split.labels)))
    assert found[0].loss != found[1].loss


def test_weights_are_put_back_when_it_is_interrupted(model: nn.Module, split: Split):
    before = copy.deepcopy(model.state_dict())

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, select(model, [Rule(Block(1, 4), 0.5)]), (0.9, 0.95), split, PLAIN, stop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_subset_is_fixed_and_fair():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    split = InMemory(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 3, 2, 2), labels)
    subset = fixed_subset(split, 20)
    assert torch.bincount(subset.labels).tolist() == [12, 6, 2]
    assert torch.equal(subset.images, fixed_subset(split, 20).images)
    assert len(fixed_subset(split, 500)) == 100


@pytest.fixture(scope="module")
def measured(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, measured by the command."""
    run = tmp_path_factory.mktemp("sensitivity") / "run"
    shutil.copytree(finished_run, run)
    options = ["--layers", "classifier.*", "--sparsities", "0.9", "0.5", "--images", "30"]
    assert main(["sensitivity", str(run), *options, "--json", str(run / "copy.json")]) == 0
    return run


def test_json_table_and_picture_say_the_same(measured: Path):
    result = sensitivity.read(measured / "sensitivity.json")
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
    result = sensitivity.read(measured / "sensitivity.json")
    model = nn.Module()
    model.classifier = nn.Sequential(nn.Linear(576, 1024))
    allocation = by_sensitivity(model, Block(1, 4), 0.6, curves=result.curves())
    assert allocation.sparsities["classifier.0"] == pytest.approx(0.6, abs=1e-5)


def test_held_out_images_are_not_looked_at(measured: Path, monkeypatch: pytest.MonkeyPatch):
    """With noise in their place everything comes out the same."""
    load = datasets.load

    def without_held_out(*arguments):
        data = load(*arguments)
        noise = torch.randint_like(data.held_out.images, 0, 256)
        return replace(data, held_out=InMemory(noise, data.held_out.labels))

    before = (measured / "sensitivity.json").read_text()
    monkeypatch.setattr(datasets, "load", without_held_out)
    from rich.console import Console

    asked = Asked(measured, "classifier.*", (0.5, 0.9), 30)
    assert sensitivity.to_json(sensitivity.run(asked, Progress(Console(quiet=True)))) == before


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
