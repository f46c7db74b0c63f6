"""`edgeprune verify`: a file run on every runtime at hand, against the torch model it was made from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.facts import IMAGENET, InputSpec, Normalization
from converters.format import format_of
from converters.targets import TARGETS
from edgeprune.commands.inspect import write_overlays
from edgeprune.commands.options import (
    FILE_HELP,
    RUNTIME_NAMES,
    add_json,
    add_normalization,
    add_padding,
    normalization_given,
)
from edgeprune.commands.output import DIFFERS, DONE, deliver, json_text, progress, refuse_unwritable
from edgeprune.errors import UserError
from edgeprune.pipeline.run_folder import RECIPE_FILE, Run, read_recipe

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from rich.table import Table
    from torch import nn

    from converters.reference import Check, Verification
    from converters.side_by_side import SideBySide
    from edgeprune.recipe import Recipe

SCHEMA = 1
IMAGES = 100
SEED = 0
# Random pictures are enlarged from this: a network answers to noise of single pixels with nearly one answer.
COARSE_PX = 8
STEPS_SHOWN = 5
EXAMPLES = """\
  edgeprune verify runs/mine/files/block80-litert-arm64.tflite
  edgeprune verify model.tflite --model mobilenet_v3_small --checkpoint mine.safetensors
  edgeprune verify files/dense-coreml-ios16.mlpackage --against files/dense-coreai-ios27.aimodel
  edgeprune verify model.tflite --runtime host --runtime arm64 --images 20 --json -

