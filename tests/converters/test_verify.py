"""`verify` on a small network: right files agree, each way to be wrong is found."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import coreml, litert, verify
from converters.errors import UserError
from converters.facts import Normalization
from converters.litert import verification
from converters.runtimes.environments import RUNTIMES, WORKER, Runtime
from converters.verify import Reference

SIZE_PX = 24
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
HOST = ("host",)


def randomized(model: nn.Module, zeros: float) -> nn.Module:
    """Batch norms that do something, and `zeros` of each 1x1 kernel in blocks of four inputs."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels % 4 == 0:
            blocks = module.weight.data.view(-1, 4)
            blocks[torch.randperm(len(blocks))[: round(zeros * len(blocks))]] = 0
    return model.eval()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, out, kernel, stride, groups in (
        (3, 16, 3, 2, 1),
        (16, 48, 1, 1, 1),
        (48, 48, 3, 2, 48),
        (48, 64, 1, 1, 1),
    ):
        conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.Hardswish()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return randomized(nn.Sequential(*layers, *head), 0.8)


@pytest.fixture(scope="module")
def files(model: nn.Module, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    lowered = litert.lower(model, example, NORMALIZATION)
    found = {}
    for name in ("litert-arm64", "litert-arm64-int8", "litert-arm64-static-int8"):
        found[name] = folder / f"{name}.tflite"
        litert.convert(
            model, example, found[name], target=name, normalization=NORMALIZATION, lowered=lowered,
            calibration=images,
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.rint(np.random.default_rng(0).uniform(0, 255, (8, 3, SIZE_PX, SIZE_PX))).astype(np.float32)


def test_a_float_file_is_held_against_the_model(files, model, images):
    result = verify.verify(files["litert-arm64"], images, model, normalization=NORMALIZATION, runtimes=HOST)
    (check,) = result.checks
    assert result.reference is Reference.MODEL
    assert (check.runtime, check.images, check.agrees, check.top1_agreement) == ("host", 8, True, 1.0)
    assert check.max_relative_error == result.model_error < 1e-5
    assert check.version is not None
    assert check.version.startswith("LiteRT 2")
    assert result.agrees


def test_rounded_weights_are_held_against_the_files_own_program(files, model, images):
    result = verify.verify(
        files["litert-arm64-int8"], images, model, normalization=NORMALIZATION, runtimes=HOST
    )
    assert result.reference is Reference.PROGRAM
    assert result.checks[0].max_relative_error < 1e-5
    assert 1e-4 < result.model_error < 0.1, "what the rounding does is told beside it"
    assert result.agrees


def test_integers_between_the_layers_are_held_against_the_files_own_program(files, model, images):
    result = verify.verify(
        files["litert-arm64-static-int8"], images, model, normalization=NORMALIZATION, runtimes=HOST
    )
    assert result.reference is Reference.PROGRAM
    assert result.checks[0].agrees is True
    assert result.checks[0].max_relative_error < 0.05
    assert 1e-3 < result.model_error < 0.5, "what the rounding does is told beside it"


def heavier(model: nn.Module) -> None:
    model[3].weight.data *= 3


def shifted(model: nn.Module) -> None:
    model[4].bias.data += 0.3


def another(model: nn.Module) -> None:
    nn.init.normal_(model[9].weight)


@pytest.mark.parametrize(
    ("spoil", "layer"),
    [(heavier, "3"), (shifted, "3"), (another, "9")],  # a batch norm is one with its convolution
    ids=lambda v: getattr(v, "__name__", v),
)
@pytest.mark.parametrize("target", ["litert-arm64", "litert-arm64-int8"])
def test_another_model_is_found_out(
    files, model, images, spoil: Callable[[nn.Module], None], layer: str, target: str
):
    other = copy.deepcopy(model)
    spoil(other)
    result = verify.verify(files[target], images, other, normalization=NORMALIZATION, runtimes=HOST)
    assert not result.agrees
    if target == "litert-arm64-int8":
        (problem,) = result.problems
        assert "where rounding its weights explains 0.0" in problem
        assert f"the first step where they part: {layer} (" in problem
    else:
        assert result.checks[0].agrees is False
        assert result.checks[0].reason == "the error is above 0.0001"


def test_a_wrong_normalisation_is_found_out(files, model, images):
    result = verify.verify(files["litert-arm64"], images, model, runtimes=HOST)
    assert result.checks[0].agrees is False


@pytest.mark.parametrize("name", ["x86-sparse", "arm64"])
def test_an_emulated_runtime_agrees_and_runs_sparse(files, model, images, name):
    try:
        RUNTIMES[name].command()
    except UserError as error:
        pytest.skip(str(error))
    result = verify.verify(
        files["litert-arm64-int8"],
        images,
        model,
        normalization=NORMALIZATION,
        runtimes=[name],
        emulated_images=2,
    )
    host, check = result.checks
    assert (host.runtime, check.runtime, check.images) == ("host", name, 2)
    assert (check.sparse, check.agrees, check.top1_agreement) == (True, True, 1.0)
    assert check.max_relative_error < 1e-4


@pytest.mark.tensorflow
def test_tensorflow_agrees_on_small_files(files, model, images):
    needs_tensorflow()
    for path in files.values():
        result = verify.verify(path, images, model, normalization=NORMALIZATION, runtimes=["tensorflow"])
        check = result.checks[1]
        assert check.version is not None
        assert check.version.startswith("TensorFlow 2")
        assert result.agrees
        assert check.max_relative_error < (0.1 if "static" in path.name else 1e-4)


@pytest.mark.tensorflow
@pytest.mark.parametrize("zeros", [0.0, 0.8], ids=["dense", "sparse"])
def test_tensorflow_agrees_on_mobilenet(zeros, tmp_path):
    needs_tensorflow()
    from torchvision import models

    network = randomized(models.mobilenet_v3_small(weights=None, num_classes=10), zeros)
    path = tmp_path / "mobilenet.tflite"
    litert.convert(network, torch.zeros(1, 3, 64, 64), path, normalization=verify.IMAGENET)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, 3, 64, 64)).astype(np.float32)
    result = verify.verify(path, pixels, network, runtimes=["tensorflow"])
    assert litert.lint(path).sparse == (zeros > 0)
    assert result.reference is Reference.MODEL
    assert [check.agrees for check in result.checks] == [True, True]
    assert all(check.max_relative_error < 1e-4 for check in result.checks)


