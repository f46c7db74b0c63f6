"""Generated scenes with boxes: some of the embedded digits, each with the box around its ink.

Made like `edgeprune.data.scenes`, of three digits only, some scenes empty: small enough to be learned on two
cores in minutes, and honest, since held-out scenes have digits that no training scene has.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edgeprune.data.boxes import Boxes
from edgeprune.data.dataset import Data, InMemory, Split, as_data, spread_subset
from edgeprune.data.digits import Digits, digits
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.scenes import scene
from edgeprune.progress import Progress

LABELS = LabelKind.BOXES

CLASSES = ("zero", "one", "two")
TRAIN_SCENES, HELD_OUT_SCENES = 600, 150
MOST_DIGITS = 4
SIDES = (0.2, 0.45)  # of a digit, over the scene's


def takes(path: Path | None) -> bool:
    """See `sources.Source`: what a recipe without data of its own gets."""
    return path is None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """Make all scenes, squares of this side."""
    train, held_out = digits()
    return as_data(
        make(train, TRAIN_SCENES, prepare.image_size_px, seed=0),
        make(held_out, HELD_OUT_SCENES, prepare.image_size_px, seed=1),
        CLASSES,
        "generated scenes of scikit-learn's handwritten digits 0, 1 and 2",
        photographs=False,
    )


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Up to `count` held-out scenes, spread evenly."""
    return spread_subset(make(digits()[1], HELD_OUT_SCENES, prepare.image_size_px, seed=1), count)


def make(digits: Digits, count: int, size_px: int, seed: int) -> InMemory:
    """Make `count` scenes of the first of these digits, the same ones for the same seed."""
    some = digits.labels < len(CLASSES)
    chosen = Digits(digits.images[some], digits.labels[some])
    random = np.random.default_rng(seed)
    scenes = [scene(chosen, size_px, random, SIDES, MOST_DIGITS, fewest=0) for _ in range(count)]
    images = np.stack([one.image.transpose(2, 0, 1) for one in scenes])
    labels = [
        Boxes(
            torch.from_numpy(one.boxes),
            torch.from_numpy(one.digits),
            torch.zeros(len(one.digits), dtype=torch.bool),
            size_px,
        )
        for one in scenes
    ]
    return InMemory(torch.from_numpy(np.ascontiguousarray(images)), labels)
