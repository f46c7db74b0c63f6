"""This library's pruning while training against coremltools' and Torch-Pruning's, from one dense model.

    python benchmarks/pruners.py --data cifar10 --work work/pruners [--seeds 0 1 2]

`--data` holds train/ and test/ (or val/) with a folder of images a class. The dense model is trained once;
every row then starts from it and trains for the same epochs, on the same images in the same order, with the
same optimizer, by the very same loop. A row is kept in `--work` as soon as it is measured: a killed run goes
on with the next one, and two seeds can be run at once with `--seeds`. The Markdown table goes to `--output`.

Rows "labels only" compare the pruners alone. Rows "distilled" are what the recipes do: the dense model's
answers weigh 0.7 in the loss. On two cores the dense model is trained in half the time by
`torchrun --nproc-per-node 2 benchmarks/pruners.py ... --dense-only`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from coremltools_pruner import CoremltoolsPruner
from dense_model import CYCLES, hooks, save, train_dense
from rich.console import Console
from torch import Tensor, nn

from converters import coreml
from converters.facts import Normalization
from converters.files import replacing
from edgeprune import pruning
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import batches
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.models import cost, weights
from edgeprune.pipeline import environment
from edgeprune.progress import Progress
from edgeprune.pruning import Block, Cubic, Pattern, Rule, Sparsifier, Unstructured
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import augment, predict
from edgeprune.training import loop as training
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Setting
from edgeprune.training.recover import recalibrate

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SPARSITY = 0.8
LEFT = 0.5
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1024, 16
RAMP = 0.6
DISTILL = 0.7
MASK_UPDATES = 50
EVALUATION_BATCH = 100
OURS, CORE_ML, TORCH_PRUNING = "edgeprune", "coremltools MagnitudePruner", "Torch-Pruning"


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        pattern: what goes to zero, or what is removed, in words.
        tool: who prunes.
        distilled: whether the dense model teaches.
        settings: of our Sparsifier, shown in the table.
    """

    pattern: str
    tool: str
    distilled: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


PATTERNS: dict[str, Pattern] = {
    "80 % single weights": Unstructured(),
    "80 % in 1x4 blocks": Block(out=1, in_=4),
    "80 % in 4x1 blocks": Block(out=4, in_=1),
}
NOTHING = "nothing"
CHANNELS = "half of the multiplications, by channels"
WEIGHTS = "half of the weights, by channels"
# coremltools ranks blocks by their L2 norm: so do ours that are compared with it.
L2, REGROW = {"criterion": "squared_magnitude"}, {"criterion": "squared_magnitude", "regrow": True}
METHODS = {
    "nothing": Method(NOTHING, "–"),
    "single": Method("80 % single weights", OURS),
    "single-regrow": Method("80 % single weights", OURS, settings=REGROW),
    "single-coremltools": Method("80 % single weights", CORE_ML),
    # coremltools' blocks lie along the output channels only.
    "block-4x1": Method("80 % in 4x1 blocks", OURS, settings=L2),
    "block-4x1-regrow": Method("80 % in 4x1 blocks", OURS, settings=REGROW),
    "block-4x1-coremltools": Method("80 % in 4x1 blocks", CORE_ML),
    "block-4x1-distilled": Method("80 % in 4x1 blocks", OURS, distilled=True, settings=REGROW),
    "block-1x4": Method("80 % in 1x4 blocks", OURS, settings=L2),
    "block-1x4-regrow": Method("80 % in 1x4 blocks", OURS, settings=REGROW),
    "channels": Method(CHANNELS, OURS, settings={"of": "macs"}),
    "channels-alike": Method(CHANNELS, OURS),
    "channels-torch-pruning": Method(CHANNELS, TORCH_PRUNING),
    "channels-distilled": Method(CHANNELS, OURS, distilled=True, settings={"of": "macs"}),
    "weights-distilled": Method(WEIGHTS, OURS, distilled=True, settings={"of": "parameters"}),
}


