"""Training on more images than memory holds: how soon it begins, how much memory it takes, how fast it is.

    python benchmarks/streaming.py --work WORK --images 200000 --trained 20000

In WORK a folder of so many JPEGs of 256 px is made: hard links to a few hundred different ones. Of them so
many are trained on, by a small network, decoded as needed; then some of the same from memory, and all decoded
alone. Memory is that of this process and its workers together, pages that they share counted once (PSS). The
output folder gets streaming.json and streaming.svg. It has not been run to its end yet.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from litert_files import provenance
from PIL import Image
from rich.console import Console
from torch import nn

from converters.facts import Normalization
from edgeprune.data import image_folder, loading
from edgeprune.data.dataset import Data, InMemory, Subset
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress
from edgeprune.tasks import TASKS
from edgeprune.training import loop
from edgeprune.training.config import Augment, TrainConfig

CLASSES, DIFFERENT, HELD_OUT = 10, 500, 500
SIDE_PX, BATCH = 256, 64
SAMPLE_SECONDS = 0.5


def make(folder: Path, images: int) -> None:
    """A folder of images in classes, most of them hard links."""
    random = np.random.default_rng(0)
    source = folder / "different"
    source.mkdir(parents=True)
    for number in range(DIFFERENT):
        coarse = random.integers(0, 255, (12, 12, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
        noise = random.normal(0, 8, (SIDE_PX, SIDE_PX, 3))
        pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(source / f"{number:04}.jpg", quality=85)
    for split, count in (("train", images), ("val", HELD_OUT)):
        for label in range(CLASSES):
            (folder / "images" / split / f"{label}").mkdir(parents=True)
        for number in range(count):
            target = folder / "images" / split / f"{number % CLASSES}" / f"{number:07}.jpg"
            os.link(source / f"{number % DIFFERENT:04}.jpg", target)


class Memory(threading.Thread):
    """What this process and its children take, every half second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, int]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        began = time.monotonic()
        while not self.ended.wait(SAMPLE_SECONDS):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # A worker that has just ended.
                    continue
            self.samples.append((time.monotonic() - began, total))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 4, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def trained(data: Data) -> float:
    """Images a second of one epoch, as the training itself says."""
    task = TASKS["classification"]
    setting = loop.Setting(data, task, Normalization((0.5,) * 3, (0.5,) * 3), Augment(), seed=0)
    hooks = loop.Hooks(load=lambda: None, save=lambda _: None, show=lambda *_, **__: None)
    ((epoch,), _) = loop.train(network(), setting, TrainConfig(epochs=1, batch_size=BATCH), hooks)
    print(f"  {epoch['images_per_second']:.0f} images/s, {epoch['waiting_fraction']:.0%} waiting", flush=True)
    return float(epoch["images_per_second"])


def measure(folder: Path, count: int) -> dict[str, Any]:
    prepare = Preprocessing(224, resize_px=256)
    loading.IN_MEMORY_FRACTION = 1e-9
    began = time.monotonic()
    data = image_folder.load(folder / "images", prepare, Progress(Console()))
    started = time.monotonic() - began
    chosen = torch.arange(len(data.train))[:: max(len(data.train) // count, 1)][:count]
    some = Data(
        Subset(data.train, chosen), Subset(data.held_out, torch.arange(64)), data.classes, "", True, ""
    )
    memory = Memory()
    memory.start()
    streamed = trained(some)
    memory.ended.set()
    memory.join()
    began = time.monotonic()
    decoded = sum(len(images) for images, _ in some.train.batches(torch.arange(len(chosen)).split(BATCH)))
    alone = decoded / (time.monotonic() - began)
    few = some.train.batch(torch.arange(0, len(chosen), max(len(chosen) // 2000, 1)))
    held = InMemory(few[0], few[1])
    in_memory = trained(Data(held, some.held_out, data.classes, "", True, ""))
    half = [pss for _, pss in memory.samples][len(memory.samples) // 2 :]
    return {
        "images": len(data.train),
        "trained": len(chosen),
        "index_seconds": started,
        "streamed_images_per_second": streamed,
        "in_memory_images_per_second": in_memory,
        "decoded_alone_images_per_second": alone,
        "most_memory_bytes": max(pss for _, pss in memory.samples),
        "second_half_growth_bytes": float(np.mean(half[len(half) // 2 :]) - np.mean(half[: len(half) // 2])),
        "memory": memory.samples,
    }


def plot(memory: list[tuple[float, int]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([second for second, _ in memory], [pss / 1e9 for _, pss in memory])
    axes.set_ylim(0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("memory, GB (PSS, workers too)")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--trained", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if not (options.work / "images").exists():
        make(options.work, options.images)
    found = measure(options.work, options.trained)
    for name, value in found.items():
        if name != "memory":
            print(f"{name}: {value:,.1f}")
    plot(found["memory"], options.output / "streaming.svg")
    told = {"provenance": provenance(), **found}
    (options.output / "streaming.json").write_text(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
