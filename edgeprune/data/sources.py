"""The images of a recipe, whatever its task."""

from __future__ import annotations

from edgeprune.data import image_folder as data
from edgeprune.data import segmentation_folder as masks
from edgeprune.data.dataset import Data, Split
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe

LOADERS = {"classification": data, "segmentation": masks}


def load(recipe: Recipe, progress: Progress) -> Data:
    """Load what a recipe trains and measures on.

    Raises:
        UserError: every fault of its folder, in one message.
    """
    loaded: Data = LOADERS[recipe.task].load(recipe.data, recipe.preprocessing, progress)
    return loaded


def held_out(recipe: Recipe, count: int) -> Split:
    """Load up to `count` held-out images of a recipe alone.

    Raises:
        UserError: every fault of its folder, in one message.
    """
    found: Split = LOADERS[recipe.task].held_out(recipe.data, recipe.preprocessing, count)
    return found