def run_row(
    name: str, dense: nn.Module, setting: Setting, fit: TrainConfig, size_px: int
) -> tuple[dict[str, Any], nn.Module]:
    """Prune a copy of the dense model by one method while it trains, and measure it."""
    method = METHODS[name]
    model = copy.deepcopy(dense)
    example = torch.zeros(1, 3, size_px, size_px)
    began = time.monotonic()
    sparsifier, untrained = None, None
    if method.pattern in (CHANNELS, WEIGHTS):
        _remove_channels(model, method, example, setting)
        untrained = _untrained_top1(model, setting, fit)
    elif method.pattern != NOTHING:
        sparsifier = _sparsifier(model, method, setting, fit)
    training.train(
        model,
        setting,
        fit,
        hooks(name),
        teacher=copy.deepcopy(dense) if method.distilled else None,
        distill=DISTILL if method.distilled else 0.0,
        sparsifier=sparsifier,
    )
    row = {
        "top1": _top1(model, setting),
        "untrained_top1": untrained,
        "zeros": _zeros(model, method),
        "macs_left": cost.count_macs(model, example) / cost.count_macs(dense, example),
        "parameters_left": cost.count_parameters(model) / cost.count_parameters(dense),
        "seconds": time.monotonic() - began,
    }
    return row, model


def core_ml_row(name: str, model: nn.Module, setting: Setting, size_px: int, work: Path) -> dict[str, Any]:
    """Write the model as a float16 package; its bytes, and the top-1 of the file on all held-out images."""
    path = work / f"{name}.mlpackage"
    example = torch.zeros(1, 3, size_px, size_px)
    converted = coreml.convert(model, example, path, target="coreml-ios16", normalization=NORMALIZATION)
    package = coreml.load(path, native=False)
    outputs = [
        torch.from_numpy(package.predict(images.float().numpy()))
        for images, _ in batches(setting.data.held_out, EVALUATION_BATCH)
    ]
    reached = score(setting.task, torch.cat(outputs), setting.data.held_out.labels)
    return {"bytes": converted.bytes, "top1": reached}


