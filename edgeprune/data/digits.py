"""The embedded images: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.data.dataset import Data, InMemory, Split, as_data, as_split, spread_subset
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.progress import Progress

LABELS = LabelKind.CLASS


@dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits.

    Attributes:
        images: (n, 8, 8) uint8, ink in [0, 255].
        labels: (n,) int64.
    """

    images: np.ndarray
    labels: np.ndarray


def digits() -> tuple[Digits, Digits]:
    """The 1,797 embedded digits, a fixed stratified split: for training, and 450 held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images, labels = (bunch.images * 255 / 16).astype(np.uint8), bunch.target.astype(np.int64)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=450, stratify=labels, random_state=0)
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def takes(path: Path | None) -> bool:
    """See `sources.Source`: what a recipe without data of its own gets."""
    return path is None


def load(path: Path | None, prepare: Preprocessing, progress: Progress) -> Data:
    """The embedded digits, enlarged to a square."""
    train, held_out = (_enlarged(part, prepare.image_size_px) for part in digits())
    return as_data(
        train, held_out, tuple(map(str, range(10))), "scikit-learn's handwritten digits", photographs=False
    )


def held_out(path: Path | None, prepare: Preprocessing, count: int) -> Split:
    """Up to `count` held-out digits, spread evenly."""
    return spread_subset(_enlarged(digits()[1], prepare.image_size_px), count)


def _enlarged(part: Digits, image_size_px: int) -> InMemory:
    from PIL import Image

    size = (image_size_px, image_size_px)
    pixels = np.stack(
        [np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BILINEAR)) for digit in part.images]
    )
    return as_split(np.repeat(pixels[:, None], 3, axis=1), part.labels)
