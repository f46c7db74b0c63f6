"""Blocks with branches that training alone needs, as the one convolution each amounts to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import nn

from converters import litert
from edgeprune.cli import main, run_recipe
from edgeprune.errors import UserError
from edgeprune.models.branches import mergeable, merged
from edgeprune.models.build import build
from edgeprune.models.cost import count_parameters
from edgeprune.recipe import Recipe, Variant
from edgeprune.report import records
from edgeprune.training.config import TrainConfig
from tests.support.images import write_folder

SMALL = "timm/small_mobileone_for_a_test"


@register_model
def small_mobileone_for_a_test(pretrained: bool = False, num_classes: int = 1000, **_: Any) -> nn.Module:
    """Two depthwise and two 1x1 convolutions, each with branches, behind the stem."""
    separable = {"type": "one", "d": 1, "s": 2, "gs": 1}
    blocks = tuple(
        (
            ByoBlockCfg(c=c_in, **separable),
            ByoBlockCfg("one", 1, c_out, s=1, gs=0, block_kwargs={"kernel_size": 1}),
        )
        for c_in, c_out in ((32, 64), (64, 64))
    )
    stages = tuple(block for pair in blocks for block in pair)
    return ByobNet(ByoModelCfg(blocks=stages, stem_chs=32, stem_type="one"), num_classes=num_classes)


def test_a_merged_model_computes_the_same_with_fewer_weights() -> None:
    model = build("timm/mobileone_s0", 10).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before, after = model(images), merged(model)(images)
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))
    assert count_parameters(merged(model)) < 0.5 * count_parameters(model)
    assert mergeable(model) == "branches that training alone needs"
    assert mergeable(merged(model)) is None
    assert mergeable(build("mobilenet_v3_small", 10)) is None


def test_a_model_without_branches_is_refused() -> None:
    with pytest.raises(UserError, match="merge_branches: no block of this model has branches"):
        merged(build("resnet18", 10))


@pytest.mark.slow
def test_weights_with_branches_become_a_file_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = build(SMALL, 10).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    given = ["convert", str(tmp_path / "mine.pt"), "--model", SMALL, "--image-size-px", "64"]
    given += ["--target", "litert-arm64", "--output", str(tmp_path)]
    assert main([*given, "--merge-branches"]) == 0
    file = tmp_path / "mine-litert-arm64.tflite"
    layers = litert.inspect(file).layers
    merged_weights = [m for m in merged(model).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(layer.shape for layer in layers) == sorted(tuple(m.weight.shape) for m in merged_weights)
    assert main(given) == 0
    assert "--merge-branches merges them" in capsys.readouterr().err
    assert len(litert.inspect(file).layers) > len(layers)


def test_a_run_trains_with_branches_prunes_without_and_its_files_run_sparse(tmp_path: Path) -> None:
    fit = TrainConfig(epochs=1, batch_size=16)
    recipe = Recipe(
        model=SMALL,
        merge_branches=True,
        data=write_folder(tmp_path / "images"),
        image_size_px=32,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit)},
        targets=("litert-arm64",),
        output=tmp_path / "run",
    )
    assert run_recipe(recipe, "", []) == 0
    dense, block = records.read(tmp_path / "run").rows
    assert dense.max_relative_error < 1e-4
    assert block.prunable_zero_fraction == pytest.approx(0.8, abs=0.01)
    assert not [layer for layer in dense.layers if "conv_kxk" in layer["name"]], "a branch is left"
    assert litert.lint(tmp_path / "run" / block.path, runtime="arm64").sparse
    assert block.sparse_runtime is True
    # The same command goes on from what the run holds, and trains nothing.
    assert run_recipe(recipe, "", []) == 0
