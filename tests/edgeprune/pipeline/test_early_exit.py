"""Which images choose the threshold; the rest of the road is tested by its command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from edgeprune.data.dataset import Data, InMemory
from edgeprune.pipeline.early_exit import _divided
from edgeprune.recipe import Recipe
from edgeprune.training.config import TrainConfig
from edgeprune.training.loop import divided


def test_the_validation_set_of_a_run_chooses_where_there_is_one(small_recipe: Recipe) -> None:
    images = torch.arange(10).view(10, 1, 1, 1).expand(10, 3, 2, 2).to(torch.uint8)
    split = InMemory(images, torch.zeros(10, dtype=torch.int64))
    data = Data(split, split, ("a",), "tens", False, "")
    fit = TrainConfig(validation_fraction=0.3)
    own = replace(
        small_recipe, dense=fit, variants={"x": replace(small_recipe.variants["channels"], fit=fit)}
    )
    learned, kept, told = _divided(own, data)
    assert (len(learned), len(kept)) == (7, 3)
    assert told == "images of tens, the validation set of the run"
    trained, aside = divided(split, 0.3, own.seed)
    assert torch.equal(kept.batch(torch.arange(3))[0], aside.batch(torch.arange(3))[0])
    assert torch.equal(learned.batch(torch.arange(7))[0], trained.batch(torch.arange(7))[0])
    for unknown in (replace(own, dense=TrainConfig()), replace(own, checkpoint=Path("x.pt"))):
        learned, kept, told = _divided(unknown, data)
        assert (len(learned), len(kept)) == (8, 2)
        assert told.endswith("that the exit was not trained on; the model was")
