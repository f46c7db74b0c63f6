"""The dense model that several benchmarks start from: trained once, in two cycles, and kept."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from converters.files import replacing, write_text
from edgeprune.models import build as models
from edgeprune.models import weights
from edgeprune.pipeline.environment import training_hardware
from edgeprune.processes import is_first, shared
from edgeprune.training import loop as training
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting

COMMON = TrainConfig(batch_size=128, weight_decay=0.05, label_smoothing=0.1)
# Trained in two cycles of the learning rate; the second one sees its images nearly as they are.
CYCLES = (
    (
        dataclasses.replace(COMMON, epochs=26, learning_rate=1.5e-3, first_px=48),
        Augment(shift_px=8, erase_px=16),
    ),
    (dataclasses.replace(COMMON, epochs=6, learning_rate=1e-3, ema=0.995), Augment(shift_px=4)),
)
EPOCHS = tuple(fit.epochs for fit, _ in CYCLES)


def train_dense(setting: Setting, model: str, work: Path, epochs: Sequence[int] = EPOCHS) -> nn.Module:
    """Train the dense model, one cycle after the other, or read what is there; in eval mode.

    `work` is left with `checkpoint(work)`. Every process of a launch calls this; the first one writes.
    """
    torch.manual_seed(0)
    dense = models.build(model, len(setting.data.classes), setting.data.train.size_px)
    for cycle, ((fit, augment), count) in enumerate(zip(CYCLES, epochs, strict=True)):
        path = work / f"dense-{cycle}.pt"
        if not shared(path.exists):
            own = dataclasses.replace(setting, seed=cycle, augment=augment)
            told = hooks(f"dense, cycle {cycle}", work / f"dense-{cycle}.part")
            _, seconds = training.train(dense, own, dataclasses.replace(fit, epochs=count), told)
            facts = {"epochs": count, "seconds": seconds, "trained_on": training_hardware()}
            shared(lambda path=path, facts=facts: _finish(dense, path, facts))
        weights.load_checkpoint(dense, path)
    return dense.eval()


def checkpoint(work: Path) -> Path:
    """The weights that `train_dense` leaves."""
    return work / f"dense-{len(CYCLES) - 1}.pt"


def how_trained(work: Path) -> list[dict[str, Any]]:
    """Epochs, seconds and hardware of each cycle, as far as they were written down."""
    notes = [work / f"dense-{cycle}.json" for cycle in range(len(CYCLES))]
    return [json.loads(note.read_text()) for note in notes if note.exists()]


def _finish(model: nn.Module, path: Path, facts: dict[str, Any]) -> None:
    """Keep a trained model and, beside it, how it came to be."""
    write_text(path.with_suffix(".json"), json.dumps(facts))
    save(model, path)


def save(model: nn.Module, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(model.state_dict(), temporary)


def hooks(name: str, path: Path | None = None) -> Hooks:
    """Of a training that prints every epoch and, with `path`, goes on where it was stopped."""

    def keep(state: dict[str, Any]) -> None:
        if path is not None and is_first():
            with replacing(path) as temporary:
                torch.save(state, temporary)

    def load() -> dict[str, Any] | None:
        if path is None or not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def show(epoch: int, remark: str = "") -> None:
        if is_first():
            print(f"{time.strftime('%H:%M:%S')} {name}: epoch {epoch}, {remark}", flush=True)

    return Hooks(load=lambda: shared(load), save=keep, show=show)
