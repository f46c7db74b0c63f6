"""The file formats: what each must be able to do, and the table of them.

A format is a folder `converters/<name>/` whose `format.py` has a class with what `Format` lists, and a row in
`FORMATS`; where its files run is rows in `converters.targets.TARGETS`. No other file names a format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from converters.coreai.format import CoreAI
from converters.coreml.format import CoreML
from converters.errors import UserError
from converters.litert.format import LiteRT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from converters.facts import Converted, FileFacts, InputSpec, Normalization, TimingInput
    from converters.layers import WeightedLayer
    from converters.reference import Verification
    from converters.targets import Target


class Runnable(Protocol):
    """A file ready to run."""

    @property
    def input(self) -> InputSpec:
        """What `predict` takes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives; one for most files."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        """(n, channels, h, w) float32 as `input` says -> (n, classes, ...) float32 as torch gives."""

    def predict_all(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The same of each output, by name."""


class Format(Protocol):
    """One file format. Importing its class costs nothing: frameworks are imported by the methods.

    Attributes:
        name: as `Target.format` has it, "coreml".
        title: for people, "Core ML".
        suffix: of its files, ".mlpackage".
        kind: "file", or "folder" where it is one.
        packages: what writes, reads and runs its files, as pip names them.
        extra: of edgeprune, that installs them; None: they always are.
        local_runtimes: that `verify` can be told by name, of those on every machine; None: it takes no names.
        no_times: why `edgeprune bench` cannot time its files; None where it can.
        not_measured: what a report's rows say nothing of, for people; None: nothing.
        in_app: how an app takes a file in, one Markdown paragraph for a model card.
    """

    name: str
    title: str
    suffix: str
    kind: str
    packages: tuple[str, ...]
    extra: str | None
    local_runtimes: tuple[str, ...] | None
    no_times: str | None
    not_measured: str | None
    in_app: str

    def missing(self) -> str | None:
        """What keeps this machine from using the format, in one line, and the command that mends it.

        Returns:
            None where nothing does; nothing is imported to find out.
        """

    def prepare(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> Any:
        """What the files of one model for several targets share: the slow half of a conversion, for `write`.

        Args:
            model: in eval mode, its zeros in its weights; it is not modified.
            example: (1, channels, h, w) float32.
            normalization: folded into the files, which then take pixels in [0, 255].

        Raises:
            UserError: one of them is not what it should be.
            ToolError: the model cannot be converted.
        """

    def write(
        self,
        prepared: Any,
        target: Target,
        path: Path,
        *,
        labels: Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        calibration: np.ndarray | None = None,
    ) -> Converted:
        """Write a file, replaced if it is there.

        Args:
            prepared: by `prepare`.
            target: of this format.
            path: of the file, with the format's suffix.
            labels: class names in output order.
            metadata: further texts to store in the file.
            calibration: (n, channels, h, w) float32 pixels in [0, 255], for storages that need them.

        Raises:
            UserError: one of them is not what it should be.
            ToolError: the model cannot be converted.
        """

    def load(self, path: Path) -> Runnable:
        """Open a file to run it as it is run for the report's accuracies.

        Raises:
            UserError: it is no such file, or damaged.
        """

    def inspect(self, path: Path) -> FileFacts:
        """Every weight as stored, and whatever else there is to tell.

        Raises:
            UserError: it is no such file, or damaged.
        """

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
        """Run a file wherever it can be run and compare; see `converters.verify.verify`."""

    def tensors(self, path: Path, image: np.ndarray) -> list[np.ndarray]:
        """All that a file computes on the way for one image (1, channels, h, w) as it takes it.

        In any order, weights rounded as they are stored, arithmetic in float32 or better.

        Raises:
            UserError: it is no such file, or damaged, or it has an operation that cannot be followed here.
        """

    def error_overlays(
        self, path: Path, image: np.ndarray, model: nn.Module, inputs: np.ndarray
    ) -> dict[str, Any]:
        """What Model Explorer lays over the file's graph of how far it is from the model, on one image.

        Args:
            path: of the file.
            image: (1, channels, h, w) as the file takes it.
            model: in eval mode.
            inputs: the same image as the model takes it.

        Returns:
            By name, as plain data for JSON; none where it does not open such files.

        Raises:
            UserError: it is no such file, or damaged, or it has an operation that cannot be followed here.
        """

    def sparse_runtime(self, path: Path, target: Target) -> tuple[bool | None, str | None]:
        """Whether the target's runtime uses sparse kernels for a file that has sparse weights.

        Returns:
            None where that is unknown; and why not, or why it is unknown.
        """

    def layer_bytes(
        self, target: Target, layer: WeightedLayer, kept: NDArray[np.float64], block: tuple[int, int]
    ) -> NDArray[np.float64]:
        """Bytes that one weight takes, for any numbers of values that are not zero.

        Args:
            target: of this format.
            layer: whose weight it is.
            kept: how many values are left, (...).
            block: (out, in) channels that its zeros come in.

        Returns:
            (...), the choices that `write` makes among encodings included.
        """

    def timing_input(self, path: Path, runtime: str) -> TimingInput:
        """What must be known of a file to time it; `runtime` is `Runtime.lint_runtime`.

        Raises:
            UserError: it is no such file, or damaged, or files of this format are not timed.
        """


FORMATS: dict[str, Format] = {format.name: format for format in (LiteRT(), CoreML(), CoreAI())}


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix.

    Raises:
        UserError: it is of none, or not there.
    """
    for format in FORMATS.values():
        if path.suffix == format.suffix:
            if not path.exists():
                raise UserError(f"{path}: no such file")
            return format
    raise UserError(f"{path}: expected a {' or '.join(suffixes())}")


def target_problems(targets: Iterable[Target]) -> list[str]:
    """What keeps this machine from writing files for targets: a line for each format that cannot be used."""
    wanted: dict[str, list[str]] = {}
    for target in targets:
        wanted.setdefault(target.format, []).append(target.name)
    reasons = {name: FORMATS[name].missing() for name in wanted}
    return [f"{', '.join(wanted[name])}: {reason}" for name, reason in reasons.items() if reason]


def suffixes() -> list[str]:
    """Of all formats."""
    return [format.suffix for format in FORMATS.values()]


def timed_suffixes() -> list[str]:
    """Of the formats that `edgeprune bench` times."""
    return [format.suffix for format in FORMATS.values() if format.no_times is None]
