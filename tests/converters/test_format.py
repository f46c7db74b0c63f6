"""A format is a class and a row: a toy one goes from a torch model to a row of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from converters.facts import IMAGENET, Converted, FileFacts, InputSpec, LayerFacts, size_bytes
from converters.format import FORMATS, format_of
from converters.layers import weighted_layers
from converters.reference import Expected, Reference, checked, normalized, verification
from converters.targets import TARGETS, Storage, Target
from edgeprune.cli import main
from edgeprune.data.dataset import InMemory
from edgeprune.evaluation import exported_file
from edgeprune.progress import Progress
from edgeprune.report import records, render, summary
from edgeprune.tasks import TASKS

SIZE_PX = 8


class Toy:
    """The weights of one linear layer on flattened images, as JSON."""

    name, title, suffix, kind = "toy", "Toy", ".toy", "file"
    packages, extra, local_runtimes = ("torch",), None, None
    no_times, not_measured = "toys are not timed", "Toys at play: they were run on the machine"

    def missing(self):
        return None

    def prepare(self, model, example, normalization):
        return model[-1], weighted_layers(model, example), tuple(example.shape[1:]), normalization

    def write(self, prepared, target, path, *, labels=None, metadata=None, calibration=None):
        linear, layers, shape, _ = prepared
        plain = {"layer": layers[0].name, "shape": shape, "labels": labels}
        path.write_text(json.dumps({**plain, "w": linear.weight.tolist(), "b": linear.bias.tolist()}))
        return Converted(path, target.name, size_bytes(path), self.inspect(path).layers)

    def load(self, path):
        return ToyModel(json.loads(path.read_text()))

    def inspect(self, path):
        plain = json.loads(path.read_text())
        weight = np.array(plain["w"])
        layer = LayerFacts(
            plain["layer"], "linear", weight.shape, float((weight == 0).mean()), 64.0, "digits"
        )
        return FileFacts(path, (layer,), {"format": self.name}, (f"{size_bytes(path):,} bytes",), {})

    def verify(self, path, images, model, normalization, runtimes, emulated_images, say):
        inputs = normalized(images, normalization)
        outputs, wanted = self.load(path).predict(inputs), model(torch.from_numpy(inputs)).detach().numpy()
        expected = Expected(wanted, Reference.MODEL, None, 1e-5, wanted)
        return verification(path, expected, outputs, [checked("toy", "1", outputs, expected, None)])

    def tensors(self, path, image):
        return [self.load(path).predict(image)]

    def sparse_runtime(self, path, target):
        return False, "toys have no kernels"

    def layer_bytes(self, target, layer, kept, block):
        return 20.0 * kept

    def timing_input(self, path, runtime):
        raise AssertionError


class ToyModel:
    def __init__(self, plain: dict[str, Any]) -> None:
        self.input = InputSpec(tuple(plain["shape"]), None, plain["labels"] and tuple(plain["labels"]))
        self._weight, self._bias = (np.array(plain[key], np.float32) for key in "wb")

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(images.reshape(len(images), -1) @ self._weight.T + self._bias, np.float32)


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
    Path("budget.toml").write_text("[bytes]\ntoy-here = 100_000\n")
    assert main(["check", made["path"], "--budget", "budget.toml"]) == 0
    assert main(["bench", made["path"]]) == 2
    assert "expected a .tflite file" in capsys.readouterr().err


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
        dense_score=1.0,
        progress=Progress(Console(quiet=True)),
    )
    assert (row.score, row.agreement, row.sparse_runtime) == (1.0, 1.0, False)
    report = records.Report({"output": str(tmp_path)}, {}, (row,))
    assert summary.format_name(row.target) == "Toy"
    assert summary.recommendation(row.target, report).not_timed == "toys are not timed"
    assert "Toys at play: they were run on the machine" in render.markdown(report)