def needs_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is an extra: make test-tensorflow")


def test_what_is_not_prepared_is_told(files, images, model, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_RUNTIMES", str(tmp_path))
    for name in ("x86-sparse", "browser", "tensorflow"):  # Not run here: it takes a while.
        monkeypatch.delitem(verification.KNOWN, name)
    result = verify.verify(files["litert-arm64"], images, model, normalization=NORMALIZATION)
    host, arm64 = result.checks
    assert (arm64.runtime, arm64.agrees, arm64.version, arm64.images) == ("arm64", None, None, 0)
    assert "make runtime-arm64" in arm64.reason
    assert host.agrees
    assert result.agrees
    with pytest.raises(UserError, match=r"arm64: .*make runtime-arm64"):
        verify.verify(files["litert-arm64"], images, model, runtimes=["arm64"])
    with pytest.raises(UserError, match="no torch model, and no other runtime, to compare"):
        verify.verify(files["litert-arm64"], images)


def known(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Let "arm64" be this command."""
    runtime = Runtime("arm64", "a runtime with a fault", False, "arm64", lambda: [sys.executable, *command])
    monkeypatch.setitem(verification.KNOWN, "arm64", runtime)


def test_a_runtime_that_dies_fails_the_file(files, images, monkeypatch):
    known(monkeypatch, "-c", "import os; os.abort()")
    result = verify.verify(files["litert-arm64"], images, runtimes=["arm64"])
    assert result.checks[1].agrees is False
    assert "a runtime with a fault" in result.checks[1].reason
    assert not result.agrees


@pytest.mark.parametrize(
    ("fault", "error", "reason"),
    [
        ("values * 1.001", pytest.approx(1e-3, rel=0.01), "above 0.0001"),
        ("values * 1.00001", pytest.approx(1e-5, rel=0.1), None),
        ("values * np.float32('nan')", None, "NaN"),
    ],
)
def test_a_runtime_that_computes_something_else_fails_the_file(
    files, images, monkeypatch, tmp_path, fault, error, reason
):
    worker = tmp_path / "faulty.py"
    worker.write_text(
        "import json, runpy, sys, numpy as np\n"
        f"runpy.run_path({str(WORKER)!r}, run_name='__main__')\n"
        "outputs = json.load(open(sys.argv[1]))['tasks'][0]['outputs']\n"
        f"values = np.fromfile(outputs, '<f4')\n({fault}).astype('<f4').tofile(outputs)\n"
    )
    known(monkeypatch, str(worker))
    result = verify.verify(files["litert-arm64"], images, runtimes=["arm64"])
    host, check = result.checks
    assert result.reference is Reference.HOST
    assert host.agrees is None
    assert check.max_relative_error == error
    assert check.agrees is (reason is None)
    assert reason is None or reason in check.reason


def test_a_package_is_held_against_the_model(model, images, tmp_path):
    path = tmp_path / "small.mlpackage"
    coreml.convert(
        model,
        torch.zeros(1, 3, SIZE_PX, SIZE_PX),
        path,
        target="coreml-ios18-int8",
        normalization=NORMALIZATION,
    )
    result = verify.verify(path, images, model, normalization=NORMALIZATION)
    evaluator = result.checks[0]
    assert (evaluator.runtime, evaluator.agrees) == ("evaluator", True)
    assert evaluator.max_relative_error < 0.05
    assert evaluator.max_relative_error == result.model_error > 1e-5
    if sys.platform != "darwin":
        assert "macOS" in result.checks[1].reason
    other = copy.deepcopy(model)
    heavier(other)
    found = verify.verify(path, images, other, normalization=NORMALIZATION)
    assert not found.agrees
    assert "where rounding its weights explains 0.00" in found.problems[0]
    with pytest.raises(UserError, match="needs the torch model"):
        verify.verify(path, images)
    with pytest.raises(UserError, match="name no runtime"):
        verify.verify(path, images, model, runtimes=HOST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda given: given.update(runtimes=["phone"]),
            "unknown runtime 'phone': choose from host",
        ),
        (lambda given: given.update(images=given["images"][:, :1]), r"takes images of \(n, 3, 24, 24\)"),
        (lambda given: given.update(images=given["images"][:0]), r"takes images of \(n, 3, 24, 24\)"),
        (lambda given: given.update(model=given["model"][:9]), "gives 10 values, the torch model"),
        (lambda given: given.update(model=nn.Linear(3, 4)), "does not take"),
        (lambda given: given.update(path="model.onnx"), r"expected a \.tflite or \.mlpackage"),
        (lambda given: given.update(path="gone.tflite"), r"gone\.tflite: no such file"),
    ],
)
def test_mistakes(files, model, images, change, message):
    given = {"path": files["litert-arm64"], "images": images, "model": model, "runtimes": HOST}
    change(given)
    with pytest.raises(UserError, match=message):
        verify.verify(**given)


def test_comparing():
    wanted = np.array([[0.0, 2.0], [4.0, 1.0]], np.float32)
    assert verify.compare(wanted, wanted) == (0.0, 1.0)
    assert verify.compare(wanted - np.array([[0, 0], [4, 0]]), wanted) == (1.0, 0.5)
    assert verify.compare(wanted * math.nan, wanted)[0] is None
    assert verify.compare(wanted * 0, wanted * 0) == (0.0, 1.0)


class Scaled(nn.Module):
    """What conversion folds into weights besides a batch norm behind a convolution.

    A layer scale behind a linear layer, a layer norm's own scale before one, and a linear layer with a batch
    norm behind, as ConvNeXt, transformers and LeViT have them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.gamma = nn.Parameter(torch.rand(32) * 3 + 0.1)
        self.linear, self.after = nn.Linear(32, 48, bias=False), nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images).flatten(2).mT
        x = x + self.gamma * self.mlp(self.norm(x))
        y = self.linear(x)
        y = self.after(y.flatten(0, 1)).reshape_as(y)
        answers: torch.Tensor = self.head(nn.functional.hardswish(y).mean(1))
        return answers


@pytest.mark.parametrize("target", ["litert-arm64-int8", "coreml-ios16"])
def test_right_files_with_folded_scales_agree_and_others_do_not(target, images, tmp_path):
    torch.manual_seed(0)
    model = Scaled()
    nn.init.uniform_(model.norm.weight, 0.2, 3)
    nn.init.normal_(model.norm.bias)
    nn.init.uniform_(model.after.weight, 0.2, 3)
    model.after.running_var.uniform_(0.3, 2)
    model.eval()
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    path = tmp_path / ("m.tflite" if target.startswith("litert") else "m.mlpackage")
    tool = litert if target.startswith("litert") else coreml
    tool.convert(model, example, path, target=target, normalization=NORMALIZATION)
    asked = HOST if tool is litert else None
    good = verify.verify(path, images, model, normalization=NORMALIZATION, runtimes=asked)
    assert good.agrees, good.problems
    other = copy.deepcopy(model)
    other.gamma.data *= 1.5
    assert not verify.verify(path, images, other, normalization=NORMALIZATION, runtimes=asked).agrees
