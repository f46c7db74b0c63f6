"""`edgeprune verify`: a file run on every runtime at hand, against the torch model it was made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from converters import verify
from converters.facts import InputSpec, Normalization
from converters.targets import TARGETS
from converters.verify import Check, Reference, Verification
from edgeprune import recipe as recipes
from edgeprune.data import sources
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.models import weights
from edgeprune.pipeline.run_folder import RECIPE_FILE, Run, read_recipe
from edgeprune.pipeline.variants import rebuilt
from edgeprune.tasks import TASKS

SCHEMA = 1
IMAGES = 100
SEED = 0
# Random pictures are enlarged from this: a network answers to noise of single pixels with nearly one answer.
COARSE_PX = 8


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        file: `.tflite` or `.mlpackage`.
        model, checkpoint: name and weights of the torch model; both or neither.
        mean, std: what that model wants done to RGB in [0, 1].
        run: run folder that the file was made in; None: the one it lies in, if it does.
        variant: of the run; None: as the file's name says.
        runtimes: names; None for all there are.
        images: how many, on every runtime; None: fewer where they are emulated.
    """

    file: Path
    model: str | None = None
    checkpoint: Path | None = None
    mean: tuple[float, float, float] = verify.IMAGENET.mean
    std: tuple[float, float, float] = verify.IMAGENET.std
    run: Path | None = None
    variant: str | None = None
    runtimes: tuple[str, ...] | None = None
    images: int | None = None

    def problems(self) -> list[str]:
        """What makes no sense, one line each."""
        checks = [
            (
                (self.model is None) == (self.checkpoint is None),
                "--model and --checkpoint: give both, or none",
            ),
            (self.model is None or self.run is None, "--model and --run: give one of them"),
            (self.variant is None or self.model is None, "--variant is of a run: leave out --model"),
            (self.images is None or self.images >= 1, f"--images {self.images}: must be 1 or more"),
            (all(value > 0 for value in self.std), f"--std {self.std}: each above 0"),
        ]
        return [message for fine, message in checks if not fine]


@dataclass(frozen=True)
class Source:
    """What a file is held against.

    Attributes:
        model: in eval mode; None where there is none.
        normalization: what it wants done to pixels.
        images: (n, channels, h, w) float32 in [0, 255].
        told: where both come from, for people.
    """

    model: nn.Module | None
    normalization: Normalization
    images: np.ndarray
    told: str


def run(asked: Asked, say: Callable[[str], None]) -> tuple[Verification, Source]:
    """Find the torch model and images, then run and compare.

    Raises:
        UserError: a mistake in what was asked for, or a file that cannot be used.
    """
    problems = asked.problems()
    if problems:
        raise UserError(problems)
    spec, values = verify.read_spec(asked.file)
    found = source(asked, spec, values)
    result = verify.verify(
        asked.file,
        found.images,
        found.model,
        normalization=found.normalization,
        runtimes=asked.runtimes,
        emulated_images=asked.images or verify.EMULATED_IMAGES,
        say=say,
    )
    return result, found


def source(asked: Asked, spec: InputSpec, values: int) -> Source:
    """The torch model and images to compare with.

    Args:
        asked: where to look.
        spec: what the file takes.
        values: how many it gives.

    Raises:
        UserError: not a run, no such variant, or a checkpoint that does not fit.
    """
    count = asked.images or IMAGES
    folder = asked.run or _run_around(asked.file)
    if asked.model is not None and asked.checkpoint is not None:
        model = models.build(asked.model, values, spec.shape[1]).eval()
        weights.load_checkpoint(model, asked.checkpoint)
        told = f"{asked.model} with the weights of {asked.checkpoint}, random images"
        return Source(model, Normalization(asked.mean, asked.std), random_images(spec, count), told)
    if folder is not None:
        return _from_run(folder, asked, spec, values, count)
    told = "no torch model given: compared with LiteRT on this machine only, on random images"
    return Source(None, Normalization(asked.mean, asked.std), random_images(spec, count), told)


def random_images(spec: InputSpec, count: int) -> np.ndarray:
    """Smooth random pictures, (count, channels, h, w) float32, whole numbers in [0, 255]; always the same."""
    channels, height, width = spec.shape
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(count, channels, COARSE_PX, COARSE_PX, generator=generator) * verify.MAX_PIXEL
    fine = F.interpolate(coarse, (height, width), mode="bilinear")
    pictures: np.ndarray = fine.round().numpy()
    return pictures


