"""Each mistake: exit status 2, one message that helps, no traceback, nothing left behind."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from edgeprune import recipe as recipes
from edgeprune.cli import main, run_recipe
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.pipeline.run_folder import open_run
from edgeprune.recipe import Recipe, Variant


def refuse(recipe, options, capsys):
    """Run the recipe, expect status 2, and return the message."""
    try:
        status = run_recipe(recipe, "", options)
    except SystemExit as exit_:  # the command line's own parser
        status = exit_.code
    told = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in told
    return told


def checkpoint_of_other_classes(folder):
    path = folder / "other.pt"
    torch.save(models.build("mobilenet_v3_small", 7).state_dict(), path)
    return path


def checkpoint_that_is_none(folder):
    path = folder / "none.pt"
    path.write_text("not a checkpoint")
    return path


def checkpoint_with_code(folder):
    path = folder / "code.pt"
    torch.save(models.build("mobilenet_v3_small", 3), path)
    return path


def checkpoint_of_another_model(folder):
    path = folder / "resnet.pt"
    torch.save(models.build("resnet18", 3).state_dict(), path)
    return path


def checkpoint_missing(folder):
    return folder / "nowhere.pt"


CHECKPOINTS = {
    checkpoint_of_other_classes: "another number of classes",
    checkpoint_that_is_none: "not a checkpoint that can be read safely",
    checkpoint_with_code: "whole pickled module",
    checkpoint_of_another_model: "weights are missing",
    checkpoint_missing: "no such file",
}


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda f: f.__name__)
def test_a_wrong_checkpoint(make, small_recipe, tmp_path, capsys):
    output = tmp_path / "run"
    told = refuse(small_recipe, ["--output", str(output), "--checkpoint", str(make(tmp_path))], capsys)
    assert CHECKPOINTS[make] in told
    assert not output.exists()


OPTIONS = {
    "not in [0, 1); 0.8 means 80 % zeros": ["--variants.block80.sparsity", "1.7"],
    "layer rule 'head.*' matches no convolution or linear layer": ["--variants.block80.layers", "head.*=0.5"],
    "unknown target 'ios': choose from coreml-ios16": ["--targets", "ios"],
    "Unrecognized options: --sparsty": ["--sparsty", "0.8"],
    "unknown model 'mobilenet_v3_smal': did you mean mobilenet_v3_small": ["--model", "mobilenet_v3_smal"],
    "no such folder": ["--data", "/no/such/folder"],
    "(16, 3, 3, 3): 3 input channels are not a multiple of 4": [
        "--variants.block80.layers",
        "features.0.0=0.5",
    ],
}


@pytest.mark.parametrize("message", OPTIONS)
def test_a_wrong_option(message, small_recipe, tmp_path, capsys):
    output = tmp_path / "run"
    told = refuse(small_recipe, [*OPTIONS[message], "--output", str(output)], capsys)
    assert message in " ".join(told.replace("│", " ").split())
    assert not output.exists()


def test_a_removed_variant_name_is_no_excuse_for_a_wrong_rule_in_another(small_recipe, tmp_path, capsys):
    """Mistakes in several variants come together."""
    variants = {
        "one": Variant(sparsity=0.5, layers={"nose": 0.5}),
        "two": Variant(channels=0.3, sparsity=0.5, layers={"tail": 0.5}),
    }
    told = refuse(replace(small_recipe, variants=variants), ["--output", str(tmp_path / "run")], capsys)
    assert "variant one: layer rule 'nose'" in told
    assert "variant two: layer rule 'tail'" in told


def test_images_of_a_size_that_the_model_does_not_take(small_recipe, tmp_path, capsys):
    recipe = replace(
        small_recipe,
        model="timm/vit_tiny_patch16_224",
        image_size_px=64,
        dense=replace(small_recipe.dense, first_px=32),
        variants={"lean": Variant(macs_left=0.5)},
    )
    told = refuse(recipe, ["--output", str(tmp_path / "run")], capsys)
    assert "dense.first_px 32: timm/vit_tiny_patch16_224 takes images of one size only: leave it 0" in told
    assert "variant lean: layer 'blocks.0.attn' is attention" in told
    assert not (tmp_path / "run").exists()


def test_a_compiled_training_without_a_compiler(small_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    recipe = replace(small_recipe, dense=replace(small_recipe.dense, compile=True))
    told = refuse(recipe, ["--output", str(tmp_path / "run")], capsys)
    assert "dense.compile: there is no C++ compiler: install g++, name one in CXX" in told
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_in_a_recipe_file(small_recipe, tmp_path, capsys):
    path = tmp_path / "recipe.toml"
    path.write_text("sparsty = 0.8\n" + recipes.to_toml(small_recipe))
    assert main(["run", str(path), "--output", str(tmp_path / "run")]) == 2
    assert "unknown field 'sparsty'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_holds_something_else(small_recipe, tmp_path, capsys):
    (tmp_path / "thesis.doc").write_text("precious")
    told = refuse(small_recipe, ["--output", str(tmp_path)], capsys)
    assert "holds something else (thesis.doc): choose a new or empty one" in told
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.doc"]


def test_an_output_folder_that_cannot_be_made(small_recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    told = refuse(small_recipe, ["--output", str(tmp_path / "file" / "run")], capsys)
    assert "cannot write" in told
    assert "choose another folder" in told
    assert refuse(small_recipe, ["--output", str(tmp_path / "file")], capsys).count("is a file") == 1


def test_a_disk_without_room_is_noticed_before_training(tmp_path):
    recipe = Recipe(model="mobilenet_v3_small", output=tmp_path / "a" / "b")
    with (
        pytest.raises(UserError, match=r"the disk has .* MB free; free some space"),
        open_run(recipe, 10**18),
    ):
        pytest.fail("opened")
    assert not (tmp_path / "a").exists()


def test_a_disk_that_fills_up_while_training(small_recipe, tmp_path):
    """A real refusal to write, of the operating system: files of at most 1 MB."""
    path = tmp_path / "recipe.toml"
    path.write_text(recipes.to_toml(replace(small_recipe, output=tmp_path / "run")))
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6));"
        f"from edgeprune.cli import main; sys.exit(main(['run', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_processes_do_not_share_a_run(tmp_path):
    recipe = Recipe(model="mobilenet_v3_small", output=tmp_path / "run")
    with (
        open_run(recipe, 0),
        pytest.raises(UserError, match="another process is at work"),
        open_run(recipe, 0),
    ):
        pytest.fail("opened twice")


WRONG_COMMANDS = {
    "cannot read": ["check", "nowhere"],
    "expected a .tflite or .mlpackage": ["inspect", "model.onnx"],
    "no such file": ["inspect", "model.tflite"],
    "No such file": ["report", "nowhere"],
}


@pytest.mark.parametrize("message", WRONG_COMMANDS)
def test_a_wrong_command(message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(WRONG_COMMANDS[message]) == 2
    assert message in capsys.readouterr().err
