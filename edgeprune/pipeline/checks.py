"""What is refused before the first file of a run is written, and before hours are spent."""

from __future__ import annotations

import copy

import torch
from torch import nn

from converters.format import target_problems
from converters.targets import TARGETS
from edgeprune import pruning
from edgeprune.data.checked import keep_checked, was_checked
from edgeprune.data.dataset import Data
from edgeprune.data.loading import readable_splits
from edgeprune.errors import UserError
from edgeprune.models import cost
from edgeprune.models.weights import Loaded, load_checkpoint, load_weights
from edgeprune.pipeline import variants
from edgeprune.processes import shared
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.tasks import TASKS
from edgeprune.training.loop import Setting, cpp_compiler

# Training images that tell which channels matter: a few are enough to find out whether it can be done.
TRIAL_IMAGES = 16
CHECKED_IMAGES = 20_000  # Up to so many are decoded once before a training, if it is not said otherwise.
SPARE_BYTES = 5_000_000


def refuse_task(recipe: Recipe) -> None:
    """Refuse a model that does not answer what the recipe's task asks.

    Raises:
        UserError: it does not.
    """
    if TASKS[recipe.task].takes_model(recipe.model):
        return
    fitting = [name for name, task in TASKS.items() if task.takes_model(recipe.model)]
    raise UserError(
        f"model {recipe.model} and task {recipe.task} do not fit: it is a {' or '.join(fitting)} model"
    )


def refuse_targets(recipe: Recipe) -> None:
    """Refuse targets whose files this machine cannot write: an extra that is not installed.

    Raises:
        UserError: it names the command that installs it.
    """
    if problems := target_problems(TARGETS[name] for name in recipe.targets):
        raise UserError(problems)


def refuse_misfits(recipe: Recipe, dense: nn.Module, setting: Setting) -> None:
    """Try every variant's rules, and images of every size, on the untrained model.

    Raises:
        UserError: all that cannot be done.
    """
    problems = [
        f"{where}.first_px {fit.first_px}: {recipe.model} takes images of one size only: leave it 0"
        for where, fit in recipe.fits.items()
        if fit.first_px and not _takes(dense, fit.first_px)
    ]
    problems += [
        f"{where}.compile: there is no C++ compiler: install g++, name one in CXX, or leave compile out"
        for where, fit in recipe.fits.items()
        if fit.compile and not cpp_compiler()
    ]
    tried = {"": dense}
    for name, variant in recipe.variants.items():
        if variant.after not in tried:  # Already told.
            continue
        try:
            module = copy.deepcopy(tried[variant.after])
            variants.remove_channels(module, variant, setting, TRIAL_IMAGES)
            rules, _ = variants.rules_of(variant, module, setting)
            pruning.select(module, rules)
            tried[name] = module
        except UserError as error:
            problems += [f"variant {name}: {problem}" for problem in error.problems]
    if problems:
        raise UserError(problems)


def refuse_unreadable(recipe: Recipe, data: Data, progress: Progress) -> None:
    """Decode what is not in memory once, where the recipe or the number of images says so.

    Under `accelerate launch` the first process does it for all.

    Raises:
        UserError: names the images that cannot be read.
    """
    splits = readable_splits(data)
    count = sum(len(split) for _, split in splits)
    wanted = count <= CHECKED_IMAGES if recipe.check_images is None else recipe.check_images
    if not splits or not wanted:
        return
    problems: list[str] = []

    def check() -> None:
        for name, split in splits:
            if was_checked(split.version):
                progress.say(f"  {name} images: unchanged since all of them could be read")
                continue
            with progress.track(f"checking {name} images", len(split)) as advance:
                try:
                    for done in split.check():
                        advance(done)
                    keep_checked(split.version)
                except UserError as error:
                    problems.extend(error.problems)
        if problems:
            raise UserError(problems)

    shared(check)


def needed_bytes(recipe: Recipe, dense: nn.Module) -> int:
    """Room for every variant's weights and files, as large as the dense ones, and one training state."""
    weights_bytes = 4 * cost.count_parameters(dense)
    return SPARE_BYTES + weights_bytes * (4 + (1 + len(recipe.variants)) * (1 + len(recipe.targets)))


def untrained(recipe: Recipe, classes: int) -> tuple[nn.Module, Loaded]:
    """The dense model of a recipe before any training, in eval mode, with its checkpoint or its weights.

    Returns:
        The model, and what was loaded into it.

    Raises:
        UserError: no such model; or a checkpoint or weights that do not fit it or cannot be had.
    """
    torch.manual_seed(recipe.seed)
    model = recipe.architecture.build(classes).eval()
    if recipe.checkpoint is not None:
        return model, load_checkpoint(model, recipe.checkpoint)
    if recipe.weights is not None:
        return model, load_weights(model, recipe.architecture, recipe.weights, recipe.head)
    return model, Loaded()


@torch.no_grad()
def _takes(model: nn.Module, size_px: int) -> bool:
    try:
        model(torch.zeros(1, 3, size_px, size_px))
    except Exception:  # Each model has its own way to refuse a size.
        return False
    return True
