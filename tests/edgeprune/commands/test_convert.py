"""Models pruned by other tools, taken as they save them, become files."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torchvision.models import get_model

from converters import coreml, litert
from converters.litert import metadata
from converters.litert.graph import read_file
from edgeprune.cli import main
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.models import cost, weights

NAME, DETECTOR = "mobilenet_v3_small", "ssdlite320_mobilenet_v3_large"
EXAMPLE = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    model = models.build(NAME, 10).train()
    with torch.no_grad():
        for _ in range(20):  # Batch norms that saw nothing give outputs of 1e-10.
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def prunable(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]


def by_torch(model: nn.Module) -> None:
    """Masks are left in place, as a training that was not cleaned up saves them."""
    for module in prunable(model):
        torch_prune.l1_unstructured(module, "weight", 0.8)


def by_torch_pruning(model: nn.Module) -> None:
    import torch_pruning as tp

    tp.pruner.BasePruner(
        model,
        EXAMPLE,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.4,
        round_to=8,
        ignored_layers=[model.classifier[3]],
    ).step()


def by_coremltools(model: nn.Module, *, finalize: bool = True) -> None:
    from coremltools.optimize.torch import pruning

    setting = pruning.ModuleMagnitudePrunerConfig(
        target_sparsity=0.75,
        scheduler=pruning.pruning_scheduler.ConstantSparsityScheduler(begin_step=0),
    )
    pruner = pruning.MagnitudePruner(model, pruning.MagnitudePrunerConfig(global_config=setting))
    pruner.prepare(inplace=True)
    pruner.step()
    if finalize:
        pruner.finalize(inplace=True)


def not_finalized(model: nn.Module) -> None:
    by_coremltools(model, finalize=False)


@pytest.mark.parametrize("tool", [by_torch, by_torch_pruning, by_coremltools, not_finalized])
def test_a_checkpoint_of_each_tool_gives_the_pruned_model_back(tool, dense, tmp_path):
    pruned = copy.deepcopy(dense)
    tool(pruned)
    pruned.eval()
    torch.save(pruned.state_dict(), tmp_path / "pruned.pt")
    loaded = weights.from_checkpoint(NAME, tmp_path / "pruned.pt")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), pruned(images))
    assert not torch.allclose(loaded(images), dense(images))


def converted(command: list[str], target: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `edgeprune convert` tells of its one file."""
    assert main([*command, "--target", target, "--json", "-"]) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert file["zero_fraction"] == pytest.approx(0.77, abs=0.01)
    assert file["max_relative_error"] < 5e-3
    return file


@pytest.fixture
def masked(dense, tmp_path) -> list[str]:
    """The command that converts a checkpoint with the masks of `torch.nn.utils.prune`."""
    pruned = copy.deepcopy(dense)
    by_torch(pruned)
    torch.save(pruned.state_dict(), tmp_path / "mine.pt")
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(10))))
    command = ["convert", str(tmp_path / "mine.pt"), "--model", NAME, "--image-size-px", "64"]
    return [*command, "--labels", str(tmp_path / "names.txt"), "--output", str(tmp_path / "files")]


def test_masks_of_torch_become_a_sparse_litert_file(masked, dense, capsys):
    file = converted(masked, "litert-arm64", capsys)
    assert file["sparse_runtime"] is True
    assert litert.lint(file["path"], runtime="arm64").sparse
    assert file["bytes"] < 0.4 * 4 * cost.count_parameters(dense)
    assert litert.load(file["path"]).input.labels == tuple(map(str, range(10)))


@pytest.mark.slow
def test_masks_of_torch_become_a_sparse_core_ml_package(masked, capsys):
    file = converted(masked, "coreml-ios16", capsys)
    assert any(layer.encoding == "sparse float16" for layer in coreml.inspect(file["path"]).layers)


NETWORK = """
import torch
def tiny():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.Flatten(), torch.nn.Linear(2048, 4))
def two():
    return 2
"""


def test_a_function_of_ones_own_gives_the_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_models_for_a_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    assert (
        main(["convert", "own_models_for_a_test:tiny", "--image-size-px", "32", "--target", "litert-web"])
        == 0
    )
    assert "tiny-litert-web.tflite" in capsys.readouterr().out
    assert litert.load(tmp_path / "tiny-litert-web.tflite").predict(
        EXAMPLE[:, :, :32, :32].numpy()
    ).shape == (1, 4)


ROWS = """
import torch
class Rows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Conv2d(3, 2 * (4 + 2), 5, 8, 2)  # 2 boxes a cell, 2 classes, no background

    def forward(self, images):
        return self.head(images).permute(0, 2, 3, 1).reshape(len(images), -1, 4 + 2)
"""


@pytest.mark.slow
def test_a_module_of_ones_own_that_gives_raw_heads(tmp_path, monkeypatch):
    (tmp_path / "own_heads_for_a_test.py").write_text(ROWS)
    (tmp_path / "names.txt").write_text("cell\nplatelet\n")
    monkeypatch.chdir(tmp_path)
    options = ["--image-size-px", "32", "--labels", "names.txt", "--target", "litert-web"]
    assert main(["convert", "own_heads_for_a_test:Rows", *options]) == 0
    file = litert.load(tmp_path / "Rows-litert-web.tflite")
    assert file.input.labels == ("cell", "platelet")
    assert file.predict(EXAMPLE[:, :, :32, :32].numpy()).shape == (1, 32, 6)


