"""The road a model takes: dense baseline, variants, files, measurements, report, budget."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters import litert
from converters.facts import sha256
from converters.files import replacing
from converters.targets import SUFFIXES, TARGETS, Format, Storage, Target
from edgeprune import parsing, pruning
from edgeprune import recipe as recipes
from edgeprune.data import sources as loading
from edgeprune.data.dataset import Data, Split
from edgeprune.errors import UserError
from edgeprune.evaluation import corruptions as robustness
from edgeprune.evaluation import errors as examining
from edgeprune.evaluation import exported_file as measure
from edgeprune.evaluation import maps
from edgeprune.models import build as models
from edgeprune.models import cost, pretrained, weights
from edgeprune.pipeline import allocation as allocating
from edgeprune.pipeline import environment
from edgeprune.pipeline.run_folder import RECIPE_FILE, Run, open_run, write_json
from edgeprune.processes import is_first, shared
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe, Variant
from edgeprune.report import alongside, records, render
from edgeprune.report.records import Examination, MapExamination, Report, Row, Training
from edgeprune.tasks.task import SEGMENTATION
from edgeprune.training import loop as training
from edgeprune.training import predict
from edgeprune.training.loop import FROM_NOTHING, Hooks, Setting
from edgeprune.training.transfer import Transfer

ROUNDS = 5  # Of a stepwise schedule.
MASK_UPDATES = 50  # Times that masks are chosen anew while zeros grow.
CALIBRATION_IMAGES = 64  # What a static int8 file takes its ranges from.
# Training images that tell which channels matter; a few are enough to find out whether it can be done.
SHRINKING_IMAGES, SHRINKING_BATCH, SHRINKING_TRIAL_IMAGES = 1024, 16, 16
SPARE_BYTES = 5_000_000


@dataclass(frozen=True)
class Model:
    """A finished torch variant.

    Attributes:
        name: of the variant.
        module: in eval mode, on the CPU, its zeros in its weights.
        outputs: (n, classes, ...) on the held-out images.
        record: how it came to be.
    """

    name: str
    module: nn.Module
    outputs: Tensor
    record: Training


def run(recipe: Recipe, progress: Progress, command: str) -> Report | None:
    """Take a recipe all the way, or go on with a run of it that was stopped.

    Everything that can be refused is refused before the first file is written. Under `accelerate launch`
    every process calls this and trains; only the first reads and writes the run folder.

    Args:
        recipe: what to do.
        progress: whom to tell.
        command: how to repeat it, for the report.

    Returns:
        The report; None in all processes but the first.

    Raises:
        UserError: all mistakes found in the recipe, the data, the checkpoint or the output folder.
    """
    _refuse_task(recipe)
    recipe, told = pretrained.resolved(recipe)
    data = loading.load(recipe, progress)
    prepare = recipe.preprocessing
    setting = Setting(data, prepare.normalization, recipe.augment, recipe.seed, prepare.to_metadata())
    dense, loaded = _started(recipe, data)
    for line in (*loaded.notes, *told):
        progress.say(line)
    _refuse_misfits(recipe, dense, setting)

    with ExitStack() as opened:
        folder = shared(lambda: opened.enter_context(open_run(recipe, _needed_bytes(recipe, dense))))
        shared(lambda: _pin_inputs(folder, recipe, data))
        if shared(lambda: data.sha256) != data.sha256:
            raise UserError("the images here are not those of the first process: give every machine the same")
        baseline = _dense(recipe, setting, dense, loaded.new_head, folder, progress)
        started = {"": baseline}
        for (name, variant), key in zip(recipe.named_variants.items(), recipe.variants, strict=True):
            start = started[variant.after].module
            started[key] = _variant(name, variant, recipe, setting, baseline, start, folder, progress)
        finished = list(started.values())
        if not is_first():
            return None
        rows = [
            row
            for model in finished
            for row in _files(model, recipe.targets, baseline, setting, folder, progress)
        ]
        for model in finished:
            _examine(model, baseline, setting, folder, progress)
        write_json(folder.environment, environment.describe(data, prepare.image_size_px, command))
        return _report(recipe, folder, rows, [model.record for model in finished])


def rebuild_report(path: Path) -> Report:
    """Write a finished run's report anew from what was measured, without training or running anything.

    Raises:
        UserError: not a run, one that is not finished, or one whose files are no longer those measured.
    """
    folder = Run(path)
    recipe = recipes.read(path / RECIPE_FILE)
    names = ["dense", *recipe.named_variants]
    wanted = [(name, target) for name in names for target in recipe.targets]
    rows = {key: _measured(folder, *key) for key in wanted}
    problems = [f"{name} on {target}" for (name, target), row in rows.items() if row is None]
    if problems or not folder.environment.exists():
        raise UserError(
            [
                f"run {path} is not finished, or its files are no longer those that were measured:",
                *(f"  {problem}" for problem in problems),
                f"finish it with: edgeprune run {path / RECIPE_FILE}",
            ]
        )
    trainings = [_training_record(folder, name) for name in names]
    return _report(recipe, folder, [row for row in rows.values() if row], trainings)


def _report(recipe: Recipe, folder: Run, rows: Sequence[Row], trainings: Sequence[Training]) -> Report:
    segments = recipe.task == SEGMENTATION.name
    kept = maps.kept if segments else examining.kept
    examinations = {training.variant: kept(folder, training.variant) for training in trainings}
    again = (
        "the run folder holds nothing about its weights as they are; "
        f"edgeprune run {folder.folder / RECIPE_FILE} adds it without training again"
    )
    report = Report(
        recipe=recipes.to_data(recipe),
        environment=json.loads(folder.environment.read_text(encoding="utf-8")),
        rows=tuple(rows),
        trainings=tuple(trainings),
        examinations=tuple(found for found in examinations.values() if isinstance(found, Examination)),
        maps=tuple(found for found in examinations.values() if isinstance(found, MapExamination)),
        not_examined={
            name: maps.NOT_EXAMINED if found else again
            for name, found in examinations.items()
            if not found or segments
        },
        sensitivity=alongside.sensitivity(folder.folder),
        benches=alongside.benches(folder.folder, rows),
    )
    records.write(report, folder.folder)
    render.write_pages(report, folder.folder)
    return report


def _training_record(folder: Run, name: str) -> Training:
    return parsing.build(Training, _read_json(folder.training(name)), str(folder.training(name)))


def _measured(folder: Run, variant: str, target: str) -> Row | None:
    """What was measured on a file, if that very file is still there."""
    path = folder.row(variant, target)
    if not path.exists():
        return None
    row = parsing.build(Row, _read_json(path), str(path))
    file = folder.folder / row.path
    return row if file.exists() and sha256(file) == row.sha256 else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete it, and the same command makes it anew"
        ) from None


def _started(recipe: Recipe, data: Data) -> tuple[nn.Module, weights.Loaded]:
    """The dense model before its training, and what was loaded into it."""
    torch.manual_seed(recipe.seed)
    model = models.for_recipe(recipe, len(data.classes)).eval()
    if recipe.checkpoint is not None:
        return model, weights.load_checkpoint(model, recipe.checkpoint)
    if recipe.weights is None:
        return model, weights.Loaded(())
    return model, weights.load_weights(model, recipe)


def _refuse_task(recipe: Recipe) -> None:
    task = models.task(recipe.model)
    if task != recipe.task:
        raise UserError(f"model {recipe.model} and task {recipe.task} do not fit: it is a {task} model")


def _refuse_misfits(recipe: Recipe, dense: nn.Module, setting: Setting) -> None:
    """Try every variant's rules, and images of every size, on the untrained model, before hours are spent."""
    problems = [
        f"{where}.first_px {fit.first_px}: {recipe.model} takes images of one size only: leave it 0"
        for where, fit in recipe.fits.items()
        if fit.first_px and not _takes(dense, fit.first_px)
    ]
    problems += [
        f"{where}.compile: there is no C++ compiler: install g++, name one in CXX, or leave compile out"
        for where, fit in recipe.fits.items()
        if fit.compile and not training.cpp_compiler()
    ]
    tried = {"": dense}
    for (name, variant), key in zip(recipe.named_variants.items(), recipe.variants, strict=True):
        if variant.after not in tried:  # Already told.
            continue
        try:
            module = copy.deepcopy(tried[variant.after])
            _shrink(module, variant, recipe, setting, SHRINKING_TRIAL_IMAGES)
            rules, _ = _rules(variant, module, setting)
            pruning.select(module, rules)
            tried[key] = module
        except UserError as error:
            problems += [f"variant {name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


@torch.no_grad()
def _takes(model: nn.Module, size_px: int) -> bool:
    try:
        model(torch.zeros(1, 3, size_px, size_px))
    except Exception:  # Each model has its own way to refuse a size.
        return False
    return True


def _dense(
    recipe: Recipe,
    setting: Setting,
    module: nn.Module,
    new_head: tuple[str, ...],
    folder: Run,
    progress: Progress,
) -> Model:
    if not shared(folder.weights("dense").exists):
        history: tuple[dict[str, float], ...] = ()
        seconds = 0.0
        if recipe.checkpoint is None:
            with _shown("dense", recipe.dense.epochs, folder, progress) as hooks:
                transfer = (
                    Transfer(new_head, recipe.freeze_epochs, recipe.body_learning_rate)
                    if recipe.weights is not None
                    else FROM_NOTHING
                )
                history, seconds = training.train(module, setting, recipe.dense, hooks, transfer=transfer)
        shared(lambda: _finish("dense", module, history, seconds, {}, setting, recipe, folder))
    return _load("dense", recipe, setting, folder, progress)


def _variant(
    name: str,
    variant: Variant,
    recipe: Recipe,
    setting: Setting,
    baseline: Model,
    start: nn.Module,
    folder: Run,
    progress: Progress,
) -> Model:
    if not shared(folder.weights(name).exists):
        module = copy.deepcopy(start)
        _shrink(module, variant, recipe, setting, SHRINKING_IMAGES)
        rules, left_dense = _rules(variant, module, setting, progress)
        sparsifier = _sparsifier(module, rules, variant, setting)
        if sparsifier is not None:
            left_dense = {**left_dense, **sparsifier.exceptions}
        for layer, reason in left_dense.items():
            progress.say(f"  {name}: {layer} stays dense: {reason}")
        with _shown(name, variant.fit.epochs, folder, progress) as hooks:
            history, seconds = training.train(
                module,
                setting,
                variant.fit,
                hooks,
                teacher=copy.deepcopy(baseline.module) if variant.distill else None,
                distill=variant.distill,
                sparsifier=sparsifier,
            )
        shared(lambda: _finish(name, module, history, seconds, left_dense, setting, recipe, folder))
    return _load(name, recipe, setting, folder, progress)


def _shrink(module: nn.Module, variant: Variant, recipe: Recipe, setting: Setting, images: int) -> None:
    """Remove the variant's channels in place; `images` of the training images tell which matter."""
    example = _example(recipe)
    if variant.channels:
        pruning.shrink(module, example, variant.channels, round_to=variant.round_to)
    if not (variant.macs_left or variant.parameters_left):
        return
    train = setting.data.train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(recipe.seed))[:images]
    batches = [
        (predict.normalized(train.images[part], setting.normalization), train.labels[part].long())
        for part in torch.split(order, SHRINKING_BATCH)
    ]
    cut = shared(  # Gradients of different machines differ in their last bits.
        lambda: pruning.least_channels(
            module,
            example,
            variant.macs_left or variant.parameters_left,
            of="macs" if variant.macs_left else "parameters",
            calibration=batches,
            round_to=variant.round_to,
        )
    )
    pruning.remove(module, example, cut)


