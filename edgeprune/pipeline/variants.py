"""The dense model and its variants: each made, trained, kept in the run folder, and read back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune import processes, pruning
from edgeprune.data.dataset import Data
from edgeprune.errors import UserError
from edgeprune.evaluation.records import Training
from edgeprune.models import cost
from edgeprune.models.branches import merged
from edgeprune.models.resize import resize
from edgeprune.pipeline import allocation as allocating
from edgeprune.pipeline import environment, run_folder
from edgeprune.pipeline.context import RunContext
from edgeprune.pipeline.store import inputs_of, weights_of
from edgeprune.pipeline.tensorboard import log
from edgeprune.processes import shared
from edgeprune.progress import Progress
from edgeprune.recipe import UNIFORM, Recipe, Variant
from edgeprune.tasks.task import scored
from edgeprune.training.config import AUTO
from edgeprune.training.loop import Epochs, Hooks, Setting, steps_per_epoch, train
from edgeprune.training.predict import normalized, predict
from edgeprune.training.transfer import Transfer

DENSE = "dense"
ROUNDS = 5  # Of a stepwise schedule.
MASK_UPDATES = 50  # Times that masks are chosen again while zeros grow.
SHRINKING_IMAGES, SHRINKING_BATCH = 1024, 16  # Training images that tell which channels matter.


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


def dense(context: RunContext, module: nn.Module, new_head: tuple[str, ...] = ()) -> Model:
    """The baseline: `module` trained, unless it is the recipe's checkpoint or the run has it.

    `new_head` names those of its weights that start from nothing where the others are pretrained.
    """
    if not context.store.has_variant(DENSE):
        history: Epochs = ()
        seconds = 0.0
        if context.recipe.checkpoint is None:
            with _shown(context, DENSE, context.recipe.dense.epochs) as hooks:
                transfer = _transfer(context.recipe, new_head)
                history, seconds = train(
                    module, context.setting, context.recipe.dense, hooks, transfer=transfer
                )
        if context.recipe.merge_branches:
            module = merged(module)
        _keep(context, DENSE, module, history, seconds, {})
    return _read(context, DENSE)


def _transfer(recipe: Recipe, new_head: tuple[str, ...]) -> Transfer:
    if recipe.weights is None:
        return Transfer()
    return Transfer(new_head, recipe.freeze_epochs, recipe.body_learning_rate)


def variant(context: RunContext, name: str, baseline: Model, start: nn.Module) -> Model:
    """A variant of the recipe, made from the trained weights of `start`, unless the run has it."""
    if not context.store.has_variant(name):
        asked, setting = context.recipe.variants[name], context.setting
        module = copy.deepcopy(start)
        remove_channels(module, asked, setting, SHRINKING_IMAGES)
        rules, left_dense = rules_of(asked, module, setting, context.progress)
        sparsifier = _sparsifier(module, rules, asked, setting)
        if sparsifier is not None:
            left_dense = {**left_dense, **sparsifier.exceptions}
        for layer, reason in left_dense.items():
            context.progress.say(f"  {name}: {layer} stays dense: {reason}")
        with _shown(context, name, asked.fit.epochs) as hooks:
            history, seconds = train(
                module,
                setting,
                asked.fit,
                hooks,
                teacher=copy.deepcopy(baseline.module) if asked.distill else None,
                distill=asked.distill,
                sparsifier=sparsifier,
            )
        _keep(context, name, module, history, seconds, left_dense)
    return _read(context, name)


def remove_channels(module: nn.Module, variant: Variant, setting: Setting, images: int) -> None:
    """Remove a variant's channels in place; `images` of the training images tell which matter."""
    train = setting.data.train
    example = torch.zeros(1, 3, train.size_px, train.size_px)
    if variant.channels:
        pruning.shrink(module, example, variant.channels, round_to=variant.round_to)
    if not (variant.macs_left or variant.parameters_left):
        return
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(setting.seed))[:images]
    batches = [
        (normalized(pixels, setting.normalization), labels)
        for pixels, labels in (train.batch(part) for part in torch.split(order, SHRINKING_BATCH))
    ]
    cut = shared(  # Gradients of different machines differ in their last bits.
        lambda: pruning.least_channels(
            module,
            example,
            variant.macs_left or variant.parameters_left,
            of="macs" if variant.macs_left else "parameters",
            calibration=batches,
            loss=lambda outputs, labels: setting.task.loss(outputs, labels, 0.0),
            round_to=variant.round_to,
        )
    )
    pruning.remove(module, example, cut)