@pytest.mark.slow
def test_torchvisions_detector_gives_the_heads_of_torchvisions_code(tmp_path):
    torch.manual_seed(0)
    theirs = get_model(DETECTOR, weights=None, weights_backbone=None, num_classes=1 + 2).train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():  # Batch norms that saw nothing give outputs of 1e-10.
        theirs.head(list(theirs.backbone(torch.randn(8, 3, 96, 96)).values()))
    torch.save(theirs.eval().state_dict(), tmp_path / "theirs.pth")
    (tmp_path / "names.txt").write_text("cell\nplatelet\n")
    options = ["--model", DETECTOR, "--image-size-px", "96", "--mean", *3 * ["0.5"], "--std", *3 * ["0.5"]]
    options += [
        "--labels",
        str(tmp_path / "names.txt"),
        "--target",
        "litert-arm64",
        "--output",
        str(tmp_path),
    ]
    assert main(["convert", str(tmp_path / "theirs.pth"), *options]) == 0
    (file,) = tmp_path.glob("*.tflite")
    pixels = torch.randint(0, 256, (1, 3, 96, 96)).float()
    with torch.no_grad():
        heads = theirs.head(list(theirs.backbone(pixels / 127.5 - 1).values()))
    wanted = torch.cat([heads["bbox_regression"], heads["cls_logits"]], 2).numpy()
    error = abs(litert.load(file).predict(pixels.numpy()) - wanted).max()
    assert error < 1e-4 * abs(wanted).max()
    told = json.loads(metadata.read(read_file(file))["metadata"]["boxes"])
    assert [level["cells"] for level in told["levels"]] == [6, 3, 2, 1, 1, 1]


WRONG = {
    "name its architecture with --model": ["mine.pt"],
    "no such file": ["mine.pt", "--model", NAME],
    "unknown target litert: choose from": ["mine.pt", "--model", NAME, "--target", "litert"],
    "static int8 takes its ranges from images": [
        *("mine.pt", "--model", NAME, "--target", "litert-arm64-static-int8"),
    ],
    "has no attribute 'none'": ["own_models_for_a_test:none"],
    "is a int: expected a torch.nn.Module": ["own_models_for_a_test:two"],
    "does not take (1, 3, 64, 64) images": ["own_models_for_a_test:tiny", "--image-size-px", "64"],
    "merge_branches: no block of this model has branches to merge": [
        *("own_models_for_a_test:tiny", "--image-size-px", "32", "--merge-branches"),
    ],
    "--labels has 1 names, the model gives 4 classes": [
        *("own_models_for_a_test:tiny", "--image-size-px", "32", "--labels", "names.txt"),
    ],
    "gap.txt: line 2 is empty: expected one class name a line": [
        *("own_models_for_a_test:tiny", "--image-size-px", "32", "--labels", "gap.txt"),
    ],
    "labels that appear twice, which apps cannot tell apart: one": [  # A mark at the start is no part of it.
        *("own_models_for_a_test:tiny", "--image-size-px", "32", "--labels", "twice.txt"),
    ],
}


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_named_and_nothing_is_written(message, tmp_path, monkeypatch, capsys):
    (tmp_path / "own_models_for_a_test.py").write_text(NETWORK)
    (tmp_path / "names.txt").write_text("one")
    (tmp_path / "gap.txt").write_text("one\n\nthree\nfour\n")
    (tmp_path / "twice.txt").write_text("one\ntwo\nthree\none\n", encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *WRONG[message], "--output", "files"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "files").exists()


def test_weights_of_another_architecture_are_named(dense, tmp_path):
    torch.save(dense.state_dict(), tmp_path / "small.pt")
    with pytest.raises(UserError, match="does not fit mobilenet_v3_large"):
        weights.from_checkpoint("mobilenet_v3_large", tmp_path / "small.pt")


def test_a_model_that_pads_as_tensorflow_does_is_converted_and_verified_as_one(tmp_path, capsys):
    torch.manual_seed(0)
    model = models.build("timm/lcnet_035", 5, 64, "same").train()
    with torch.no_grad():
        for _ in range(5):
            model(torch.randn(8, 3, 64, 64))
    torch.save(model.state_dict(), tmp_path / "same.pt")
    named = ["--model", "timm/lcnet_035", "--padding", "same"]
    given = [*named, "--image-size-px", "64", "--target", "litert-arm64", "--output", str(tmp_path)]
    assert main(["convert", str(tmp_path / "same.pt"), *given]) == 0
    (file,) = tmp_path.glob("*.tflite")
    verify = ["verify", str(file), "--checkpoint", str(tmp_path / "same.pt"), "--runtime", "host"]
    assert main([*verify, *named]) == 0
    assert main([*verify, *named[:2]]) == 1
    assert main([*verify, "--model", "mobilenet_v2", "--padding", "same"]) == 2
    assert "--padding is for a timm model" in capsys.readouterr().err