A file in a run folder is compared with that run's torch model on its held-out
images; any other with --model and --checkpoint, or runtime with runtime. make
runtimes prepares more of them; pip install 'edgeprune[tensorflow]' adds
TensorFlow's own interpreter.
"""
EXIT_STATUS = """\
exit status: 0 every runtime that was run agrees; 1 one does not; 2 a mistake
in what was asked for, or a file that cannot be used; 3 a tool underneath failed."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    command.add_argument(
        "--model", metavar="NAME", help="torch model by name, as a recipe's; with --checkpoint"
    )
    command.add_argument("--checkpoint", type=Path, metavar="WEIGHTS", help="its state dict")
    add_padding(command)
    add_normalization(command)
    command.add_argument("--run", type=Path, help="run folder it was made in, if it lies elsewhere")
    command.add_argument("--variant", help="of the run, if the file's name does not say it")
    command.add_argument(
        "--runtime",
        action="append",
        metavar="NAME",
        help=f"{RUNTIME_NAMES}, tensorflow; may be repeated; all that are there if not given",
    )
    command.add_argument(
        "--images", type=int, metavar="N", help="on each runtime; 100, or 4 where emulated, if not given"
    )
    command.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="another file of the same model, of any format: both are verified, then compared step by step",
    )
    command.add_argument(
        "--node-data",
        type=Path,
        metavar="FOLDER",
        help="write how far each op is from the torch model, for Model Explorer, here; as inspect does",
    )
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Verify and show."""
    refuse_unwritable(options.json)
    chosen = VerifyOptions(
        options.file,
        model=options.model,
        checkpoint=options.checkpoint,
        padding=options.padding,
        run=options.run,
        variant=options.variant,
        runtimes=None if options.runtime is None else tuple(options.runtime),
        images=options.images,
        against=options.against,
        node_data=options.node_data,
        **normalization_given(options),
    )
    say = progress().say
    result, source = verify_file(chosen if chosen.against is None else _one_of_two(chosen, chosen.file), say)
    if chosen.node_data is not None:
        write_overlays(error_overlays(chosen.file, source), chosen.file, chosen.node_data)
    if chosen.against is None:
        text = json_text(to_plain(result, source))
        deliver(text, options.json, lambda console: print_result(result, source, console))
        return DONE if result.agrees else DIFFERS
    other, its_source = verify_file(_one_of_two(chosen, chosen.against), say)
    if its_source.told != source.told:
        raise UserError(f"--against compares files of one model: {source.told}; {its_source.told}")
    compared = beside(chosen, source, say)
    deliver(
        json_text(both_plain(result, other, compared, source)),
        options.json,
        lambda console: print_both(result, other, compared, source, console),
    )
    return DONE if result.agrees and other.agrees else DIFFERS


@dataclass(frozen=True)
class VerifyOptions:
    """What the command line says.

    Attributes:
        file: of any format.
        model, checkpoint: name and weights of the torch model; both or neither.
        padding: of that model: "same", TensorFlow's, for a timm model; None: its own.
        mean, std: what that model wants done to RGB in [0, 1].
        run: run folder that the file was made in; None: the one it lies in, if it does.
        variant: of the run; None: as the file's name says.
        runtimes: names; None for all there are.
        images: how many, on every runtime; None: fewer where they are emulated.
        against: another file of the same model.
        node_data: folder for what Model Explorer lays over the graph, which only a torch model tells.
    """

    file: Path
    model: str | None = None
    checkpoint: Path | None = None
    padding: str | None = None
    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std
    run: Path | None = None
    variant: str | None = None
    runtimes: tuple[str, ...] | None = None
    images: int | None = None
    against: Path | None = None
    node_data: Path | None = None

    def problems(self) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (
                (self.model is None) == (self.checkpoint is None),
                "--model and --checkpoint: give both, or none",
            ),
            (
                self.padding is None or (self.model or "").startswith("timm/"),
                "--padding is for a timm model: --model timm/NAME",
            ),
            (self.model is None or self.run is None, "--model and --run: give one of them"),
            (self.variant is None or self.model is None, "--variant is of a run: leave out --model"),
            (self.images is None or self.images >= 1, f"--images {self.images}: must be 1 or more"),
            (all(value > 0 for value in self.std), f"--std {self.std}: each above 0"),
        ]
        return [message for fine, message in checks if not fine]


def _one_of_two(options: VerifyOptions, file: Path) -> VerifyOptions:
    """What is asked of one of two files: runtimes by name where its format takes names."""
    takes_names = format_of(file).local_runtimes is not None
    return replace(options, file=file, against=None, runtimes=options.runtimes if takes_names else None)


@dataclass(frozen=True)
class ReferenceModel:
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


def verify_file(options: VerifyOptions, say: Callable[[str], None]) -> tuple[Verification, ReferenceModel]:
    """Find the torch model and images, then run and compare.

    Raises:
        UserError: a mistake in what was asked for, or a file that cannot be used.
    """
    problems = options.problems()
    if problems:
        raise UserError(problems)
    from converters import verify

    spec, values = verify.read_spec(options.file)
    found = find_source(options, spec, values)
    if options.node_data is not None and found.model is None:
        raise UserError("--node-data needs the torch model: name a run, or --model and --checkpoint")
    result = verify.verify(
        options.file,
        found.images,
        found.model,
        normalization=found.normalization,
        runtimes=options.runtimes,
        emulated_images=options.images or verify.EMULATED_IMAGES,
        say=say,
    )
    return result, found


def error_overlays(file: Path, found: ReferenceModel) -> dict[str, Any]:
    """What Model Explorer lays over the file's graph: how far its ops are from the model, on the first image.

    Raises:
        UserError: an operation cannot be followed.
    """
    from converters.reference import normalized

    assert found.model is not None  # What `verify_file` refuses.
    format, image = format_of(file), found.images[:1]
    inputs = normalized(image, found.normalization)
    fed = image if format.load(file).input.range is not None else inputs
    return format.error_overlays(file, fed, found.model, inputs)


def beside(options: VerifyOptions, found: ReferenceModel, say: Callable[[str], None]) -> SideBySide:
    """Compare the two files with each other.

    Raises:
        UserError: there is no torch model, or the files are not of one model.
    """
    from converters.side_by_side import side_by_side

    assert options.against is not None
    if found.model is None:
        raise UserError("--against needs the torch model: name a run, or --model and --checkpoint")
    say(f"{options.file} beside {options.against}: {len(found.images)} images")
    return side_by_side((options.file, options.against), found.images, found.model, found.normalization)


def find_source(options: VerifyOptions, spec: InputSpec, values: int) -> ReferenceModel:
    """The torch model and images to compare with.

    Args:
        options: where to look.
        spec: what the file takes.
        values: how many it gives.

    Raises:
        UserError: not a run, no such variant, or a checkpoint that does not fit.
    """
    from edgeprune.models import build as models
    from edgeprune.models import weights

    count = options.images or IMAGES
    folder = options.run or _run_around(options.file)
    if options.model is not None and options.checkpoint is not None:
        model = models.build(options.model, values, spec.shape[1], options.padding).eval()
        weights.load_checkpoint(model, options.checkpoint)
        told = f"{options.model} with the weights of {options.checkpoint}, random images"
        return ReferenceModel(
            model, Normalization(options.mean, options.std), random_images(spec, count), told
        )
    if folder is not None:
        return _from_run(folder, options, spec, values, count)
    told = "no torch model given: compared with LiteRT on this machine only, on random images"
    return ReferenceModel(None, Normalization(options.mean, options.std), random_images(spec, count), told)


def random_images(spec: InputSpec, count: int) -> np.ndarray:
    """Smooth random pictures, (count, channels, h, w) float32, whole numbers in [0, 255]; always the same."""
    import torch
    from torch.nn import functional as F

    from converters.reference import MAX_PIXEL

    channels, height, width = spec.shape
    generator = torch.Generator().manual_seed(SEED)
    coarse = torch.rand(count, channels, COARSE_PX, COARSE_PX, generator=generator) * MAX_PIXEL
    fine = F.interpolate(coarse, (height, width), mode="bilinear")
    pictures: np.ndarray = fine.round().numpy()
    return pictures


def to_plain(result: Verification, found: ReferenceModel) -> dict[str, Any]:
    """Everything, as plain data for JSON; a thing that was not measured is None with a reason."""
    plain: dict[str, Any] = {"schema": SCHEMA, "agrees": result.agrees, "compared_with": found.told}
    plain |= dataclasses.asdict(result) | {"path": str(result.path), "reference": result.reference.value}
    return plain


def both_plain(
    result: Verification, other: Verification, compared: SideBySide, found: ReferenceModel
) -> dict[str, Any]:
    """As `to_plain`, the second file and how the two compare beside it."""
    plain = to_plain(result, found)
    against = to_plain(other, found)
    paths = [str(path) for path in compared.paths]
    side = dataclasses.asdict(compared) | {"paths": paths}
    return plain | {"agrees": result.agrees and other.agrees, "against": against, "side_by_side": side}


def print_both(
    result: Verification, other: Verification, compared: SideBySide, found: ReferenceModel, console: Console
) -> None:
    """Print both tables, and how the files compare: where they are furthest apart, step by step."""
    for each in (result, other):
        print_result(each, found, console)
        console.print()
    console.print(_step_table(compared))
    same = f"{100 * compared.same_class:.1f} %"
    apart = "not finite" if compared.apart is None else f"{compared.apart:.1e}"
    lines = [
        f"the two files' answers are {apart} apart on {compared.images} images, "
        f"with the same class for {same}; steps that both have: {len(compared.steps)}"
    ]
    if compared.parting is None:
        lines.append("they part at no step")
    else:
        lines.append(f"the first step where they part: {compared.parting.place}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _step_table(compared: SideBySide) -> Table:
    """The step where the files part, and those where they are furthest apart, in the model's order."""
    from rich import box
    from rich.table import Table

    widest = sorted(compared.steps, key=lambda step: -step.apart)[:STEPS_SHOWN]
    shown = [step for step in compared.steps if step in widest or step == compared.parting]
    title = f"{compared.paths[0].name} beside {compared.paths[1].name}: where they are furthest apart"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step of the model")
    for heading in ("first to torch", "second to torch", "apart"):
        table.add_column(heading, justify="right")
    for step in shown:
        table.add_row(step.place, *(f"{value:.1e}" for value in (*step.errors, step.apart)))
    return table