def _rules(
    variant: Variant, module: nn.Module, setting: Setting, progress: Progress | None = None
) -> tuple[list[pruning.Rule], dict[str, str]]:
    """The variant's rules for `module`, and the layers that they leave dense on their own account.

    Sensitivity is measured, with `progress`, on a trained module; for one that is not it is estimated.
    """
    if variant.allocation != "uniform":
        curves = None
        if progress is not None and variant.allocation in allocating.MEASURED:
            curves = allocating.measured_curves(variant, module, setting, progress)
        allocation = allocating.allocate(variant, module, setting, curves)
        return allocation.rules, dict(allocation.left_dense)
    pattern = allocating.pattern_of(variant)
    default = [pruning.Rule(pattern, variant.sparsity)] if variant.sparsity else []
    named = [pruning.Rule(pattern, sparsity, layers) for layers, sparsity in variant.layers.items()]
    return default + named, {}


def _sparsifier(
    module: nn.Module, rules: Sequence[pruning.Rule], variant: Variant, setting: Setting
) -> pruning.Sparsifier | None:
    if not rules:
        return None
    steps = max(round(variant.ramp * variant.fit.epochs * training.steps_per_epoch(setting, variant.fit)), 1)
    return pruning.Sparsifier(
        module,
        rules,
        _schedule(variant.schedule, steps),
        criterion=variant.criterion,
        regrow=variant.regrow,
        seed=setting.seed,
    )


