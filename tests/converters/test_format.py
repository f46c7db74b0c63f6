"""A format is a class and a row: a toy one goes from a torch model to a row of a report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from timm.models import register_model
from torch import nn

from converters.facts import IMAGENET, Converted, FileFacts, InputSpec, LayerFacts, size_bytes
from converters.format import FORMATS, format_of
from converters.layers import weighted_layers
from converters.reference import Expected, Reference, checked, normalized, verification
from converters.targets import TARGETS, Storage, Target
from edgeprune.budget import Budget
from edgeprune.cli import main, run_recipe
from edgeprune.data.dataset import InMemory
from edgeprune.evaluation import exported_file
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe, Variant
from edgeprune.report import records, render, summary
from edgeprune.tasks import TASKS
from edgeprune.training.config import TrainConfig
from tests.support.images import write_folder

SIZE_PX = 32


class Toy:
    """The weights of one linear layer on flattened images, as JSON."""

    name, title, suffix, kind = "toy", "Toy", ".toy", "file"
    packages, extra, local_runtimes = ("torch",), None, None
    no_times, not_measured = "toys are not timed", "Toys at play: they were run on the machine"

    def missing(self):
        return None

    def prepare(self, model, example, normalization):
        return model[-1], weighted_layers(model, example)[0].name, example.shape[1:]

    def write(self, prepared, target, path, *, labels=None, metadata=None, calibration=None):
        linear, layer, shape = prepared
        plain = {"w": linear.weight.tolist(), "b": linear.bias.tolist(), "layer": layer}
        path.write_text(json.dumps({**plain, "shape": shape, "labels": labels}))
        return Converted(path, target.name, size_bytes(path), self.inspect(path).layers)

    def load(self, path):
        plain = json.loads(path.read_text())
        weight, bias = (np.array(plain[key], np.float32) for key in "wb")
        taken = InputSpec(tuple(plain["shape"]), None, plain["labels"] and tuple(plain["labels"]))
        return SimpleNamespace(input=taken, predict=lambda x: x.reshape(len(x), -1) @ weight.T + bias)

    def inspect(self, path):
        plain = json.loads(path.read_text())
        zeros, shape = float((np.array(plain["w"]) == 0).mean()), np.shape(plain["w"])
        layer = LayerFacts(plain["layer"], "linear", shape, zeros, 64.0, "digits")
        return FileFacts(path, (layer,), {"format": self.name}, (f"{size_bytes(path):,} bytes",), {})

    def verify(self, path, images, model, normalization, runtimes, emulated_images, say):
        inputs = normalized(images, normalization)
        outputs, wanted = self.load(path).predict(inputs), model(torch.from_numpy(inputs)).detach().numpy()
        expected = Expected(wanted, Reference.MODEL, None, 1e-5, wanted)
        return verification(path, expected, outputs, [checked("toy", "1", outputs, expected, None)])

    def tensors(self, path, image):
        return [self.load(path).predict(image)]

    error_overlays = staticmethod(lambda path, image, model, inputs: {})
    sparse_runtime = staticmethod(lambda path, target: (False, "toys have no kernels"))
    layer_bytes = staticmethod(lambda target, layer, kept, block: 20.0 * kept)
    timing_input = None  # No runtime takes a toy.


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setitem(FORMATS, "toy", Toy())
    monkeypatch.setitem(TARGETS, "toy-here", Target("toy-here", "toy", Storage.FLOAT32, "here", "A toy"))
    return TARGETS["toy-here"]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE_PX * SIZE_PX, 4))
    model[-1].weight.data[:, ::2] = 0
    return model.eval()


def test_the_commands_take_a_toy_format(toy: Target, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "nets.py").write_text(f"from {__name__} import network as net\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[__name__])
    command = [
        "convert",
        "nets:net",
        "--target",
        "toy-here",
        "--image-size-px",
        str(SIZE_PX),
        "--json",
        "made.json",
    ]
    assert main(command) == 0
    (made,) = json.loads(Path("made.json").read_text())["files"]
    assert (made["path"], made["zero_fraction"]) == ("net-toy-here.toy", 0.5)
    assert made["max_relative_error"] < 1e-5
    assert main(["inspect", made["path"], "--json", "-"]) == 0
    assert '"format": "toy"' in capsys.readouterr().out
    Path("budget.toml").write_text("[bytes]\ntoy-here = 1_000_000\n")
    assert main(["check", made["path"], "--budget", "budget.toml"]) == 0
    assert main(["bench", made["path"]]) == 2
    assert "expected a .tflite file" in capsys.readouterr().err


@register_model
def toy_linear_for_a_test(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE_PX * SIZE_PX, kwargs["num_classes"]))


def test_a_recipe_takes_a_toy_format(toy: Target, tmp_path: Path) -> None:
    fit = TrainConfig(epochs=1, batch_size=16)
    recipe = Recipe(
        model="timm/toy_linear_for_a_test",
        data=write_folder(tmp_path / "images"),
        image_size_px=SIZE_PX,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit, layers={"1": 0.8})},
        targets=("toy-here",),
        budget=Budget(bytes={"toy-here": 1_000_000}),
        output=tmp_path / "run",
    )
    assert run_recipe(recipe, "", []) == 0
    dense, block = records.read(tmp_path / "run").rows
    assert (dense.path, block.zero_fraction) == ("files/dense-toy-here.toy", pytest.approx(0.8, abs=0.01))
    assert all(0 <= row.score <= 1 and row.max_relative_error < 1e-5 for row in (dense, block))
    assert "Toys at play" in (tmp_path / "run" / "report.html").read_text()


def test_a_toy_file_is_a_row_of_a_report(toy: Target, tmp_path: Path) -> None:
    model = network()
    images = torch.randint(0, 256, (20, 3, SIZE_PX, SIZE_PX), dtype=torch.uint8)
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    path = tmp_path / "dense-toy-here.toy"
    format = FORMATS[toy.format]
    classes = ["a", "b", "c", "d"]
    made = format.write(format.prepare(model, example, IMAGENET), toy, path, labels=classes)
    assert format_of(path) is format
    outputs = model(torch.from_numpy(normalized(images.numpy(), IMAGENET))).detach()
    row = exported_file.measure(
        made,
        toy,
        variant="dense",
        folder=tmp_path,
        task=TASKS["classification"],
        held_out=InMemory(images, outputs.argmax(1)),
        classes=classes,
        normalization=IMAGENET,
        torch_outputs=outputs,
        dense_outputs=outputs,
        dense_score=1.0,
        progress=Progress(Console(quiet=True)),
    )
    assert (row.score, row.agreement, row.sparse_runtime) == (1.0, 1.0, False)
    report = records.Report({"output": str(tmp_path)}, {}, (row,))
    assert summary.format_name(row.target) == "Toy"
    assert summary.recommendation(row.target, report).not_timed == "toys are not timed"
    assert "Toys at play: they were run on the machine" in render.markdown(report)
