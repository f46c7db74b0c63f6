"""The zeros of each layer of a variant, found the way its recipe asks for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from converters.format import FORMATS
from converters.runtimes.latency import TimeModel, time_models
from converters.sizes import SizeModel, calibrated
from converters.targets import TARGETS
from edgeprune.data import dataset
from edgeprune.evaluation import sensitivity
from edgeprune.evaluation.sensitivity_result import IMAGES, SPARSITIES
from edgeprune.progress import Progress
from edgeprune.pruning import Block, Pattern, Unstructured, prunable
from edgeprune.pruning.allocation.limits import to_budget, to_macs, to_time
from edgeprune.pruning.allocation.result import Allocation, Curves
from edgeprune.pruning.allocation.shares import (
    by_importance,
    by_multiplications,
    by_sensitivity,
    erdos_renyi,
)
from edgeprune.recipe import Variant
from edgeprune.training.loop import Setting
from edgeprune.training.predict import normalized

MEASURED = ("sensitivity", "budget", "time", "macs")
TIMED_TARGET = "litert-arm64"  # Its file has the ops of every runtime's.


def allocate(
    variant: Variant, model: nn.Module, setting: Setting, curves: Curves | None = None
) -> Allocation:
    """The allocation of a variant whose `allocation` is not "uniform".

    Args:
        variant: of the recipe.
        model: dense, in eval mode, its channels removed already.
        setting: for the conversions that a budget needs, to know what is in a file beside weights.
        curves: measured on the trained model; None estimates them from the weights.

    Raises:
        UserError: what the allocation refuses, a budget that cannot be met above all.
    """
    pattern = pattern_of(variant)
    if variant.allocation == "budget":
        sizes = size_models(model, setting, tuple(variant.bytes))
        return to_budget(model, pattern, variant.bytes, sizes, curves=curves)
    if variant.allocation == "time":
        sizes = size_models(model, setting, tuple(variant.bytes))
        times = times_of(model, setting, tuple(variant.time_left))
        return to_time(
            model, pattern, variant.time_left, times, budgets=variant.bytes, sizes=sizes, curves=curves
        )
    if variant.allocation == "macs":
        return to_macs(model, example_of(setting), pattern, variant.sparse_macs_left, curves=curves)
    if variant.allocation == "sensitivity":
        return by_sensitivity(model, pattern, variant.sparsity, curves=curves)
    if variant.allocation == "global":
        return by_importance(model, pattern, variant.sparsity, criterion="lamp")
    if variant.allocation == "multiplications":
        example = example_of(setting)
        return by_multiplications(model, example, pattern, variant.sparsity)
    return erdos_renyi(model, pattern, variant.sparsity)


def example_of(setting: Setting) -> Tensor:
    """One image as the models take it, (1, 3, size, size)."""
    images, _ = setting.data.held_out.batch(torch.tensor([0]))
    return normalized(images, setting.normalization)


def pattern_of(variant: Variant) -> Pattern:
    """Where zeros may be."""
    out, in_ = variant.block
    return Unstructured() if (out, in_) == (1, 1) else Block(out, in_)


def measured_curves(variant: Variant, model: nn.Module, setting: Setting, progress: Progress) -> Curves:
    """What zeros in each layer cost, measured on a fixed part of the training images."""
    chosen = prunable(model, pattern_of(variant))
    subset = dataset.fixed_subset(setting.data.train, IMAGES)
    sparsities = SPARSITIES
    with progress.track("pruning one layer at a time", len(chosen) * len(sparsities) + 1) as advance:
        _, layers = sensitivity.prune_each_layer(model, chosen, sparsities, subset, setting, advance)
    return sensitivity.curves_of(layers, sparsities)


def size_models(model: nn.Module, setting: Setting, targets: tuple[str, ...]) -> dict[str, SizeModel]:
    """The size model of each target, from one conversion of the dense model."""
    example = example_of(setting)
    found = {}
    prepared: dict[str, Any] = {}  # What the targets of a format share.
    with tempfile.TemporaryDirectory() as folder:
        for name in targets:
            format = FORMATS[TARGETS[name].format]
            if format.name not in prepared:
                prepared[format.name] = format.prepare(model, example, setting.normalization)
            path = Path(folder) / f"dense{format.suffix}"
            converted = format.write(prepared[format.name], TARGETS[name], path, labels=setting.data.classes)
            found[name] = calibrated(converted)
    return found


def times_of(model: nn.Module, setting: Setting, runtimes: tuple[str, ...]) -> dict[str, TimeModel]:
    """The time model of each runtime, from one conversion of the dense model."""
    format = FORMATS[TARGETS[TIMED_TARGET].format]
    prepared = format.prepare(model, example_of(setting), setting.normalization)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"dense{format.suffix}"
        converted = format.write(prepared, TARGETS[TIMED_TARGET], path, labels=setting.data.classes)
        return time_models(runtimes, path, [fact.name for fact in converted.layers])
