"""Runs a Core AI model by Apple's own runtime, here and on Linux too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converters.coreai.apart import Activations, RuntimeApart, facts_of
from converters.coreai.inspection import spec_of
from converters.coreai.package import DamagedFileError, read_asset
from converters.errors import UserError
from converters.facts import InputSpec


@dataclass(frozen=True)
class AppleModel:
    """A model ready to run.

    Attributes:
        path: of the folder.
        input: what it takes.
        outputs: names of what it gives.
        seconds_as_it_is: that one image took through the file as it is, before it was made quick.
    """

    path: Path
    input: InputSpec
    outputs: tuple[str, ...]
    seconds_as_it_is: float
    _runtime: RuntimeApart = field(repr=False)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Run images through a model of one output.

        Args:
            images: (n, channels, height, width), in the range `input` says.

        Returns:
            (n, classes) float32; of a model that gives maps (n, classes, height, width).

        Raises:
            UserError: the images have another shape, there are none, it has several outputs, or the runtime
                fails on it.
        """
        if len(self.outputs) != 1:
            listed = ", ".join(self.outputs)
            raise UserError(f"{self.path}: gives {listed}: `predict_all` returns them by name")
        return self.predict_all(images)[self.outputs[0]]

    def predict_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run images; each output by name, (n, ...) float32.

        Raises:
            UserError: see `predict`.
        """
        images = np.asarray(images, dtype=np.float32)
        if images.ndim != 4 or images.shape[1:] != self.input.shape:
            wanted = ", ".join(map(str, self.input.shape))
            raise UserError(f"{self.path}: takes images of shape (n, {wanted}), got {images.shape}")
        if not len(images):
            raise UserError(f"{self.path}: no images to run")
        outputs = self._runtime.run(images)
        if any(not values.ndim or len(values) != len(images) for values in outputs):
            raise DamagedFileError(self.path, "it does not give one result for an image")
        return dict(zip(self.outputs, outputs, strict=True))


def load(path: str | Path, *, activations: Activations = "float32") -> AppleModel:
    """Make a model ready in a process of its own, and run one image through the file as it is.

    Args:
        path: of the `.aimodel`.
        activations: "float16" runs the file as it is, rounding after every operation as this machine's
            kernels do; "float32" lets the runtime decode the weights once and compute in float32, several
            times as fast, so that what is left of an error is that of the stored weights.

    Raises:
        UserError: there is no such model, it is damaged, or Apple's runtime refuses it, crashes on it or does
            not finish.
    """
    path = Path(path)
    if activations not in ("float32", "float16"):
        raise UserError(f"activations {activations!r}: choose float32 or float16")
    asset = read_asset(path)
    spec = spec_of(asset, facts_of(path, asset.program))
    runtime = RuntimeApart(path, asset.program, activations, spec.shape)
    return AppleModel(path, spec, runtime.outputs, runtime.seconds_as_it_is, runtime)
