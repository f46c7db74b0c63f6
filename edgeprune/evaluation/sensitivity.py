"""`edgeprune sensitivity`: what zeros in one layer alone do to the accuracy of a run's dense model.

Each layer is pruned in one shot, to each sparsity in turn, and put back. Nothing is trained, so the drops are
larger than after fine-tuning; they say which layers mind, and `allocation` takes for that how far the answers
move from the dense model's. Batch norms are measured anew at every point: with those of the dense model most
of what is lost is their fault, and no training loses it. The images are a fixed part of those for training:
what is decided by them has not seen the held-out images.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from converters.facts import Normalization
from converters.files import replacing, write_text
from edgeprune import parsing, pruning
from edgeprune import recipe as recipes
from edgeprune.data import sources as loading
from edgeprune.data.dataset import Data, Split
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.pipeline.run_folder import RECIPE_FILE, Run
from edgeprune.progress import Progress
from edgeprune.pruning import Block, Pattern, Rule, Selected, Unstructured
from edgeprune.pruning.allocation.result import Curves
from edgeprune.pruning.calibration import batch_statistics, evaluating
from edgeprune.training import predict

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
IMAGES = 500
BLOCK = (1, 4)
SCHEMA = 2
NAME = "sensitivity"
# Points lost at which the picture's colour is darkest; more is all the same: the layer is spent.
DARKEST_POINTS = 30.0


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer, pruned alone.

    Attributes:
        name: as `model.named_modules()` has it.
        weights: how many it has.
        top1: of the model with this layer at each sparsity, 0 to 1.
        loss: cross entropy, likewise.
        divergence: Kullback-Leibler divergence of its answers from the dense model's, nats an image.
    """

    name: str
    weights: int
    top1: tuple[float, ...]
    loss: tuple[float, ...]
    divergence: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    Attributes:
        schema: of this record as JSON.
        model: name.
        block: (out, in) channels zeroed together.
        images: how many, and `image_source` which.
        image_source: for people.
        top1: of the dense model on these images, 0 to 1.
        loss: cross entropy, likewise.
        sparsities: rising, each layer's columns.
        layers: in the order they have in the model.
        left_dense: layers that the block does not fit, and why.
    """

    schema: int
    model: str
    block: tuple[int, int]
    images: int
    image_source: str
    top1: float
    loss: float
    sparsities: tuple[float, ...]
    layers: tuple[LayerSensitivity, ...]
    left_dense: dict[str, str]

    def drops_points(self) -> np.ndarray:
        """Points of accuracy lost, (layers, sparsities); below 0 where zeros helped."""
        return np.array([[100 * (self.top1 - top1) for top1 in layer.top1] for layer in self.layers])

    def curves(self) -> Curves:
        """For `allocation`: divergence by layer, from no zeros on."""
        return curves_of(self.layers, self.sparsities)


@dataclass(frozen=True)
class Asked:
    """What the command line says.

    Attributes:
        run: finished or not, with a trained dense model.
        layers: glob over names.
        sparsities: any order.
        images: of the training images.
        block: (out, in) channels zeroed together; (1, 1) for single weights.
    """

    run: Path
    layers: str = "*"
    sparsities: tuple[float, ...] = SPARSITIES
    images: int = IMAGES
    block: tuple[int, int] = BLOCK

    def problems(self) -> list[str]:
        """What makes no sense, one line each."""
        bad = [s for s in self.sparsities if not 0 < s < 1]
        checks = [
            (bool(self.sparsities), "--sparsities: name at least one"),
            (not bad, f"--sparsities {bad}: each above 0 and below 1; 0.8 means 80 % zeros"),
            (self.images >= 1, f"--images {self.images}: 1 or more"),
            (min(self.block) >= 1, f"--block {self.block}: both sides 1 or more"),
        ]
        return [message for fine, message in checks if not fine]


def run(asked: Asked, progress: Progress) -> Sensitivity:
    """Measure a run's dense model, and write JSON, table and picture into the run folder.

    Raises:
        UserError: a mistake in what was asked for; not a run; a run without a dense model; images that are
            no longer those of the run.
    """
    problems = asked.problems()
    if problems:
        raise UserError(problems)
    recipe = recipes.read(asked.run / RECIPE_FILE)
    folder = Run(asked.run)
    if recipe.task != "classification":
        raise UserError(f"{asked.run}: sensitivity is told in points of top-1, which a {recipe.task} has not")
    data = loading.load(recipe, progress)
    model = _dense(folder, recipe, data)
    pattern = Unstructured() if asked.block == (1, 1) else Block(*asked.block)
    chosen, left_dense = _choose(model, pattern, asked.layers)
    subset = fixed_subset(data.train, asked.images)
    sparsities = tuple(sorted(set(asked.sparsities)))
    normalization = Normalization(recipe.mean, recipe.std)
    with progress.track("pruning one layer at a time", len(chosen) * len(sparsities) + 1) as advance:
        (top1, loss), layers = measure(model, chosen, sparsities, subset, normalization, advance)
    result = Sensitivity(
        schema=SCHEMA,
        model=recipe.model,
        block=asked.block,
        images=len(subset),
        image_source=f"fixed subset of the training images of {data.source}",
        top1=top1,
        loss=loss,
        sparsities=sparsities,
        layers=layers,
        left_dense=left_dense,
    )
    write(result, asked.run)
    return result


@torch.no_grad()
def measure(
    model: nn.Module,
    layers: Sequence[Selected],
    sparsities: Sequence[float],
    split: Split,
    normalization: Normalization,
    advance: Callable[[int], None],
) -> tuple[tuple[float, float], tuple[LayerSensitivity, ...]]:
    """Prune each layer alone, by magnitude, to each sparsity; every weight is put back as it was.

    Args:
        model: in eval mode.
        layers: with the pattern of their rules.
        sparsities: fractions of zeros.
        split: images and labels.
        normalization: of pixels.
        advance: told how many evaluations are done.

    Returns:
        (top-1, cross entropy) of the model as it is, and of each layer; all with the batch norms of a batch.
    """
    answers = _answers(model, split, normalization)
    dense = _scores(answers, answers, split)[:2]
    advance(1)
    done, found = 1, []
    for selected in layers:
        weight = selected.layer.weight
        original = weight.detach().clone()
        importance = pruning.CRITERIA["magnitude"](original)
        results = []
        try:
            for sparsity in sparsities:
                weight.data.copy_(original * selected.rule.pattern.mask(importance, sparsity))
                results.append(_scores(_answers(model, split, normalization), answers, split))
                done += 1
                advance(done)
        finally:
            weight.data.copy_(original)
        top1, loss, divergence = zip(*results, strict=True)
        found.append(LayerSensitivity(selected.name, weight.numel(), top1, loss, divergence))
    return dense, tuple(found)


def curves_of(layers: Sequence[LayerSensitivity], sparsities: Sequence[float]) -> Curves:
    """What zeros cost by layer: how far the answers move, one unit that tells all layers apart."""
    rows = [(0.0, *layer.divergence) for layer in layers]
    return Curves(tuple(layer.name for layer in layers), (0.0, *sparsities), np.array(rows))


def fixed_subset(split: Split, count: int) -> Split:
    """The same `count` images every time, each class with its share; all of them if there are no more.

    Of images with a class for each pixel, those that chance takes.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    if split.labels.ndim > 1:
        some = order[:count].sort().values
        return Split(split.images[some], split.labels[some])
    # The n-th image of every class comes before the n+1-th of any, classes in proportion to their size.
    labels = split.labels[order]
    sizes = torch.bincount(labels).double()
    rank = torch.zeros(len(labels), dtype=torch.double)
    for label in range(len(sizes)):
        places = labels == label
        rank[places] = torch.arange(int(places.sum()), dtype=torch.double) + 0.5
    chosen = order[(rank / sizes[labels]).argsort(stable=True)[:count]].sort().values
    return Split(split.images[chosen], split.labels[chosen])