def _schedule(name: str, steps: int) -> pruning.Schedule:
    """The schedule of this name in `edgeprune.recipe.SCHEDULES` that ends within `steps`."""
    schedules: dict[str, pruning.Schedule] = {
        "cubic": pruning.Cubic(steps, every=max(steps // MASK_UPDATES, 1)),
        "stepwise": pruning.Stepwise(ROUNDS, max(steps // ROUNDS, 1)),
        "one-shot": pruning.OneShot(),
    }
    return schedules[name]


@contextmanager
def _shown(name: str, epochs: int, folder: Run, progress: Progress) -> Iterator[Hooks]:
    """Hooks of a training that show it and keep its state in the run folder after every epoch."""
    path = folder.partial(name)
    state = shared(lambda: torch.load(path, weights_only=True) if path.exists() else None)
    done = state["epoch"] if state else 0
    if done:
        progress.say(f"  {name}: goes on after epoch {done} of {epochs}")

    def save(state: dict[str, Any]) -> None:
        if not is_first():
            return
        # Through memory: torch's own writer does not say why a disk refuses.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())

    with progress.track(f"training {name}", epochs, done) as show:
        yield Hooks(load=lambda: state, save=save, show=show)


def _finish(
    name: str,
    module: nn.Module,
    history: tuple[dict[str, float], ...],
    seconds: float,
    left_dense: dict[str, str],
    setting: Setting,
    recipe: Recipe,
    folder: Run,
) -> None:
    """Keep a trained variant: its record first, so that weights that are there are always explained."""
    from safetensors.torch import save

    held_out = setting.data.held_out
    outputs = predict.predict(module, held_out, setting.normalization)
    record = Training(
        variant=name,
        **held_out.task.fields(predict.score(outputs, held_out)),
        parameters=cost.count_parameters(module),
        macs=cost.count_macs(module, _example(recipe)),
        seconds=seconds,
        epochs=history,
        left_dense=left_dense,
        trained_on=environment.training_hardware() if history else "",
    )
    write_json(folder.training(name), dataclasses.asdict(record))
    with replacing(folder.weights(name)) as temporary:
        temporary.write_bytes(save({key: value.contiguous() for key, value in module.state_dict().items()}))
    folder.partial(name).unlink(missing_ok=True)


def _load(name: str, recipe: Recipe, setting: Setting, folder: Run, progress: Progress) -> Model:
    """Read a finished variant back from the run folder: what is converted is what was saved."""
    from safetensors.torch import load_file

    module = models.for_recipe(recipe, len(setting.data.classes)).eval()
    pruning.resize(module, shared(lambda: load_file(folder.weights(name))))
    outputs = predict.predict(module, setting.data.held_out, setting.normalization)
    record = shared(lambda: _training_record(folder, name))
    reached = f"{setting.data.held_out.task.heading} {100 * record.score:.1f} %"
    progress.say(f"{name}: {reached} on {len(setting.data.held_out)} held-out images")
    return Model(name, module, outputs, record)


def _files(
    model: Model,
    targets: Sequence[str],
    baseline: Model,
    setting: Setting,
    folder: Run,
    progress: Progress,
) -> Iterator[Row]:
    """Convert one variant for every target and measure the files, but for those that were measured before."""
    example = predict.normalized(setting.data.held_out.images[:1], setting.normalization)

    @functools.cache  # The slow half of a conversion, the same for every LiteRT target.
    def lowered() -> bytes:
        return litert.lower(model.module, example, setting.normalization)

    for target in (TARGETS[name] for name in targets):
        row = _measured(folder, model.name, target.name)
        if row is None:
            row = _file(model, target, example, lowered, baseline, setting, folder, progress)
        yield row


def _file(
    model: Model,
    target: Target,
    example: Tensor,
    lowered: Callable[[], bytes],
    baseline: Model,
    setting: Setting,
    folder: Run,
    progress: Progress,
) -> Row:
    """Convert one variant for one target and measure the file."""
    held_out = setting.data.held_out
    path = folder.file(model.name, target.name, SUFFIXES[target.format])
    with progress.track(f"writing {path.name}", 1):
        own: dict[str, Any] = {"lowered": lowered()} if target.format is Format.LITERT else {}
        if target.storage is Storage.STATIC_INT8:
            own["calibration"] = _calibration_images(setting.data.train)
        converted = measure.converter(target).convert(
            model.module,
            example,
            path,
            target=target.name,
            labels=setting.data.classes,
            normalization=setting.normalization,
            metadata=setting.told,
            **own,
        )
    row = measure.measure(
        converted,
        target,
        variant=model.name,
        folder=folder.folder,
        held_out=held_out,
        classes=setting.data.classes,
        normalization=setting.normalization,
        torch_outputs=model.outputs,
        dense_score=baseline.record.score,
        progress=progress,
    )
    write_json(folder.row(model.name, target.name), dataclasses.asdict(row))
    progress.say(f"  {row.path}: {row.bytes:,} bytes, {held_out.task.heading} {100 * row.score:.1f} %")
    return row


def _examine(model: Model, baseline: Model, setting: Setting, folder: Run, progress: Progress) -> None:
    """Look at what a variant gets wrong, unless that was done before."""
    if setting.data.held_out.task is SEGMENTATION:
        if maps.kept(folder, model.name) is None:
            maps.examine(model.name, model.outputs, baseline.outputs, setting.data, folder)
        return
    if examining.kept(folder, model.name) is not None:
        return
    with progress.track(f"worse images for {model.name}", robustness.steps()) as advance:
        examining.examine(
            model.name,
            model.module,
            model.outputs,
            baseline.outputs,
            setting.data,
            setting.normalization,
            folder,
            advance,
        )


def _calibration_images(train: Split) -> np.ndarray:
    """Plain pixels (n, 3, size, size) float32 of training images of every class: they are kept by class."""
    places = torch.linspace(0, len(train) - 1, min(CALIBRATION_IMAGES, len(train))).long()
    pixels: np.ndarray = train.images[places].float().numpy()
    return pixels


def _example(recipe: Recipe) -> Tensor:
    size_px = recipe.preprocessing.image_size_px
    return torch.zeros(1, 3, size_px, size_px)


def _needed_bytes(recipe: Recipe, dense: nn.Module) -> int:
    """Room for every variant's weights and files, as large as the dense ones, and one training state."""
    weights_bytes = 4 * cost.count_parameters(dense)
    return SPARE_BYTES + weights_bytes * (4 + (1 + len(recipe.variants)) * (1 + len(recipe.targets)))


def _pin_inputs(folder: Run, recipe: Recipe, data: Data) -> None:
    """Refuse to go on with a run whose images, checkpoint or file of weights have changed since it began."""
    start = pretrained.as_path(recipe.model, recipe.weights) if recipe.weights else None
    inputs = {"data": data.sha256, "checkpoint": sha256(recipe.checkpoint) if recipe.checkpoint else None}
    inputs |= {"weights": sha256(start)} if start else {}
    if not folder.inputs.exists():
        write_json(folder.inputs, inputs)
    before = _read_json(folder.inputs)
    changed = [name for name in inputs if before.get(name) != inputs[name]]
    if changed:
        raise UserError(
            f"output folder {folder.folder}: the {' and '.join(changed)} changed since this run began; "
            "choose another --output, or delete that folder to start anew"
        )
