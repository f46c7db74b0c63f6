"""Prune a dense checkpoint in one shot, without training, by several criteria; measure on held-out images.

    python benchmarks/oneshot.py dense.safetensors                    # the embedded digits, one seed
    python benchmarks/oneshot.py dense.safetensors --data FOLDER --seeds 3 --output docs/results/oneshot.md

50 % single zeros, 2:4 and 50 % in 1x4 blocks, on 1x1 convolutions and linear layers. A seed draws the
calibration images from the training images; every method sees the same ones. coremltools'
LayerwiseCompressor (its SparseGPT) prunes the same layers to the same sparsity where it has the pattern.
Accuracy is top-1 as pruned, and after the batch norms' statistics were measured anew on training images.
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune import pruning
from edgeprune.data import image_folder as data
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.models import weights
from edgeprune.progress import Progress
from edgeprune.pruning import Block, NofM, Pattern, Unstructured
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import loop as training
from edgeprune.training import predict
from edgeprune.training.config import Augment
from edgeprune.training.recover import recalibrate

NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PATTERNS: dict[str, tuple[Pattern, float]] = {
    "50 % single": (Unstructured(), 0.5),
    "2:4": (NofM(keep=2, of=4), 0.5),
    "50 % in 1x4 blocks": (Block(out=1, in_=4), 0.5),
}
OURS = ("random", "magnitude", "wanda", "sparsegpt")
BLIND = ("random", "magnitude")  # These do not look at calibration images: once is enough.
THEIRS = "coremltools LayerwiseCompressor"
BATCH = 64


@dataclass(frozen=True)
class Result:
    """Of one method, pattern and seed: fractions of 1 and seconds."""

    zero_fraction: float
    top1: float
    top1_recalibrated: float
    seconds: float


def sequential(model: nn.Module) -> nn.Sequential:
    """A torchvision MobileNet as one sequence, the only form that LayerwiseCompressor takes."""
    pool = getattr(model, "avgpool", None) or nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*model.features, pool, nn.Flatten(1), *model.classifier)


def prune_with_coremltools(
    model: nn.Module, pattern: Pattern, sparsity: float, layers: set[nn.Module], batches: list[Tensor]
) -> nn.Module:
    """Prune `layers` of `model`; the model given back is a sequence."""
    # Imported late: it sets up logging of its own.
    from coremltools.optimize.torch.layerwise_compression import (
        LayerwiseCompressor,
        LayerwiseCompressorConfig,
        ModuleSparseGPTConfig,
    )

    logging.getLogger("coremltools.optimize.torch").setLevel(logging.ERROR)
    whole = sequential(model)
    # Its n:m counts zeros: 2 of every 4 are zeroed.
    ratio = (pattern.of - pattern.keep, pattern.of) if isinstance(pattern, NofM) else None
    settings = ModuleSparseGPTConfig(target_sparsity=sparsity, n_m_ratio=ratio, weight_dtype="float32")
    config = LayerwiseCompressorConfig(
        module_name_configs={
            re.escape(name): settings if module in layers else None
            for name, module in whole.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        },
        calibration_nsamples=len(batches),
    )
    return LayerwiseCompressor(whole, config).compress(batches, device="cpu", inplace=True).eval()


def measure(
    model: nn.Module, setting: training.Setting, prune: Callable[[nn.Module], tuple[nn.Module, set[str]]]
) -> Result:
    """Prune a copy of `model` with `prune`, which gives the model and the names of its pruned layers."""
    began = time.monotonic()
    pruned, names = prune(copy.deepcopy(model))
    seconds = time.monotonic() - began
    weights = [pruned.get_submodule(name).weight for name in names]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    top1 = top1_of(pruned, setting)
    recalibrate(pruned, setting.data.train, setting.normalization, setting.seed, BATCH)
    return Result(zeros, top1, top1_of(pruned, setting), seconds)


def top1_of(model: nn.Module, setting: training.Setting) -> float:
    """Share of held-out images right."""
    outputs = predict.predict(model, setting.data.held_out, setting.normalization)
    return score(setting.task, outputs, setting.data.held_out.labels)


def ours(
    criterion: str, pattern: Pattern, sparsity: float, batches: list[Tensor], seed: int
) -> Callable[[nn.Module], tuple[nn.Module, set[str]]]:
    """Pruning with this library."""

    def prune(model: nn.Module) -> tuple[nn.Module, set[str]]:
        achieved = pruning.prune(
            model, pattern, sparsity, criterion=criterion, calibration=batches, seed=seed
        )
        return model, set(achieved)

    return prune


def theirs(
    pattern: Pattern, sparsity: float, batches: list[Tensor]
) -> Callable[[nn.Module], tuple[nn.Module, set[str]]]:
    """Pruning with coremltools, of the layers that this library prunes."""
    import coremltools.optimize.torch.layerwise_compression  # noqa: F401  Not part of what is timed.

    def prune(model: nn.Module) -> tuple[nn.Module, set[str]]:
        selected = pruning.select(model, [pruning.Rule(pattern, sparsity)])
        layers: set[nn.Module] = {s.layer for s in selected if not s.reason}
        pruned = prune_with_coremltools(model, pattern, sparsity, layers, batches)
        return pruned, {name for name, module in pruned.named_modules() if module in layers}

    return prune


def calibration(setting: training.Setting, images: int, seed: int) -> list[Tensor]:
    """Training images in batches, as the model takes them."""
    order = torch.randperm(len(setting.data.train), generator=torch.Generator().manual_seed(seed))
    parts = order[:images].split(BATCH)
    return [predict.normalized(setting.data.train.batch(part)[0], setting.normalization) for part in parts]


def spread(values: list[float]) -> str:
    """Mean in per cent, and half the range where there are several."""
    mean = 100 * sum(values) / len(values)
    half = 50 * (max(values) - min(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ± {half:.1f}"


def table(results: dict[tuple[str, str], list[Result]]) -> str:
    """Markdown."""
    lines = [
        "| pattern | criterion | zeros | top-1 | top-1, batch norms recalibrated | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for (pattern, method), found in results.items():
        seconds = sum(result.seconds for result in found) / len(found)
        lines.append(
            f"| {pattern} | {method} | {spread([r.zero_fraction for r in found])} % "
            f"| {spread([r.top1 for r in found])} % | {spread([r.top1_recalibrated for r in found])} % "
            f"| {seconds:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="state dict of the dense model")
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--data", type=Path, help="image folder; none: the embedded digits")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--images", type=int, default=512, help="for calibration")
    parser.add_argument("--seeds", type=int, default=1, help="draws of calibration images")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--criteria", nargs="+", choices=OURS, default=list(OURS), help="of ours")
    parser.add_argument("--output", type=Path, help="Markdown file to write; none: only print")
    arguments = parser.parse_args()

    loaded = data.load(arguments.data, Preprocessing(arguments.image_size), Progress(Console()))
    setting = training.Setting(loaded, TASKS["classification"], NORMALIZATION, Augment(), seed=0)
    model = weights.from_checkpoint(arguments.model, arguments.checkpoint, arguments.image_size)

    dense = top1_of(model, setting)
    results: dict[tuple[str, str], list[Result]] = {}
    for seed in range(arguments.seeds):
        batches = calibration(setting, arguments.images, seed)
        for name in arguments.patterns:
            pattern, sparsity = PATTERNS[name]
            ways = {
                criterion: ours(criterion, pattern, sparsity, batches, seed)
                for criterion in arguments.criteria
                if seed == 0 or criterion not in BLIND
            }
            if not isinstance(pattern, Block):  # It has no blocks.
                ways[THEIRS] = theirs(pattern, sparsity, batches)
            for way, prune in ways.items():
                result = measure(model, setting, prune)
                results.setdefault((name, way), []).append(result)
                print(
                    f"seed {seed}: {name}, {way}: {100 * result.top1:.1f} %, recalibrated "
                    f"{100 * result.top1_recalibrated:.1f} %, {result.seconds:.1f} s",
                    flush=True,
                )

    conditions = (
        f"{arguments.model} at {arguments.image_size} px on {loaded.source}: dense {100 * dense:.1f} % of "
        f"{len(loaded.held_out)} held-out images; {arguments.images} calibration images, "
        f"{arguments.seeds} draw(s) of them for what looks at them (mean ± half the range); no training. "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)."
    )
    report = f"{conditions}\n\n{table(results)}\n"
    print(f"\n{report}")
    if arguments.output:
        aside = arguments.output.with_name(arguments.output.name + ".part")
        aside.write_text(
            f"# One-shot pruning of {arguments.model}\n\n`benchmarks/oneshot.py`: {report}", encoding="utf-8"
        )
        aside.replace(arguments.output)


if __name__ == "__main__":
    main()