def core_ml_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown; every row against the dense file."""
    dense = rows["dense"]
    lines = ["| file | bytes | smaller by | top-1 of the file | points lost |", "|---|--:|--:|--:|--:|"]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['bytes']:,} | {100 * (1 - row['bytes'] / dense['bytes']):.1f} % "
            f"| {100 * row['top1']:.2f} % | {100 * (dense['top1'] - row['top1']):.2f} |"
        )
    return "\n".join(lines)


def table(rows: Mapping[tuple[str, int], Mapping[str, float]]) -> str:
    """Markdown, a line a method; mean and every seed's value."""
    lines = [
        "| pattern | pruner | loss | zeros in the pruned layers | multiplications left | parameters left "
        "| top-1 before training | top-1, mean | each seed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        found = [row for (method_name, _), row in sorted(rows.items()) if method_name == name]
        if not found:
            continue
        top1 = [100 * row["top1"] for row in found]
        lines.append(
            f"| {method.pattern} | {_tool(method)} | {'distilled' if method.distilled else 'labels only'} "
            f"| {100 * _mean(found, 'zeros'):.2f} % | {100 * _mean(found, 'macs_left'):.1f} % "
            f"| {100 * _mean(found, 'parameters_left'):.1f} % | {_untrained(found)} "
            f"| **{statistics.mean(top1):.2f} %** "
            f"| {', '.join(f'{value:.2f}' for value in top1)} |"
        )
    return "\n".join(lines)


def _tool(method: Method) -> str:
    """Who prunes, and how where it is not the default."""
    said = {"squared_magnitude": "L2", True: "regrow", "macs": "`shrink_to`", "parameters": "`shrink_to`"}
    settings = [said[value] for value in method.settings.values()]
    return f"{method.tool} ({', '.join(settings)})" if settings else method.tool


def _sparsifier(model: nn.Module, method: Method, setting: Setting, fit: TrainConfig) -> Any:
    pattern = PATTERNS[method.pattern]
    steps = round(RAMP * fit.epochs * training.steps_per_epoch(setting, fit))
    every = max(steps // MASK_UPDATES, 1)
    if method.tool == OURS:
        return Sparsifier(model, [Rule(pattern, SPARSITY)], Cubic(steps, every=every), **method.settings)
    return CoremltoolsPruner(model, pattern, SPARSITY, steps, every)


def _remove_channels(model: nn.Module, method: Method, example: Tensor, setting: Setting) -> None:
    if method.tool == TORCH_PRUNING:
        _shrink_with_torch_pruning(model, example)
    elif method.settings:
        pruning.shrink_to(model, example, LEFT, calibration=_calibration(setting), **method.settings)
    else:
        pruning.shrink(model, example, pruning.fraction_for_macs(model, example, LEFT))


def _calibration(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """Training images that tell which channels matter, drawn anew for each seed."""
    train = setting.data.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(setting.seed))
    return [
        (predict.normalized(images, setting.normalization), labels)
        for images, labels in (
            train.batch(part) for part in order[:CALIBRATION_IMAGES].split(CALIBRATION_BATCH)
        )
    ]


def _shrink_with_torch_pruning(model: nn.Module, example: Tensor) -> None:
    """As its README does it, with the fraction that leaves the same multiplications."""
    import torch_pruning as tp

    def shrink(model: nn.Module, fraction: float) -> None:
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=fraction,
            ignored_layers=[linear[-1]],
        )
        pruner.step()

    def left(fraction: float) -> float:
        trial = copy.deepcopy(model)
        shrink(trial, fraction)
        return cost.count_macs(trial, example) / dense

    dense = cost.count_macs(model, example)
    shrink(model, _bisected(left, LEFT))


def _bisected(left: Callable[[float], float], wanted: float) -> float:
    """Where the falling function `left` comes nearest to `wanted`, between 0 and 1."""
    low, high = 0.0, 1.0
    tried: dict[float, float] = {}
    for _ in range(10):
        middle = (low + high) / 2
        value = left(middle)
        tried[middle] = abs(value - wanted)
        low, high = (middle, high) if value > wanted else (low, middle)
    return min(tried, key=lambda fraction: tried[fraction])


def _zeros(model: nn.Module, method: Method) -> float:
    """The fraction of zeros in the layers that the patterns prune, counted."""
    if method.pattern not in PATTERNS:
        return 0.0
    selected = pruning.select(model, [Rule(PATTERNS[method.pattern], SPARSITY)])
    weights = [s.layer.weight for s in selected if not s.reason]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _top1(model: nn.Module, setting: Setting) -> float:
    outputs = predict.predict(model, setting.data.held_out, setting.normalization)
    return score(setting.task, outputs, setting.data.held_out.labels)


def _untrained_top1(model: nn.Module, setting: Setting, fit: TrainConfig) -> float:
    """With nothing done to a copy but measuring its batch norms anew."""
    trial = copy.deepcopy(model)
    recalibrate(trial, setting.data.train, setting.normalization, setting.seed, fit.batch_size)
    return _top1(trial, setting)


def _untrained(rows: list[Mapping[str, Any]]) -> str:
    measured = [100 * row["untrained_top1"] for row in rows if row["untrained_top1"] is not None]
    return f"{statistics.mean(measured):.2f} %" if measured else "–"


def _mean(rows: list[Mapping[str, float]], key: str) -> float:
    return statistics.mean(row[key] for row in rows)


def _read_rows(work: Path) -> dict[tuple[str, int], dict[str, float]]:
    found = {}
    for path in sorted(work.glob("*.json")):
        name, _, seed = path.stem.rpartition("-seed")
        if name in METHODS:
            found[name, int(seed)] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write_table(
    arguments: argparse.Namespace,
    dense_top1: float,
    fit: TrainConfig,
    source: str,
    files: Mapping[str, Mapping[str, float]],
    held_out: int,
) -> None:
    rows = _read_rows(arguments.work)
    seeds = sorted({seed for _, seed in rows})
    dense_epochs = " + ".join(str(cycle.epochs) for cycle, _ in CYCLES)
    sizes = [augment.size_px(epoch, fit, arguments.image_size) for epoch in range(fit.epochs)]
    grows = f" on images of {', '.join(map(str, sizes))} px" if fit.first_px else ""
    text = (
        f"# Pruners compared on {source}, {arguments.model}\n\n"
        f"`benchmarks/pruners.py`, {environment.processor()}, {torch.get_num_threads()} thread(s), torch "
        f"{torch.__version__}. {arguments.model} at {arguments.image_size} px; the dense model, "
        f"{dense_epochs} epochs, has **{100 * dense_top1:.2f} %** of the held-out images right. Every row "
        f"starts from it: {fit.epochs} epoch{'s' * (fit.epochs > 1)}{grows} of AdamW, one-cycle to "
        f"{fit.learning_rate:g}, batches of {fit.batch_size}, zeros growing over the first {RAMP:.0%} by the "
        "same cubic schedule at the same steps, on the same layers. Seeds "
        f"{', '.join(map(str, seeds))} (order and augmentation of the images, the same for all rows of a "
        "seed).\n\n"
        'Rows "labels only" compare the pruners alone. "distilled" is what the recipes do: the dense '
        f'model\'s answers weigh {DISTILL} in the loss. "regrow" is what recipes do, too: pruned weights '
        "may come back while zeros grow.\n\n"
        f"{_certainty(held_out)}\n\n"
        f"{table(rows)}\n"
    )
    if files:
        text += (
            "\n## Core ML, by removed channels alone\n\nfloat16 packages (`coreml-ios16`) of seed 0, run "
            f"with `coreml.load` on all held-out images.\n\n{core_ml_table(files)}\n"
        )
    with replacing(arguments.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _certainty(held_out: int) -> str:
    """What the size of the test alone makes of a difference, at 80 % right."""
    points = 100 * (0.8 * 0.2 / held_out) ** 0.5
    return (
        f"One standard error of a number on {held_out:,} images is {points:.1f} points, of a difference "
        "more: with a single seed, rows less than a point apart are not told apart."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="image folder")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for what is done, outside the repository"
    )
    parser.add_argument("--model", default="mobilenet_v3_large")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--dense-only", action="store_true", help="train the dense model and stop")
    parser.add_argument("--epochs", type=int, default=1, help="of every row")
    parser.add_argument("--first-px", type=int, default=0, help="size of the first epoch's images; they grow")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--files", action="store_true", help="write and run Core ML packages too")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path, default=RESULTS / "pruners.md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = datasets.load(arguments.data, Preprocessing(arguments.image_size), Progress(Console()))
    fit = TrainConfig(
        epochs=arguments.epochs, batch_size=128, learning_rate=1e-3, first_px=arguments.first_px
    )

    setting = Setting(data, TASKS["classification"], NORMALIZATION, Augment(shift_px=8), seed=0)
    dense = train_dense(setting, arguments.model, arguments.work)
    if arguments.dense_only:
        return
    top1 = _top1(dense, setting)
    for seed in arguments.seeds:
        for name in arguments.rows:
            path = arguments.work / f"{name}-seed{seed}.json"
            if not path.exists():
                own = dataclasses.replace(setting, seed=seed)
                row, model = run_row(name, dense, own, fit, arguments.image_size)
                print(f"{name}, seed {seed}: {100 * row['top1']:.2f} %", flush=True)
                save(model, path.with_suffix(".pt"))
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(row), encoding="utf-8")
    files = _core_ml_rows(dense, setting, arguments) if arguments.files else {}
    _write_table(arguments, top1, fit, data.source, files, len(data.held_out))


def _core_ml_rows(
    dense: nn.Module, setting: Setting, arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """The dense model, and seed 0 of every row that removed channels, or nothing."""
    found = {"dense": dense}
    for name, method in METHODS.items():
        if method.pattern not in (NOTHING, CHANNELS, WEIGHTS):
            continue
        path = arguments.work / f"{name}-seed0.pt"
        if path.exists():
            found[name] = weights.from_checkpoint(arguments.model, path)
    return {
        name: core_ml_row(name, model, setting, arguments.image_size, arguments.work)
        for name, model in found.items()
    }


if __name__ == "__main__":
    main()