def print_result(result: Verification, found: ReferenceModel, console: Console) -> None:
    """Print the table and what must be known to read it."""
    console.print(_table(result))
    for line in notes(result, found):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(result: Verification, found: ReferenceModel) -> list[str]:
    """What must be known to read the table, a line each."""
    from converters.reference import Reference

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
    lines.append(
        right if result.agrees else "MISMATCH: outputs differ from the torch model by more than the tolerance"
    )
    return lines


def _table(result: Verification) -> Table:
    from rich import box
    from rich.table import Table

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


def _from_run(
    folder: Path, options: VerifyOptions, spec: InputSpec, values: int, count: int
) -> ReferenceModel:
    from edgeprune.pipeline.store import weights_of
    from edgeprune.pipeline.variants import rebuilt

    recipe = read_recipe(folder)
    names = ["dense", *recipe.variants]
    variant = options.variant or _variant_of(options.file, names)
    if variant is None or variant not in names or not Run(folder).weights(variant).is_file():
        problem = f"no weights of a variant {variant!r}" if variant else "the file's name says no variant"
        raise UserError(f"{folder}: {problem}: choose one with --variant: {', '.join(names)}")
    model = rebuilt(recipe, values, weights_of(Run(folder), variant))
    images, told = _held_out(recipe, spec, count)
    return ReferenceModel(
        model,
        recipe.preprocessing.normalization,
        images,
        f"variant {variant} of the run {folder}, {told}",
    )


def _variant_of(file: Path, names: Sequence[str]) -> str | None:
    targets = [target for target in TARGETS if file.stem.endswith(f"-{target}")]
    found = [file.stem.removesuffix(f"-{target}") for target in targets]
    return next((name for name in found if name in names), None)


def _held_out(recipe: Recipe, spec: InputSpec, count: int) -> tuple[np.ndarray, str]:
    if recipe.data is not None and not recipe.data.is_dir():
        return random_images(spec, count), f"random images: its own are not at {recipe.data}"
    import torch

    from edgeprune.data import sources
    from edgeprune.tasks import TASKS

    source = sources.source(recipe.data, TASKS[recipe.task].labels)
    split = source.held_out(recipe.data, recipe.preprocessing, count)
    images, _ = split.batch(torch.arange(len(split)))
    return images.float().numpy(), f"{len(split)} held-out images"