def to_json(result: Verification, found: Source) -> str:
    """Everything, as text; a thing that was not measured is null with a reason."""
    plain: dict[str, Any] = {"schema": SCHEMA, "agrees": result.agrees, "compared_with": found.told}
    plain |= dataclasses.asdict(result) | {"path": str(result.path), "reference": result.reference.value}
    return json.dumps(plain, indent=2, allow_nan=False) + "\n"


def print_result(result: Verification, found: Source, console: Console) -> None:
    """Print the table and what must be known to read it."""
    console.print(_table(result))
    for line in notes(result, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(result: Verification, found: Source) -> list[str]:
    """What must be known to read the table, a line each."""
    lines = [found.told]
    if found.model is not None:
        reason = f": {result.reference_reason}" if result.reference_reason else ""
        lines.append(f"errors are against {result.reference.value}{reason}")
    if result.model_error is not None and result.reference is not Reference.MODEL:
        same = f"{100 * (result.model_agreement or 0):.1f} %"
        lines.append(
            f"against the torch model as it is: {result.model_error:.1e}, the same class for {same} of images"
        )
    lines += [f"{check.runtime}: {check.reason}" for check in result.checks if check.reason]
    lines += result.problems
    right = "the file computes what it must" if found.model is not None else "the runtimes agree"
    lines.append(right if result.agrees else "THE FILE DOES NOT COMPUTE WHAT IT MUST")
    return lines


def _table(result: Verification) -> Table:
    table = Table(title=str(result.path), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("runtime", "version"):
        table.add_column(heading, no_wrap=heading == "runtime")
    for heading in ("images", "largest error", "tolerance", "same class"):
        table.add_column(heading, justify="right")
    table.add_column("sparse kernels")
    table.add_column("verdict")
    for check in result.checks:
        table.add_row(
            check.runtime,
            check.version or "–",
            str(check.images) if check.images else "–",
            "–" if check.max_relative_error is None else f"{check.max_relative_error:.1e}",
            "–" if check.tolerance is None else f"{check.tolerance:g}",
            "–" if check.top1_agreement is None else f"{100 * check.top1_agreement:.1f} %",
            {True: "yes", False: "no", None: "–"}[check.sparse],
            _verdict(check),
        )
    return table


def _verdict(check: Check) -> str:
    if check.agrees is not None:
        return "agrees" if check.agrees else "DIFFERS"
    return "reference" if check.version else "not run"


def _run_around(file: Path) -> Path | None:
    """The run folder that a file lies in, as `run.Run.file` puts it there."""
    folder = file.resolve().parent.parent
    return folder if file.resolve().parent.name == "files" and (folder / RECIPE_FILE).is_file() else None


def _from_run(folder: Path, asked: Asked, spec: InputSpec, values: int, count: int) -> Source:
    from safetensors.torch import load_file

    recipe = read_recipe(folder)
    names = ["dense", *recipe.variants]
    variant = asked.variant or _variant_of(asked.file, names)
    weights = Run(folder).weights(variant or "")
    if variant not in names or not weights.is_file():
        problem = f"no weights of a variant {variant!r}" if variant else "the file's name says no variant"
        raise UserError(f"{folder}: {problem}: choose one with --variant: {', '.join(names)}")
    model = rebuilt(recipe, values, load_file(weights))
    images, told = _held_out(recipe, spec, count)
    return Source(
        model,
        recipe.preprocessing.normalization,
        images,
        f"variant {variant} of the run {folder}, {told}",
    )


def _variant_of(file: Path, names: Sequence[str]) -> str | None:
    targets = [target for target in TARGETS if file.stem.endswith(f"-{target}")]
    found = [file.stem.removesuffix(f"-{target}") for target in targets]
    return next((name for name in found if name in names), None)


def _held_out(recipe: recipes.Recipe, spec: InputSpec, count: int) -> tuple[np.ndarray, str]:
    if recipe.data is not None and not recipe.data.is_dir():
        return random_images(spec, count), f"random images: its own are not at {recipe.data}"
    source = sources.source(recipe.data, TASKS[recipe.task].labels)
    split = source.held_out(recipe.data, recipe.preprocessing, count)
    images, _ = split.batch(torch.arange(len(split)))
    return images.float().numpy(), f"{len(split)} held-out images"
