"""`edgeprune sensitivity`: which layers of a run's dense model mind zeros, as JSON, table and picture."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from converters.files import replacing, write_text
from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, deliver, json_text, progress, refuse_unwritable
from edgeprune.errors import UserError
from edgeprune.evaluation.sensitivity_result import IMAGES, SCHEMA, SPARSITIES, Sensitivity, to_plain
from edgeprune.pipeline import run_folder
from edgeprune.tasks import TASKS, metric

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from edgeprune.data.dataset import Data
    from edgeprune.progress import Progress
    from edgeprune.pruning import Pattern, Selected
    from edgeprune.recipe import Recipe

BLOCK = (1, 4)
NAME = "sensitivity"
# Points lost at which the picture's colour is darkest; more is all the same: the layer is spent.
DARKEST_POINTS = 30.0
EXAMPLES = """\
  edgeprune sensitivity runs/mine
  edgeprune sensitivity runs/mine --layers 'classifier.*' --sparsities 0.8 0.9

Writes sensitivity.json, sensitivity.md and sensitivity.png into the run folder.
Only training images are looked at, never the held-out ones.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("run", type=Path, metavar="RUN", help="run folder with a trained dense model")
    command.add_argument("--layers", default="*", metavar="GLOB", help="of layer names; all if not given")
    command.add_argument(
        "--sparsities",
        type=float,
        nargs="+",
        metavar="S",
        default=SPARSITIES,
        help="0.5 0.7 0.8 0.9 0.95 if not given",
    )
    command.add_argument(
        "--images",
        type=int,
        metavar="N",
        default=IMAGES,
        help="of the training images, always the same; %(default)s if not given",
    )
    command.add_argument(
        "--block",
        type=int,
        nargs=2,
        metavar=("OUT", "IN"),
        default=BLOCK,
        help="channels zeroed together, 1 1 for single weights; 1 4 if not given",
    )
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Measure and show."""
    refuse_unwritable(options.json)
    wanted = SensitivityOptions(
        options.run, options.layers, tuple(options.sparsities), options.images, tuple(options.block)
    )
    result = measure_run(wanted, progress())

    def show(console: Console) -> None:
        print_result(result, console)
        console.print(f"Picture: {options.run / 'sensitivity.png'}", highlight=False, soft_wrap=True)

    deliver(json_text(to_plain(result)), options.json, show)
    return DONE


@dataclass(frozen=True)
class SensitivityOptions:
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
        """Validation errors, one message each."""
        bad = [s for s in self.sparsities if not 0 < s < 1]
        checks = [
            (bool(self.sparsities), "--sparsities: name at least one"),
            (not bad, f"--sparsities {bad}: each above 0 and below 1; 0.8 means 80 % zeros"),
            (self.images >= 1, f"--images {self.images}: 1 or more"),
            (min(self.block) >= 1, f"--block {self.block}: both sides 1 or more"),
        ]
        return [message for fine, message in checks if not fine]


def measure_run(options: SensitivityOptions, progress: Progress) -> Sensitivity:
    """Measure a run's dense model, and write JSON, table and picture into the run folder.

    Raises:
        UserError: a mistake in what was asked for; not a run; a run without a dense model; images that are
            no longer those of the run.
    """
    from edgeprune.data import sources
    from edgeprune.data.dataset import fixed_subset
    from edgeprune.evaluation.sensitivity import prune_each_layer
    from edgeprune.pipeline.context import setting_of
    from edgeprune.pruning import Block, Unstructured

    problems = options.problems()
    if problems:
        raise UserError(problems)
    recipe = run_folder.read_recipe(options.run)
    folder = run_folder.Run(options.run)
    source = sources.source(recipe.data, TASKS[recipe.task].labels)
    data = source.load(recipe.data, recipe.preprocessing, progress)
    setting = setting_of(recipe, data)
    model = _dense(folder, recipe, data)
    pattern = Unstructured() if options.block == (1, 1) else Block(*options.block)
    chosen, left_dense = _choose(model, pattern, options.layers)
    subset = fixed_subset(data.train, options.images)
    sparsities = tuple(sorted(set(options.sparsities)))
    with progress.track("pruning one layer at a time", len(chosen) * len(sparsities) + 1) as advance:
        (score, loss), layers = prune_each_layer(model, chosen, sparsities, subset, setting, advance)
    result = Sensitivity(
        schema=SCHEMA,
        model=recipe.model,
        block=options.block,
        images=len(subset),
        image_source=f"fixed subset of the training images of {data.source}",
        score=score,
        loss=loss,
        sparsities=sparsities,
        layers=layers,
        left_dense=left_dense,
        metric=setting.task.metric.key,
    )
    write(result, options.run)
    return result


def write(result: Sensitivity, folder: Path) -> None:
    """Write `sensitivity.json`, `.md` and `.png`, each whole or not at all."""
    write_text(folder / f"{NAME}.json", json_text(to_plain(result)))
    write_text(folder / f"{NAME}.md", to_markdown(result))
    with replacing(folder / f"{NAME}.png") as temporary:
        _draw(result, temporary)


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
        f"Points of {_metric_words(result)} lost with zeros in one layer alone, "
        f"in {_pattern_words(result)}, without any training, batch norms measured again; "
        f"{result.images} images, a {result.image_source}, on which the dense model has {result.score:.1%}."
    )


def print_result(result: Sensitivity, console: Console) -> None:
    """Print the table."""
    from rich import box
    from rich.table import Table

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


def _dense(folder: run_folder.Run, recipe: Recipe, data: Data) -> nn.Module:
    """The dense model of a run, if its images are still the same."""
    import torch

    from edgeprune.pipeline.variants import DENSE, trained

    model = trained(folder, recipe, data, DENSE, called="its dense model")
    return model.to(memory_format=torch.channels_last)


def _choose(model: nn.Module, pattern: Pattern, glob: str) -> tuple[list[Selected], dict[str, str]]:
    """The 1x1 convolutions and linear layers of a glob, and those of them that the pattern does not fit."""
    from edgeprune import pruning
    from edgeprune.pruning import Rule

    selected = pruning.select(model, [Rule(pattern, 0.5)])
    named = [s for s in selected if fnmatchcase(s.name, glob)]
    if not named:
        names = ", ".join(s.name for s in selected[:3])
        raise UserError(
            f"--layers {glob!r} matches none of the {len(selected)} 1x1 convolutions and linear layers, "
            f"e.g. {names}"
        )
    return [s for s in named if not s.reason], {s.name: s.reason for s in named if s.reason}


def _draw(result: Sensitivity, path: Path) -> None:
    """A heatmap, layers by sparsities, each cell with the points it loses."""
    import matplotlib as mpl
    import numpy as np

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drops = np.array(result.drops_points())
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
        f"{result.model}: points of {metric(result.metric).word} lost "
        f"with one layer pruned in {_pattern_words(result)}\n"
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


def _metric_words(result: Sensitivity) -> str:
    """Such as "top-1 accuracy" or "mean IoU"."""
    known = metric(result.metric)
    return known.heading if known.heading == known.word else f"{known.heading} {known.word}"


def _pattern_words(result: Sensitivity) -> str:
    return "single weights" if result.block == (1, 1) else f"{result.block[0]}x{result.block[1]} blocks"


def _short(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k" if count >= 1e3 else str(count)
