"""What a conversion returns: the file and, layer by layer, what is really stored in it."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


# zlib's own default, which bundletool (`Deflater.DEFAULT_COMPRESSION`), `zip` and `ditto` leave as it is.
STORE_LEVEL = 6
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LayerFacts:
    """One weight tensor as stored in a file, decoded and counted.

    Attributes:
        name: as `model.named_modules()` has it where the model is at hand, else the file's own name.
        kind: "conv1x1", "conv", "depthwise", "linear" or "other".
        shape: (out, in / groups, kernel height, kernel width) or (out, in), whatever the file's own layout.
        zero_fraction: exact zeros among the decoded weights, 0 to 1.
        bits_per_weight: stored bits (values, masks, indices, scales, tables) over the number of weights.
        encoding: for people, e.g. "float16", "sparse int8", "4-bit table".
        note: why a layer with zeros is stored dense, and the like; None when there is nothing to say.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    zero_fraction: float
    bits_per_weight: float
    encoding: str
    note: str | None = None


@dataclass(frozen=True)
class Converted:
    """A written file.

    Attributes:
        path: the `.tflite` file or `.mlpackage` folder.
        target: its name in `converters.targets.TARGETS`.
        bytes: size on disk, all files of a package added up.
        layers: one entry for each weight of a convolution or linear layer, in execution order.
    """

    path: Path
    target: str
    bytes: int
    layers: tuple[LayerFacts, ...]


@dataclass(frozen=True)
class Normalization:
    """What a model wants done to RGB pixels scaled to [0, 1]: `(pixel - mean) / std`, per channel.

    Given to a converter it is folded into the file, which then takes plain pixels in [0, 255].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class InputSpec:
    """What a file expects.

    Attributes:
        shape: (channels, height, width) in pixels, whatever layout the file has inside.
        range: (low, high): (0.0, 255.0) where normalisation was folded in; None: what the torch model takes.
        labels: class names in output order; None where the file carries none.
        normalization: what must be done to pixels first; None where the file does it, or does not say.
    """

    shape: tuple[int, int, int]
    range: tuple[float, float] | None
    labels: tuple[str, ...] | None
    normalization: Normalization | None = None


@dataclass(frozen=True)
class FileFacts:
    """What `edgeprune inspect` tells about a file.

    Attributes:
        path: of the file.
        layers: its weights, as stored.
        plain: everything but the path, as plain data for JSON.
        lines: the rest for people, below the table of layers.
        marks: further columns of that table: heading -> names of the layers that have a "yes" in it.
        overlays: for Model Explorer, by name, as plain data for JSON; none where it does not open such files.
    """

    path: Path
    layers: tuple[LayerFacts, ...]
    plain: Mapping[str, Any]
    lines: tuple[str, ...]
    marks: Mapping[str, Collection[str]]
    overlays: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimingInput:
    """What must be known of a file to time it.

    Attributes:
        spec: what it expects.
        channels_last: whether it has its image as (height, width, channels) inside.
        sparse: whether the linter says that the runtime will use its sparse kernels.
        problems: what the linter has against that.
    """

    spec: InputSpec
    channels_last: bool
    sparse: bool
    problems: tuple[str, ...]


def input_words(spec: InputSpec) -> str:
    """What a file expects, in words."""
    channels, height, width = spec.shape
    pixels = "normalised as for training: the file does not say how"
    if spec.range is not None:
        pixels = f"plain pixels from {spec.range[0]:g} to {spec.range[1]:g}"
    elif spec.normalization is not None:
        mean, std = (
            ", ".join(f"{v:g}" for v in side) for side in (spec.normalization.mean, spec.normalization.std)
        )
        pixels = f"(pixel / 255 - mean) / std, mean {mean}, std {std}"
    labels = f"; names {len(spec.labels)} classes" if spec.labels else ""
    return f"takes {channels} channels of {height}x{width} px, {pixels}{labels}"


def zero_fraction(weight: np.ndarray) -> float:
    """Share of exact zeros in `weight`, 0 to 1; an empty array has none."""
    return float((weight == 0).sum() / weight.size) if weight.size else 0.0


def size_bytes(path: Path) -> int:
    """Bytes on disk of a file, or of all files in a package folder."""
    return sum(file.stat().st_size for file in _files(path))


def download_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a package folder, as a store sends them: each deflated on its own.

    What Android's bundletool counts as the download of an entry, and what `zip` writes of it: deflate at
    zlib's default level, or the file as it is where that is smaller. Without the archive's names and headers.
    """
    return sum(min(_deflated_bytes(file), file.stat().st_size) for file in _files(path))


def sha256(path: Path) -> str:
    """Hex digest of a file; of a package folder, over the name and content of each file in name order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _deflated_bytes(file: Path) -> int:
    deflate = zlib.compressobj(STORE_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    total = 0
    with file.open("rb") as content:
        while part := content.read(CHUNK_BYTES):
            total += len(deflate.compress(part))
    return total + len(deflate.flush())


def _files(path: Path) -> Sequence[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
