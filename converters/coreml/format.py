"""Core ML as a format: see `converters.format.Format`, whose members these are."""

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

    from converters.coreml.conversion import Prepared
    from converters.coreml.evaluation import Package
    from converters.layers import WeightedLayer
    from converters.reference import Verification
    from converters.targets import Target


class CoreML:
    """Apple's `.mlpackage`, written by coremltools, evaluated here, run by Core ML on macOS."""

    name = "coreml"
    title = "Core ML"
    suffix = ".mlpackage"
    kind = "folder"
    packages: tuple[str, ...] = ("coremltools",)
    extra: str | None = None
    local_runtimes: tuple[str, ...] | None = None
    no_times: str | None = "Core ML runs on Apple's systems only: time it on a device"
    not_measured: str | None = (
        "Core ML files on Apple's own runtime: their program was read back and evaluated on the machine"
    )
    in_app: str = (
        "**iOS and macOS.** Drag the `.mlpackage` into Xcode, or compile it with "
        "`MLModel.compileModel(at:)`. Set `MLModelConfiguration.computeUnits = .all`; its image input takes "
        "a `CVPixelBuffer`. With Vision: "
        "`VNCoreMLRequest(model: VNCoreMLModel(for: MLModel(contentsOf: compiled)))`."
    )

    def missing(self) -> str | None:
        """Nothing: its packages are edgeprune's own."""
        return None

    def prepare(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> Prepared:
        """Checked; exported and turned into a program once for each platform, when first needed."""
        from converters.coreml.conversion import prepare

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
        """Compress for the target, describe, write."""
        from converters.coreml.conversion import write

        return write(prepared, target.name, path, labels=labels, metadata=metadata)

    def load(self, path: Path) -> Package:
        """By Core ML on macOS, elsewhere by the evaluator."""
        from converters.coreml.evaluation import load

        return load(path)

    def inspect(self, path: Path) -> FileFacts:
        """Weights, systems, operations, and what the Neural Engine does with them."""
        from converters.coreml.inspection import inspect

        package = inspect(path)
        sparse = sum(layer.encoding.startswith("sparse") for layer in package.layers)
        plain = {
            "format": self.name,
            "bytes": package.bytes,
            "lowest_os": package.lowest_os,
            "input": dataclasses.asdict(package.input),
            "layers": [dataclasses.asdict(layer) for layer in package.layers],
            "operations": dict(package.operations),
            "neural_engine_may_skip": dict(package.skipped),
            "leaves_neural_engine": list(package.leaving),
            "metadata": dict(package.metadata),
            "accelerators": {backend.name: backend.to_plain() for backend in package.accelerators},
        }
        lines = (
            f"{package.bytes:,} bytes; runs on {package.lowest_os} and later",
            input_words(package.input),
            f"zeros the Neural Engine may skip: {len(package.skipped)} of {sparse} sparse layers",
            f"known to leave the Neural Engine: {', '.join(package.leaving) or 'none'}",
            *(f"{key}: {text}" for key, text in package.metadata.items()),
            *(line for backend in package.accelerators for line in backend.lines()),
        )
        return FileFacts(path, package.layers, plain, lines, {"skips": package.skipped})

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
        """By the evaluator, and by Core ML on macOS."""
        from converters.coreml.verification import verify

        return verify(path, images, model, normalization, runtimes, emulated_images, say)

    def tensors(self, path: Path, image: np.ndarray) -> list[np.ndarray]:
        """By the evaluator."""
        from converters.coreml.checking import tensors
        from converters.coreml.evaluation import well_formed
        from converters.coreml.package import read_package
        from converters.coreml.program import read_program

        with well_formed(path):
            contents = read_package(path)
            return tensors(contents, read_program(contents), image)

    def error_overlays(
        self, path: Path, image: np.ndarray, model: nn.Module, inputs: np.ndarray
    ) -> dict[str, Any]:
        """None: it does not open packages."""
        return {}

    def sparse_runtime(self, path: Path, target: Target) -> tuple[bool | None, str | None]:
        """Unknown: nothing tells."""
        return None, (
            "Core ML does not say which kernels it uses, and it runs on Apple's systems only: "
            "time it on a device"
        )

    def layer_bytes(
        self, target: Target, layer: WeightedLayer, kept: NDArray[np.float64], block: tuple[int, int]
    ) -> NDArray[np.float64]:
        """A mask and the values left; the same for any block."""
        from converters.coreml.sizes import layer_bytes

        return layer_bytes(target, layer, kept, block)

    def timing_input(self, path: Path, runtime: str) -> TimingInput:
        """Refused: see `no_times`."""
        raise UserError(f"{path}: {self.no_times}")
