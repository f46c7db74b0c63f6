"""Training on more images than memory holds: how soon it begins, how much memory it takes, how fast it is.

    python benchmarks/streaming.py --work WORK --images 200000 --limit-gb 3        # as root
    python benchmarks/streaming.py --work WORK --images 200000 --trained 20000     # a part, without a limit

In WORK a folder of so many JPEGs of 256 px is made: hard links to a few hundred different ones. They are
trained on by a tiny network, decoded as needed, the process and its workers limited to so much memory by a
control group. Memory is that of all these processes, pages that they share counted once (PSS). Then networks
train on a part, decoded as needed and kept in memory, and the part is decoded alone. The output folder gets
streaming.json, streaming.md and streaming.svg; what streaming.json has already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from litert_files import provenance, table
from PIL import Image
from rich.console import Console
from torch import nn

from converters.facts import Normalization
from converters.files import write_text
from edgeprune.data import image_folder
from edgeprune.data.dataset import Data, InMemory, Subset
from edgeprune.data.memory import CONTROL_GROUPS, memory_bytes
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.models.architecture import Architecture
from edgeprune.pipeline import environment
from edgeprune.progress import Progress
from edgeprune.tasks import TASKS
from edgeprune.training import loop
from edgeprune.training.config import Augment, TrainConfig

CLASSES, DIFFERENT, HELD_OUT = 10, 500, 500
SIDE_PX, SIZE_PX, BATCH = 256, 224, 64
PAGE = 4096  # Limits are whole pages.
SAMPLE_SECONDS = 0.5
FIGURES = ("in memory", "decoded as needed", "decoded alone")


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


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 4, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def mobilenet_v3_small() -> nn.Module:
    return Architecture("mobilenet_v3_small", SIZE_PX).build(CLASSES)


@dataclass(frozen=True)
class Paced:
    """A network, and how many images it takes in memory and decoded as needed.

    So many that starting the workers, four seconds, counts for little.
    """

    build: Callable[[], nn.Module]
    held: int
    streamed: int
    rounds: int

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()


# The first leaves the most to decoding: no network that anybody ships is as fast.
NETWORKS = {
    "tiny": Paced(tiny, 2048, 16384, 5),
    "mobilenet_v3_small": Paced(mobilenet_v3_small, 512, 4096, 3),
}


def limit(count_bytes: int) -> None:
    """Limit this process and those it will start, by a control group of its own."""
    version1 = CONTROL_GROUPS / "memory"
    group = (version1 if version1.is_dir() else CONTROL_GROUPS) / f"edgeprune-{os.getpid()}"
    try:
        group.mkdir()
        name = "memory.limit_in_bytes" if version1.is_dir() else "memory.max"
        (group / name).write_text(str(count_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise SystemExit(f"--limit-gb needs root and Linux's control groups: {error}") from None
    assert memory_bytes() == count_bytes


def trained(data: Data, model: nn.Module) -> float:
    """Images a second of one epoch, as the training itself says."""
    task = TASKS["classification"]
    setting = loop.Setting(data, task, Normalization((0.5,) * 3, (0.5,) * 3), Augment(), seed=0)
    hooks = loop.Hooks(load=lambda: None, save=lambda _: None, show=lambda *_, **__: None)
    ((epoch,), _) = loop.train(model, setting, TrainConfig(epochs=1, batch_size=BATCH), hooks)
    print(f"  {epoch['images_per_second']:.0f} images/s, {epoch['waiting_fraction']:.0%} waiting", flush=True)
    return float(epoch["images_per_second"])


def indexed(folder: Path) -> tuple[Data, float]:
    """The data, and the seconds until they can be read."""
    began = time.monotonic()
    data = image_folder.load(
        folder / "images", Preprocessing(SIZE_PX, resize_px=SIDE_PX), Progress(Console())
    )
    if isinstance(data.train, InMemory):
        raise SystemExit("so few images are kept in memory: more of them, or less memory (--limit-gb)")
    return data, time.monotonic() - began


def remembered(data: Data, index_seconds: float, count: int) -> dict[str, Any]:
    """Memory while a tiny network is trained on so many images."""
    some = part_of(data, count or len(data.train))
    memory = Memory()
    memory.start()
    print(f"a tiny network on {len(some.train):,} images", flush=True)
    trained(some, NETWORKS["tiny"].model())
    memory.ended.set()
    memory.join()
    half = [pss for _, pss in memory.samples][len(memory.samples) // 2 :]
    return {
        "images": len(data.train),
        "trained": len(some.train),
        "allowed_memory_bytes": memory_bytes(),
        "index_seconds": index_seconds,
        "most_memory_bytes": max(pss for _, pss in memory.samples),
        "second_half_growth_bytes": float(np.mean(half[len(half) // 2 :]) - np.mean(half[: len(half) // 2])),
        "memory": memory.samples,
        "images_per_second": {},
    }


def part_of(data: Data, count: int) -> Data:
    """So many training images, spread over all, and a few held-out ones."""
    chosen = torch.arange(len(data.train))[:: max(len(data.train) // count, 1)][:count]
    held_out = Subset(data.held_out, torch.arange(64))
    return Data(Subset(data.train, chosen), held_out, data.classes, "", True, "")


def speeds(data: Data, paced: Paced) -> dict[str, list[float]]:
    """Images a second of each round, by what is done with them.

    In memory before and after the others, and the mean taken: the machine's pace changes within minutes.
    """
    some = part_of(data, paced.held)
    images, labels = next(iter(some.train.batches([torch.arange(paced.held)])))
    held = Data(InMemory(images, labels), some.held_out, data.classes, "", True, "")
    many = part_of(data, paced.streamed)
    rounds: dict[str, list[float]] = {figure: [] for figure in FIGURES}
    for _ in range(paced.rounds):
        before = trained(held, paced.model())
        rounds["decoded as needed"].append(trained(many, paced.model()))
        rounds["in memory"].append((before + trained(held, paced.model())) / 2)
        began = time.monotonic()
        for _ in many.train.batches(torch.arange(paced.streamed).split(BATCH)):
            pass
        rounds["decoded alone"].append(paced.streamed / (time.monotonic() - began))
    return rounds


def page(found: dict[str, Any]) -> list[str]:
    rows = [_row(name, speed) for name, speed in found["images_per_second"].items()]
    return [
        "# Training on more images than memory holds",
        "",
        f"`python benchmarks/streaming.py`, {environment.processor()}, {os.cpu_count()} cores. "
        f"{found['images']:,} training images, JPEGs of {SIDE_PX} px, taken at {SIZE_PX} px; the process and "
        f"its workers may use {found['allowed_memory_bytes'] / 1e9:.1f} GB.",
        "",
        f"- From the start to the first batch, images listed and none of them read: "
        f"{found['index_seconds']:.1f} s. It is done at every start: that is how a changed image is noticed.",
        f"- Memory while {found['trained']:,} of them were trained on: at most "
        f"{found['most_memory_bytes'] / 1e9:.2f} GB; the last quarter had "
        f"{found['second_half_growth_bytes'] / 1e6:+.0f} MB against the one before.",
        "",
        "![Memory by time](streaming.svg)",
        "",
        "Images a second, starting the workers included; medians of rounds, in each of which all three were "
        "measured, since the machine's pace changes within minutes. The bar is 90 % of the pace in memory "
        "or 95 % of decoding alone, whichever is smaller.",
        "",
        *table(("network", "rounds", *FIGURES, "of in memory", "lowest to highest", "bar"), rows),
        "",
        "Decoding and training share the same two cores, so that the smaller the network, the larger the "
        "share that decoding takes. The tiny one, two convolutions, is faster than anything that is shipped.",
    ]


def _row(name: str, speed: dict[str, list[float]]) -> tuple[str, ...]:
    held, streamed, alone = (np.array(speed[figure]) for figure in FIGURES)
    shares, bar = streamed / held, streamed / np.minimum(0.9 * held, 0.95 * alone)
    return (
        name,
        str(len(held)),
        *(f"{np.median(values):.0f}" for values in (held, streamed, alone)),
        f"{np.median(shares):.0%}",
        f"{shares.min():.0%} to {shares.max():.0%}",
        "met" if np.median(bar) >= 1 else "**not met**",
    )


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
    parser.add_argument("--trained", type=int, default=0, help="so many of them; 0: all")
    parser.add_argument("--limit-gb", type=float, default=0, help="memory allowed; 0: all there is")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    if not (options.work / "images").exists():
        make(options.work, options.images)
    if options.limit_gb:
        limit(round(options.limit_gb * 1e9 / PAGE) * PAGE)
    path = options.output / "streaming.json"
    data, seconds = indexed(options.work)
    found = json.loads(path.read_text()) if path.exists() else remembered(data, seconds, options.trained)
    for name, paced in NETWORKS.items():
        if name not in found["images_per_second"]:
            print(name, flush=True)
            found["images_per_second"][name] = speeds(data, paced)
        path.write_text(json.dumps({**found, "provenance": provenance()}) + "\n")
    write_text(options.output / "streaming.md", "\n".join(page(found)) + "\n")
    plot(found["memory"], options.output / "streaming.svg")


if __name__ == "__main__":
    main()
