"""The records of a report and `report.json`, the one source every page is rendered from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One variant on one target: one file, measured from disk.

    Attributes:
        variant: what was done to the weights: "dense", "block80", "channels".
        target: name in `converters.targets.TARGETS`.
        path: of the file, relative to the run folder.
        bytes: size on disk.
        top1: of the file on the held-out images, 0 to 1.
        top1_drop_points: percentage points below the dense float32 torch model on the same images.
        agreement: share of images on which file and its own torch variant name the same class, 0 to 1.
        max_relative_error: largest |file - torch| output over the largest |torch| output.
        zero_fraction: zeros among all weights of convolution and linear layers, counted in the decoded file.
        prunable_zero_fraction: the same over 1x1 convolutions and linear layers only.
        bits_per_weight: stored bits over the number of those weights.
        sparse_runtime: whether the runtime will use sparse kernels; None when unknown.
        sparse_runtime_reason: why not, or why it is unknown.
        images: how many images were run.
        sha256: of the file.
        input_range: (low, high) of the pixels the file takes; None: what the torch model takes.
        layers: one dict a weighted layer, the fields of `converters.facts.LayerFacts`.
    """

    variant: str
    target: str
    path: str
    bytes: int
    top1: float
    top1_drop_points: float
    agreement: float
    max_relative_error: float
    zero_fraction: float
    prunable_zero_fraction: float
    bits_per_weight: float
    sparse_runtime: bool | None
    sparse_runtime_reason: str | None
    images: int
    sha256: str
    input_range: tuple[float, float] | None
    layers: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Training:
    """How one torch variant came to be.

    Attributes:
        variant: "dense", "block80", "channels".
        top1: of the float32 torch model on the held-out images, 0 to 1.
        parameters: number of weights and biases.
        macs: multiply-accumulates for one image.
        seconds: spent training, interruptions left out.
        epochs: one dict an epoch: "epoch", "loss", "top1", "learning_rate", "sparsity".
    """

    variant: str
    top1: float
    parameters: int
    macs: int
    seconds: float
    epochs: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything a run measured. `to_json(report)` is what `report.json` holds.

    Attributes:
        recipe: the resolved recipe as plain data.
        environment: versions, machine, data: what is needed to repeat the run.
        rows: one a file.
        trainings: one a torch variant, the dense one first.
    """

    recipe: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    trainings: tuple[Training, ...] = ()
    schema: int = field(default=SCHEMA)
