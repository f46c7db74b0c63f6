"""Does a file compute what its model does, on every runtime at hand?

`converters.reference` has how that is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import nn

from converters.facts import IMAGENET, InputSpec, Normalization
from converters.format import format_of
from converters.reference import MAX_PIXEL, TOLERANCE, Check, Reference, Verification, compare, normalized

__all__ = [
    "EMULATED_IMAGES", "IMAGENET", "MAX_PIXEL", "TOLERANCE", "Check", "Reference", "Verification", "compare",
    "normalized", "read_spec", "verify", "verify_here",
]  # fmt: skip

EMULATED_IMAGES = 4


def verify(
    path: Path | str,
    images: np.ndarray,
    model: nn.Module | None = None,
    *,
    normalization: Normalization = IMAGENET,
    runtimes: Sequence[str] | None = None,
    emulated_images: int = EMULATED_IMAGES,
    say: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Run a file on every runtime and compare.

    Args:
        path: of a file, or of a package's folder.
        images: (n, channels, height, width) plain pixels in [0, 255], n at least 1.
        model: what the file was made from, in eval mode, its zeros in its weights.
        normalization: what the model wants done to pixels first; a file that does not do it itself is given
            pixels for which that was done.
        runtimes: names, of those that run the format; None: those that are there.
        emulated_images: how many of the images an emulated runtime is given.
        say: told what is being done.

    Raises:
        UserError: the file cannot be used, the images or the model are not its own, a runtime that was named
            is not there, or there is nothing to compare with.
    """
    path = Path(path)
    verify_file = format_of(path).verify
    return verify_file(path, images, model, normalization, runtimes, emulated_images, say)


def verify_here(
    path: Path, images: np.ndarray, model: nn.Module, normalization: Normalization
) -> Verification:
    """`verify` on nothing but what runs the format on every machine.

    Raises:
        UserError: see `verify`.
    """
    return verify(path, images, model, normalization=normalization, runtimes=format_of(path).local_runtimes)


def read_spec(path: Path | str) -> tuple[InputSpec, int]:
    """What a file expects, and how many classes it gives values for; run here to know that it can be.

    Raises:
        UserError: it is not a file that can be used, or it crashes what runs it.
    """
    path = Path(path)
    loaded = format_of(path).load(path)
    outputs = loaded.predict(np.zeros((1, *loaded.input.shape), np.float32))
    return loaded.input, int(outputs.shape[1])
