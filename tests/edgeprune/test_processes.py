"""Training in two processes on the CPU: the same weights and masks in both, as good as in one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgeprune import recipe as recipes
from edgeprune.recipe import Recipe, Variant
from edgeprune.report import records
from edgeprune.training.config import TrainConfig
from tests.support.images import write_folder, write_shards

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
from torch import nn
from edgeprune.data import digits as embedded
from edgeprune.training import loop as training
from edgeprune.pruning import Block, Cubic, Rule, Sparsifier
from edgeprune.tasks import TASKS
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting
from converters.facts import Normalization
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress
from rich.console import Console

torch.set_num_threads(1)
digits = embedded.load(None, Preprocessing(32), Progress(Console(quiet=True)))
normalization = Normalization((0.5,) * 3, (0.5,) * 3)
setting = Setting(digits, TASKS["classification"], normalization, Augment(shift_px=2), seed=0)
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 64, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.1),
    nn.Flatten(), nn.Linear(64 * 64, 10),
)
fit = TrainConfig(epochs=4, batch_size=64, learning_rate=5e-3)
steps = fit.epochs * training.steps_per_epoch(setting, fit)
sparsifier = Sparsifier(model, [Rule(Block(1, 4), 0.75)], Cubic(steps // 2))
hooks = Hooks(load=lambda: None, save=lambda state: None, show=lambda *_, **__: None)
history, _ = training.train(model, setting, fit, hooks, sparsifier=sparsifier)
import os
name = os.environ.get("RANK", "alone")
torch.save({"model": model.state_dict(), "masks": sparsifier.state_dict()["masks"],
            "top1": history[-1]["top1"], "losses": [epoch["loss"] for epoch in history]},
           f"{sys.argv[1]}/{name}.pt")
"""


def start(command: list[str], processes: int) -> list[subprocess.Popen[str]]:
    """Run Python in so many processes, as `accelerate launch` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        started.append(
            subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.PIPE, text=True)
        )
    return started


def wait(started: list[subprocess.Popen[str]]) -> list[int]:
    """Exit status of each."""
    return [process.wait(timeout=240) for process in started]


def train(folder: Path, processes: int) -> list[dict]:
    """Run the script in so many processes and return what each saved."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    assert wait(start([str(script), str(folder)], processes)) == [0] * processes
    names = [str(rank) for rank in range(processes)] if processes > 1 else ["alone"]
    return [torch.load(folder / f"{name}.pt") for name in names]


@pytest.mark.slow
def test_two_processes_keep_the_same_masks_and_learn_as_much(tmp_path: Path):
    first, second = train(tmp_path, 2)
    (alone,) = train(tmp_path, 1)
    for one, other in zip(first["masks"], second["masks"], strict=True):
        assert torch.equal(one, other)
        assert float((~one).double().mean()) == pytest.approx(0.75, abs=1e-3)
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name
    assert first["losses"] != alone["losses"]  # Two processes did take part.
    assert first["top1"] > 0.8
    assert first["top1"] == pytest.approx(alone["top1"], abs=0.03)


def test_two_processes_make_one_run(tmp_path: Path, image_folder: Path):
    """All train, the first writes; a refusal reaches both, so that neither waits for the other."""
    command = [
        *("-m", "edgeprune", "run", str(tmp_path / "recipe.toml")),
        *("--output", str(tmp_path / "run")),
    ]
    fit = TrainConfig(epochs=1, batch_size=8)
    recipe = Recipe(
        model="timm/test_efficientnet",
        data=image_folder,
        image_size_px=32,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit)},
        targets=("coreml-ios16",),
    )
    (tmp_path / "recipe.toml").write_text(recipes.to_toml(recipe))
    assert wait(start(command, 2)) == [0, 0]
    report = records.read(tmp_path / "run")
    assert [row.variant for row in report.rows] == ["dense", "block80"]
    assert report.environment["processes"] == 2
    assert report.rows[1].prunable_zero_fraction == pytest.approx(0.8, abs=0.01)

    (tmp_path / "run" / "recipe.toml").write_text(recipes.to_toml(replace(recipe, seed=1)))
    refused = start(command, 2)
    assert wait(refused) == [2, 2]
    assert "holds a run of another recipe" in refused[0].stderr.read()


DISJOINT = """
import sys, json, os
import torch
from torch import nn
from pathlib import Path
from rich.console import Console
from converters.facts import Normalization
from edgeprune.data import loading, sources
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.streamed import Streamed
from edgeprune.progress import Progress
from edgeprune.tasks import TASKS
from edgeprune.training import loop as training
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting
import dataclasses


asked = []

class Noted(Streamed):
    def batches(self, parts, change=None):
        asked.append(torch.cat(list(parts)).tolist())
        return super().batches(parts, change)

if __name__ == "__main__":
    torch.set_num_threads(1)
    loading.IN_MEMORY_FRACTION = 1e-9
    path = Path(sys.argv[2])
    data = sources.source(path, LabelKind.CLASS).load(path, Preprocessing(32), Progress(Console(quiet=True)))
    assert isinstance(data.train, Streamed)
    own = Noted(**{f.name: getattr(data.train, f.name) for f in dataclasses.fields(Streamed)})
    data = dataclasses.replace(data, train=own)
    setting = Setting(data, TASKS["classification"], Normalization((0.5,) * 3, (0.5,) * 3), Augment(), seed=0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 3))
    hooks = Hooks(load=lambda: None, save=lambda state: None, show=lambda *_, **__: None)
    training.train(model, setting, TrainConfig(epochs=2, batch_size=16), hooks)
    rank = os.environ["RANK"]
    told = json.dumps([asked[:2], len(own), float(model[0].weight.sum())])
    Path(sys.argv[1], f"{rank}.json").write_text(told)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_two_processes_read_disjoint_parts_which_together_are_all(tmp_path: Path, kind: str):
    root = write_folder(tmp_path / "images", train=16, held_out=4)  # 48: three batches of 16.
    if kind == "shards":
        root = write_shards(root, tmp_path / "shards")
    (tmp_path / "script.py").write_text(DISJOINT)
    assert wait(start([str(tmp_path / "script.py"), str(tmp_path), str(root)], 2)) == [0, 0]
    (first, count, weight), (second, _, other) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    for one, two in zip(first, second, strict=True):  # Each epoch.
        assert not set(one) & set(two)
        assert sorted([*one, *two]) == list(range(count))
    assert first[0] != first[1]
    assert weight == other