def write(result: Sensitivity, folder: Path) -> None:
    """Write `sensitivity.json`, `.md` and `.png`, each whole or not at all."""
    write_text(folder / f"{NAME}.json", to_json(result))
    write_text(folder / f"{NAME}.md", to_markdown(result))
    with replacing(folder / f"{NAME}.png") as temporary:
        _draw(result, temporary)


def read(path: Path) -> Sensitivity:
    """Read a `sensitivity.json`.

    Raises:
        UserError: no such file, or it holds something else.
    """
    try:
        plain: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; edgeprune sensitivity RUN writes one") from None
    return parsing.build(Sensitivity, plain, str(path))


def to_json(result: Sensitivity) -> str:
    """All of it."""
    return json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False) + "\n"


def to_markdown(result: Sensitivity) -> str:
    """The table for people, with how it was made."""
    lines = [f"# Sensitivity of {result.model}", "", told(result), ""]
    head = ["layer", "weights", *(f"{s:.0%}" for s in result.sparsities)]
    lines += [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for layer, row in zip(result.layers, result.drops_points(), strict=True):
        cells = [layer.name, f"{layer.weights:,}", *(f"{drop:.1f}" for drop in row)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name} takes no part: {why}" for name, why in result.left_dense.items())]
    return "\n".join(lines).rstrip() + "\n"


def told(result: Sensitivity) -> str:
    """What the numbers are."""
    return (
        "Points of top-1 accuracy lost with zeros in one layer alone, "
        f"in {_pattern_words(result)}, without any training, batch norms measured anew; "
        f"{result.images} images, a {result.image_source}, on which the dense model has {result.top1:.1%}."
    )


def print_result(result: Sensitivity, console: Console) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for title in ("weights", *(f"{s:.0%}" for s in result.sparsities)):
        table.add_column(title, justify="right")
    for layer, row in zip(result.layers, result.drops_points(), strict=True):
        table.add_row(layer.name, f"{layer.weights:,}", *(f"{drop:.1f}" for drop in row))
    console.print(table)
    console.print(told(result), highlight=False)
    for name, why in result.left_dense.items():
        console.print(f"{name} takes no part: {why}", highlight=False, markup=False)


def _dense(folder: Run, recipe: recipes.Recipe, data: Data) -> nn.Module:
    """The dense model of a run, if its images are still the same."""
    from safetensors.torch import load_file

    weights = folder.weights("dense")
    if not weights.is_file():
        raise UserError(
            f"{folder.folder}: its dense model is not trained yet: finish it with "
            f"edgeprune run {folder.folder / RECIPE_FILE}"
        )
    inputs = json.loads(folder.inputs.read_text(encoding="utf-8"))
    if inputs.get("data") != data.sha256:
        raise UserError(
            f"{folder.folder}: the images changed since this run began: what trained it might be held out now"
        )
    model = models.build(recipe.model, len(data.classes), recipe.image_size_px).eval()
    pruning.resize(model, load_file(weights))
    return model.to(memory_format=torch.channels_last)


def _choose(model: nn.Module, pattern: Pattern, glob: str) -> tuple[list[Selected], dict[str, str]]:
    """The 1x1 convolutions and linear layers of a glob, and those of them that the pattern does not fit."""
    selected = pruning.select(model, [Rule(pattern, 0.5)])
    named = [s for s in selected if fnmatchcase(s.name, glob)]
    if not named:
        names = ", ".join(s.name for s in selected[:3])
        raise UserError(
            f"--layers {glob!r} matches none of the {len(selected)} 1x1 convolutions and linear layers, "
            f"e.g. {names}"
        )
    return [s for s in named if not s.reason], {s.name: s.reason for s in named if s.reason}


def _answers(model: nn.Module, split: Split, normalization: Normalization) -> Tensor:
    """Log-probabilities (n, classes, ...), in batches of even size, each with statistics of its own."""
    device = next(model.parameters()).device
    parts = torch.tensor_split(split.images, math.ceil(len(split) / predict.EVALUATION_BATCH))
    with evaluating(model), batch_statistics(model):
        outputs = [model(predict.normalized(part.to(device), normalization)).float().cpu() for part in parts]
    return F.log_softmax(torch.cat(outputs), dim=1)


def _scores(answers: Tensor, dense: Tensor, split: Split) -> tuple[float, float, float]:
    """Top-1, cross entropy, and divergence from the dense model's answers."""
    loss = F.nll_loss(answers, split.labels.long())
    divergence = F.kl_div(answers, dense, reduction="batchmean", log_target=True)
    return predict.score(answers, split), float(loss), max(float(divergence), 0.0)


def _draw(result: Sensitivity, path: Path) -> None:
    """A heatmap, layers by sparsities, each cell with the points it loses."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drops = result.drops_points()
    rows, columns = drops.shape
    width_inches = 4.2 + 0.7 * columns
    figure, axes = plt.subplots(figsize=(width_inches, 1.6 + 0.24 * rows), layout="constrained")
    picture = axes.imshow(
        np.clip(drops, 0, DARKEST_POINTS), aspect="auto", cmap="YlOrRd", vmin=0, vmax=DARKEST_POINTS
    )
    for row, column in np.ndindex(rows, columns):
        # Rounded before compared with zero, so that no cell says "-0".
        points = round(float(drops[row, column]), 1) or 0.0
        colour = "white" if points > 0.6 * DARKEST_POINTS else "black"
        axes.text(column, row, f"{points:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(columns), [f"{s:.0%}" for s in result.sparsities])
    names = [f"{layer.name}  ({_short(layer.weights)})" for layer in result.layers]
    axes.set_yticks(range(rows), names, fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{result.model}: points of accuracy lost with one layer pruned in {_pattern_words(result)}\n"
        f"({result.images} training images, no fine-tuning; weights of each layer in brackets)",
        fontsize=9,
    )
    axes.set_xlabel("zeros in the layer")
    axes.xaxis.set_label_position("top")
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 8 / rows), aspect=12)
    bar.set_label(f"points lost ({DARKEST_POINTS:.0f} or more: darkest)", fontsize=8)
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)


def _pattern_words(result: Sensitivity) -> str:
    return "single weights" if result.block == (1, 1) else f"{result.block[0]}x{result.block[1]} blocks"


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k" if count >= 1e3 else str(count)
