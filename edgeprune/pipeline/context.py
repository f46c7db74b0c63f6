"""What every step of a run is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from converters.facts import Normalization
from edgeprune.data.dataset import Data
from edgeprune.pipeline.run_folder import Run
from edgeprune.pipeline.store import Store
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import Task
from edgeprune.training.loop import Setting
from edgeprune.training.predict import normalized


@dataclass(frozen=True)
class RunContext:
    """A run: what it is to do, on which images, where it is kept, and whom to tell.

    Attributes:
        recipe: resolved.
        data: its images.
        run: its folder, opened; only the first process looks into it, through `store`.
        progress: shows how far it is.
    """

    recipe: Recipe
    data: Data
    run: Run
    progress: Progress

    @property
    def task(self) -> Task:
        """What its models answer."""
        return task_of(self.recipe)

    @property
    def store(self) -> Store:
        """What is kept of it."""
        return Store(self.run)

    @property
    def normalization(self) -> Normalization:
        """What its models want done to pixels."""
        return self.recipe.preprocessing.normalization

    @property
    def setting(self) -> Setting:
        """What its trainings share."""
        return setting_of(self.recipe, self.data)

    @property
    def example(self) -> Tensor:
        """One image as its models take it, (1, 3, size, size)."""
        images, _ = self.data.held_out.batch(torch.tensor([0]))
        return normalized(images, self.normalization)


def task_of(recipe: Recipe) -> Task:
    """What the models of a recipe answer."""
    return TASKS[recipe.task].bound(recipe.architecture)


def setting_of(recipe: Recipe, data: Data) -> Setting:
    """What the trainings of a recipe share."""
    normalization = recipe.preprocessing.normalization
    return Setting(data, task_of(recipe), normalization, recipe.augment, recipe.seed)
