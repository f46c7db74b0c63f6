"""A whole run from pretrained weights: what it starts from, what it says, and what its file tells an app."""

import json
from dataclasses import replace

import pytest
import torch

from edgeprune.cli import run_recipe
from edgeprune.models import build
from edgeprune.recipe import Recipe, read
from edgeprune.training.config import TrainConfig
from edgeprune.training.transfer import Transfer

MODEL = "timm/test_efficientnet"


@pytest.fixture(scope="module")
def start(image_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "published.pt"
    torch.manual_seed(5)
    torch.save({"state_dict": build.build(MODEL, 9).state_dict()}, path)
    return Recipe(
        MODEL,
        data=image_folder,
        weights=str(path),
        image_size_px=32,
        dense=TrainConfig(epochs=2, batch_size=16),
        targets=("litert-arm64",),
    )


def test_a_run_starts_from_weights_and_its_file_says_how_images_are_prepared(start, tmp_path, capsys):
    from converters.litert import graph, metadata

    assert run_recipe(start, "", ["--output", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "a new head for" in told.out + told.err
    kept = read(tmp_path / "run" / "recipe.toml")
    assert (kept.resize_px, kept.interpolation) == (33, "bicubic")
    (file,) = (tmp_path / "run" / "files").glob("*.tflite")
    content = metadata.read(graph.read_file(file))
    assert json.loads(content["metadata"]["preprocessing"])["resize_px"] == 33
    # The same command goes on; other weights under the same name do not.
    assert run_recipe(start, "", ["--output", str(tmp_path / "run")]) == 0
    before = torch.load(start.weights, weights_only=True)
    torch.save({"model": build.build(MODEL, 9).state_dict()}, start.weights)
    assert run_recipe(start, "", ["--output", str(tmp_path / "run")]) == 2
    assert "weights changed since this run began" in capsys.readouterr().err
    torch.save(before, start.weights)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("gone.pt", "weights gone.pt: no such file"),
        ("imagenet22k", "the hub has IMAGENET1K_V1"),
    ],
)
def test_weights_that_there_are_none_of_are_one_message(weights, problem, start, tmp_path, capsys):
    assert (
        run_recipe(
            replace(start, model="mobilenet_v3_small", weights=weights),
            "",
            ["--output", str(tmp_path / "run")],
        )
        == 2
    )
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_head_learns_first_and_faster():
    model = build.build("mobilenet_v3_small", 3)
    head = ("classifier.3.weight", "classifier.3.bias")
    transfer = Transfer(head, freeze_epochs=1, body_learning_rate=0.1)
    transfer.freeze(model, 0)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(head)
    transfer.freeze(model, 1)
    assert all(p.requires_grad for p in model.parameters())
    groups = transfer.groups(model, 1.0, 0.02)
    assert [group["lr"] for group in groups] == [1.0, 1.0, 0.1, 0.1]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert [group["lr"] for group in Transfer().groups(model, 1.0, 0.02)] == [1.0, 1.0]
