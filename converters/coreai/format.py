"""Core AI as a format: see `converters.format.Format`, whose members these are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import UserError
from converters.facts import Converted, FileFacts, Normalization, TimingInput, input_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from converters.coreai.conversion import Prepared
    from converters.coreai.evaluation import AppleModel
    from converters.layers import WeightedLayer
    from converters.reference import Verification
    from converters.targets import Target


class CoreAI:
    """Apple's `.aimodel`, written by coreai-torch, run by Apple's own runtime on Linux and macOS."""

    name = "coreai"
    title = "Core AI"
    suffix = ".aimodel"
    kind = "folder"
    packages: tuple[str, ...] = ("coreai-core", "coreai-torch")
    extra: str | None = "coreai"
    local_runtimes: tuple[str, ...] | None = None
    no_times: str | None = (
        "Apple's runtime has only plain kernels on this machine: time a Core AI model on a device"
    )
    not_measured: str | None = (
        "Core AI files on a phone: Apple's runtime ran them on the machine, computing in float32"
    )
    in_app: str = (
        "**iOS 27 and later.** Core AI loads the `.aimodel` folder; add it to the Xcode project as it is."
    )

    def missing(self) -> str | None:
        """Apple's packages, where they are not installed or there are none."""
        from converters.coreai.availability import missing

        return missing()

    def prepare(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> Prepared:
        """Checked, exported, and turned into a float32 program."""
        from converters.coreai.conversion import prepare

        return prepare(model, example, normalization)

    def write(
        self,
        prepared: Prepared,
        target: Target,
        path: Path,
        *,
        labels: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        calibration: np.ndarray | None = None,
    ) -> Converted:
        """Made float16, each weight by its own mask, described, read back, written."""
        from converters.coreai.conversion import write

        return write(prepared, target.name, path, labels=labels, metadata=metadata)

    def load(self, path: Path) -> AppleModel:
        """By Apple's runtime, in a process of its own."""
        from converters.coreai.evaluation import load

        return load(path)

    def inspect(self, path: Path) -> FileFacts:
        """Weights, systems, operations, and what the file says of itself."""
        from converters.coreai.inspection import inspect

        model = inspect(path)
        sparse = sum(layer.encoding.startswith("sparse") for layer in model.layers)
        plain = {
            "format": self.name,
            "bytes": model.bytes,
            "lowest_os": model.lowest_os,
            "input": dataclasses.asdict(model.input),
            "layers": [dataclasses.asdict(layer) for layer in model.layers],
            "operations": dict(model.operations),
            "metadata": dict(model.metadata),
        }
        lines = (
            f"{model.bytes:,} bytes; runs on {model.lowest_os} and later",
            input_words(model.input),
            f"stored sparse: {sparse} of {len(model.layers)} layers",
            *(f"{key}: {text}" for key, text in model.metadata.items()),
        )
        return FileFacts(path, model.layers, plain, lines, {})

    def verify(
        self,
        path: Path,
        images: np.ndarray,
        model: nn.Module | None,
        normalization: Normalization,
        runtimes: Sequence[str] | None,
        emulated_images: int,
        say: Callable[[str], None],
    ) -> Verification:
        """By Apple's runtime, in float32 and as the file is."""
        from converters.coreai.verification import verify

        return verify(path, images, model, normalization, runtimes, emulated_images, say)

    def tensors(self, path: Path, image: np.ndarray) -> list[np.ndarray]:
        """By Apple's runtime."""
        from converters.coreai.apart import tensors_of
        from converters.coreai.package import read_asset

        return tensors_of(path, read_asset(path).program, image)

    def error_overlays(
        self, path: Path, image: np.ndarray, model: nn.Module, inputs: np.ndarray
    ) -> dict[str, Any]:
        """None: it does not open such files."""
        return {}

    def sparse_runtime(self, path: Path, target: Target) -> tuple[bool | None, str | None]:
        """Unknown: nothing tells."""
        return None, "Core AI does not say which kernels it uses on a phone: time it on a device"

    def layer_bytes(
        self, target: Target, layer: WeightedLayer, kept: NDArray[np.float64], block: tuple[int, int]
    ) -> NDArray[np.float64]:
        """A mask and the values left; the same for any block."""
        from converters.coreai.sizes import layer_bytes

        return layer_bytes(target, layer, kept, block)

    def timing_input(self, path: Path, runtime: str) -> TimingInput:
        """Refused: see `no_times`."""
        raise UserError(f"{path}: {self.no_times}")