def rules_of(
    variant: Variant, module: nn.Module, setting: Setting, progress: Progress | None = None
) -> tuple[list[pruning.Rule], dict[str, str]]:
    """A variant's rules for `module`, and the layers that they leave dense on their own account.

    Sensitivity is measured, with `progress`, on a trained module; for one that is not it is estimated.
    """
    if variant.allocation not in (AUTO, UNIFORM):
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
    steps = max(round(variant.ramp * variant.fit.epochs * steps_per_epoch(setting, variant.fit)), 1)
    return pruning.Sparsifier(
        module,
        rules,
        schedule(variant.schedule, steps),
        criterion=variant.criterion,
        regrow=variant.regrow,
        seed=setting.seed,
    )


def schedule(name: str, steps: int) -> pruning.Schedule:
    """The schedule of this name in `edgeprune.recipe.SCHEDULES` that ends within `steps`."""
    schedules: dict[str, pruning.Schedule] = {
        "cubic": pruning.Cubic(steps, every=max(steps // MASK_UPDATES, 1)),
        "stepwise": pruning.Stepwise(ROUNDS, max(steps // ROUNDS, 1)),
        "one-shot": pruning.OneShot(),
    }
    return schedules[name]


@contextmanager
def _shown(context: RunContext, name: str, epochs: int) -> Iterator[Hooks]:
    """Hooks of a training that show it and keep its state in the run folder after every epoch."""
    state = context.store.partial(name)
    done = state["epoch"] if state else 0
    if done:
        context.progress.say(f"  {name}: goes on after epoch {done} of {epochs}")
    logged = context.recipe.tensorboard and processes.is_first()
    logs = context.recipe.output / "tensorboard" / name if logged else None
    with context.progress.track(f"training {name}", epochs, done) as show, log(logs, done) as record:
        yield Hooks(
            load=lambda: state,
            save=lambda state: context.store.keep_partial(name, state),
            show=show,
            save_seconds=60 * context.recipe.save_minutes,
            record=record,
        )


def _keep(
    context: RunContext,
    name: str,
    module: nn.Module,
    history: Epochs,
    seconds: float,
    left_dense: dict[str, str],
) -> None:
    """Measure a trained variant and keep it."""
    task, held_out = context.task, context.data.held_out
    outputs = predict(module, held_out, context.normalization)
    reached, details = scored(task, outputs, held_out.labels, len(context.data.classes))
    side = context.recipe.preprocessing.image_size_px
    record = Training(
        variant=name,
        metric=task.metric.key,
        score=reached,
        parameters=cost.count_parameters(module),
        macs=cost.count_macs(module, torch.zeros(1, 3, side, side)),
        seconds=seconds,
        epochs=history,
        left_dense=left_dense,
        not_measured=dict(task.metric.instead_of),
        trained_on=environment.training_hardware() if history else "",
        details=details,
    )
    context.store.keep_variant(record, module)


def _read(context: RunContext, name: str) -> Model:
    """Read a finished variant back from the run folder: what is converted is what was saved."""
    state, record = context.store.variant(name)
    module = rebuilt(context.recipe, len(context.data.classes), state)
    held_out = context.data.held_out
    outputs = predict(module, held_out, context.normalization)
    reached = f"{context.task.metric.heading} {100 * record.score:.1f} %"
    context.progress.say(f"{name}: {reached} on {len(held_out)} held-out images")
    return Model(name, module, outputs, record)


def trained(run: run_folder.Run, recipe: Recipe, data: Data, name: str, called: str) -> nn.Module:
    """The torch model of a variant that a run has trained, if its images are still the same.

    Args:
        run: its folder.
        recipe: of the run.
        data: images as they are now.
        name: of the variant.
        called: what a message calls it.

    Raises:
        UserError: it is not trained yet, or the images changed.
    """
    if not run.weights(name).is_file():
        raise UserError(
            f"{run.folder}: {called} is not trained yet: finish it with "
            f"edgeprune run {run.folder / run_folder.RECIPE_FILE}"
        )
    if inputs_of(run).get("data") != data.sha256:
        raise UserError(
            f"{run.folder}: the images changed since this run began: what trained it might be held out now"
        )
    return rebuilt(recipe, len(data.classes), weights_of(run, name))


def rebuilt(recipe: Recipe, classes: int, state: dict[str, Tensor]) -> nn.Module:
    """The torch model of a variant, from its weights in a run folder, in eval mode."""
    module = recipe.architecture.build(classes).eval()
    module = merged(module) if recipe.merge_branches else module
    resize(module, state)
    return module
