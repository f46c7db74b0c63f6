"""LiteRT as a format: see `converters.format.Format`, whose members these are."""

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

    from converters.layers import WeightedLayer
    from converters.litert.conversion import Prepared
    from converters.litert.evaluation import LitertModel
    from converters.litert.graph import Graph
    from converters.litert.linter import Lint
    from converters.reference import Verification
    from converters.targets import Target

# What `inspect` tells of.
LINTED_RUNTIMES = ("arm64", "web")


class LiteRT:
    """Google's `.tflite`, written sparse, run by LiteRT on this machine, emulators and a browser."""

    name = "litert"
    title = "LiteRT"
    suffix = ".tflite"
    kind = "file"
    packages: tuple[str, ...] = ("litert-torch", "ai-edge-litert", "litert-quantizer", "flatbuffers")
    extra: str | None = None
    local_runtimes: tuple[str, ...] | None = ("host",)
    no_times: str | None = None
    not_measured: str | None = None
    in_app: str = (
        "**Android and browsers.** With LiteRT on the CPU (`com.google.ai.edge.litert:litert`, or "
        "LiteRT.js): input 1 x height x width x 3 float32. Keep the file uncompressed in the APK: "
        '`androidResources { noCompress += "tflite" }`. Sparse kernels are those of the CPU; a GPU or '
        "NPU runs the file dense."
    )

    def missing(self) -> str | None:
        """Nothing: its packages are edgeprune's own."""
        return None

    def prepare(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> Prepared:
        """Checked; lowered to a flatbuffer once, when first needed."""
        from converters.litert.conversion import prepare

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
        """Repair, store sparse or quantise, describe, write."""
        from converters.litert.conversion import write

        return write(prepared, target.name, path, labels=labels, metadata=metadata, calibration=calibration)

    def load(self, path: Path) -> LitertModel:
        """By LiteRT's interpreter, in a process of its own."""
        from converters.litert.evaluation import load

        return load(path)

    def inspect(self, path: Path) -> FileFacts:
        """Weights, what it takes, and the linter's word."""
        from converters.litert.accelerators import examine
        from converters.litert.graph import read_file
        from converters.litert.inspection import inspect
        from converters.litert.linter import lint_graph
        from converters.litert.node_data import overlays

        file, graph = inspect(path), read_file(path)
        verdicts = {runtime: lint_graph(graph, runtime) for runtime in LINTED_RUNTIMES}
        backends = examine(graph)
        taken, words = _taken(graph, path)
        plain = {
            "format": self.name,
            "bytes": file.bytes,
            "input": taken,
            "layers": [dataclasses.asdict(layer) for layer in file.layers],
            "runtimes": {runtime: _lint_to_plain(verdict) for runtime, verdict in verdicts.items()},
            "accelerators": {backend.name: backend.to_plain() for backend in backends},
        }
        told = [line for runtime, verdict in verdicts.items() for line in _lint_lines(runtime, verdict)]
        told += [line for backend in backends for line in backend.lines()]
        return FileFacts(
            path, file.layers, plain, (f"{file.bytes:,} bytes", words, *told), {}, overlays(graph)
        )

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
        """On every runtime of `converters.runtimes`, and TensorFlow's interpreter."""
        from converters.litert.verification import verify

        return verify(path, images, model, normalization, runtimes, emulated_images, say)

    def tensors(self, path: Path, image: np.ndarray) -> list[np.ndarray]:
        """As the file's program says, by torch."""
        from converters.litert.verification import tensors

        return tensors(path, image)

    def error_overlays(
        self, path: Path, image: np.ndarray, model: nn.Module, inputs: np.ndarray
    ) -> dict[str, Any]:
        """As the file's program says, by torch, at every op whose result the model has."""
        from converters.litert.node_data import errors
        from converters.litert.verification import named_tensors

        return errors(named_tensors(path, image), model, inputs)

    def sparse_runtime(self, path: Path, target: Target) -> tuple[bool | None, str | None]:
        """What the linter says."""
        from converters.litert.linter import lint

        found = lint(path, runtime=target.platform)
        return found.sparse, "; ".join(str(problem) for problem in (*found.problems, *found.slow)) or None

    def layer_bytes(
        self, target: Target, layer: WeightedLayer, kept: NDArray[np.float64], block: tuple[int, int]
    ) -> NDArray[np.float64]:
        """Blocks of values with their indices and segments, or all values."""
        from converters.litert.sizes import layer_bytes

        return layer_bytes(target, layer, kept, block)

    def timing_input(self, path: Path, runtime: str) -> TimingInput:
        """Its image, and what the linter says of the runtime."""
        from converters.litert.evaluation import taken
        from converters.litert.graph import read_file
        from converters.litert.linter import lint_graph

        graph = read_file(path)
        spec, channels_last = taken(graph, path)
        verdict = lint_graph(graph, runtime)
        return TimingInput(spec, channels_last, verdict.sparse, tuple(map(str, verdict.problems)))


def _taken(graph: Graph, path: Path) -> tuple[dict[str, Any] | None, str]:
    """What a file expects, as plain data and in words; it need not be one image."""
    from converters.litert.evaluation import image_input

    try:
        spec = image_input(graph, path)[0]
    except UserError:
        shapes = ["x".join(map(str, graph.shape(int(t)))) for t in graph.subgraph.inputs]
        return None, f"takes {', '.join(shapes)}, gives {len(graph.subgraph.outputs)} tensors"
    return dataclasses.asdict(spec), input_words(spec)


def _lint_to_plain(verdict: Lint) -> dict[str, Any]:
    return {
        "sparse_kernels": verdict.sparse,
        "problems": [str(problem) for problem in verdict.problems],
        "slow": [str(problem) for problem in verdict.slow],
    }


def _lint_lines(runtime: str, verdict: Lint) -> list[str]:
    problems = [f"  {problem}" for problem in (*verdict.problems, *verdict.slow)]
    return [f"sparse kernels on {runtime}: {'yes' if verdict.sparse else 'no'}", *problems]
