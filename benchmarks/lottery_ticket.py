"""The lottery ticket on ResNet-20 and CIFAR-10: iterative rewinding against random reinitialisation.

    python benchmarks/lottery_ticket.py --data cifar10 [--short] [--seeds 3]

`--data` holds train/ and test/ with a folder of images for each class. Each round trains, drops an equal
share of what is left and rewinds; the masks of each round are then trained twice: from the rewound weights
and from fresh random ones. Writes docs/results/lottery_ticket.md and .png, anew after every round. `--short`
takes minutes on two cores: part of the images, smaller, and few epochs, which shows the procedure rather than
the paper's accuracies.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from converters.facts import Normalization
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import Data, fixed_subset
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress
from edgeprune.pruning import OneShot, Rule, Sparsifier, Unstructured
from edgeprune.pruning.rewinding import hold, rewind, rules_of_round, snapshot
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import loop as training
from edgeprune.training import predict
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NORMALIZATION = Normalization((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))
QUIET = Hooks(load=lambda: None, save=lambda state: None, show=lambda *_, **__: None)


@dataclass(frozen=True)
class Plan:
    """How much of it: images to train and test on (None for all), epochs, rounds to the last sparsity."""

    pixels: int
    images: int | None
    tested: int | None
    warm_up_epochs: int
    epochs: int
    rounds: int
    sparsity: float


FULL = Plan(32, None, None, warm_up_epochs=1, epochs=30, rounds=6, sparsity=0.97)
SHORT = Plan(16, 10_000, None, warm_up_epochs=1, epochs=12, rounds=3, sparsity=0.97)


@dataclass(frozen=True)
class Point:
    """Top-1 of the held-out images at one sparsity, from the rewound and from fresh weights."""

    seed: int
    sparsity: float
    ticket: float
    control: float


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; a shortcut that shrinks takes every other pixel (He, 2016)."""

    def __init__(self, in_: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - in_

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 0, self.more)))


def resnet20(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    blocks: list[nn.Module] = []
    for in_, out, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        blocks += [Block(in_, out, stride), Block(out, out, 1), Block(out, out, 1)]
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    plan = SHORT if options.short else FULL
    data = datasets.load(options.data, Preprocessing(plan.pixels), Progress(Console()))
    train = data.train if plan.images is None else fixed_subset(data.train, plan.images)
    held_out = data.held_out if plan.tested is None else fixed_subset(data.held_out, plan.tested)
    data = dataclasses.replace(data, train=train, held_out=held_out)
    RESULTS.mkdir(parents=True, exist_ok=True)
    points: list[Point] = []
    for seed in range(options.seeds):
        for point in tickets(data, plan, seed):
            print(point, flush=True)
            points.append(point)
            (RESULTS / "lottery_ticket.md").write_text(page(points, plan, data))
            draw(points, plan, RESULTS / "lottery_ticket.png")


def tickets(data: Data, plan: Plan, seed: int) -> Iterator[Point]:
    """The dense model, then each round."""
    setting = Setting(data, TASKS["classification"], NORMALIZATION, Augment(shift_px=plan.pixels // 8), seed)
    rules = [Rule(Unstructured(), plan.sparsity, "*.conv?")]
    model = resnet20(seed)
    fit(model, setting, plan.warm_up_epochs, None)
    start = snapshot(model)
    top1 = fit(model, setting, plan.epochs, None)
    yield Point(seed, 0.0, top1, top1)
    for number in range(1, plan.rounds + 1):
        due = rules_of_round(rules, number, plan.rounds)
        chooser = Sparsifier(model, due, OneShot())
        chooser.finalize()
        masks = chooser.state_dict()["masks"]
        rewind(model, start)
        ticket = fit(model, setting, plan.epochs, hold(model, due, masks))
        # As many epochs in all, and fresh weights for every round.
        control = resnet20(1000 * (seed + 1) + number)
        reached = fit(control, setting, plan.warm_up_epochs + plan.epochs, hold(control, due, masks))
        yield Point(seed, due[0].sparsity, ticket, reached)


def fit(model: nn.Module, setting: Setting, epochs: int, held: Sparsifier | None) -> float:
    plan = TrainConfig(epochs=epochs, batch_size=128 if len(setting.data.train) > 10_000 else 64)
    training.train(model, setting, plan, QUIET, sparsifier=held)
    outputs = predict.predict(model, setting.data.held_out, setting.normalization)
    return score(setting.task, outputs, setting.data.held_out.labels)


def page(points: list[Point], plan: Plan, data: Data) -> str:
    seeds = len({point.seed for point in points})
    shortened = plan is SHORT
    lines = [
        "# The lottery ticket: ResNet-20 on CIFAR-10",
        "",
        f"{len(data.train):,} training images, {len(data.held_out):,} held-out ones, {plan.epochs} epochs a",
        f"training, {seeds} seed{'s' if seeds > 1 else ''}. Each round drops an equal share of the weights",
        f"left in 3x3 layers and rewinds the rest to where they were after {plan.warm_up_epochs} epoch. The",
        "control has the same masks, fresh random weights and as many epochs.",
        *(
            [
                "",
                "**Shortened**: part of the images, at 16 px, and few epochs, on two CPU cores. The order of",
                "the two is what this shows; accuracies are far below those of full training.",
            ]
            if shortened
            else []
        ),
        "",
        "| zeros | rewound | reinitialised | gap, points |",
        "|---:|---:|---:|---:|",
    ]
    for sparsity, ticket, control in means(points):
        gap = f"{100 * (ticket - control):+.1f}" if sparsity else "–"
        lines.append(f"| {sparsity:.1%} | {ticket:.1%} | {control:.1%} | {gap} |")
    command = f"python benchmarks/lottery_ticket.py --data cifar10{' --short' if shortened else ''}"
    ending = ["", "![Accuracy by weights left](lottery_ticket.png)", "", f"Written by `{command}`.", ""]
    return "\n".join([*lines, *ending])


def means(points: list[Point]) -> list[tuple[float, float, float]]:
    sparsities = sorted({point.sparsity for point in points})
    of = {s: [point for point in points if point.sparsity == s] for s in sparsities}
    return [
        (s, float(np.mean([p.ticket for p in of[s]])), float(np.mean([p.control for p in of[s]])))
        for s in sparsities
    ]


def draw(points: list[Point], plan: Plan, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    left = [100 * (1 - s) for s, _, _ in means(points)]
    for column, label, marker in ((1, "rewound (ticket)", "o"), (2, "reinitialised (control)", "s")):
        axes.plot(left, [100 * row[column] for row in means(points)], marker=marker, label=label)
    axes.set_xscale("log")
    axes.set_xticks(left, [f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" for value in left])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.set_xlabel("weights left")
    axes.set_ylabel("held-out top-1, %")
    shortened = " (shortened)" if plan is SHORT else ""
    axes.set_title(f"ResNet-20 on CIFAR-10{shortened}: same masks, two starts", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
