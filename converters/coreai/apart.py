"""Core AI's parser and runtime in a process of their own: a file that makes no sense can end or hang it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converters.child import Child, RefusedError
from converters.coreai.package import DamagedFileError

if TYPE_CHECKING:
    from converters.coreai.program import StoredWeight

Activations = Literal["float32", "float16"]
NamedShapes = tuple[tuple[str, tuple[int, ...]], ...]

SECONDS_TO_READ = 120.0
SECONDS_TO_MAKE_READY = 240.0
SECONDS_PER_IMAGE = 30.0
IMAGES_PER_MESSAGE = 64
_NO_ANSWER = f"Core AI crashes on it, or takes more than {SECONDS_PER_IMAGE:.0f} s an image"
_SLOW_KERNELS = (
    ", as its plain float16 kernels do with a transformer: with activations='float32' it computes in "
    "float32, with the stored weights"
)


@dataclass(frozen=True)
class Facts:
    """Message: what is in this program? Gets an `Answer`."""

    content: bytes


@dataclass(frozen=True)
class Ready:
    """Message: make a program ready and run an image through the file as it is.

    Gets its outputs' names, and the seconds that image took; 0 for a program that is to run as it is.
    """

    key: tuple[str, str]
    content: bytes
    activations: Activations
    image: np.ndarray


@dataclass(frozen=True)
class Run:
    """Message: run images. Gets each output, (n, ...) float32; None where the program is not ready."""

    key: tuple[str, str]
    images: np.ndarray


@dataclass(frozen=True)
class Trace:
    """Message: what does this program compute on the way? Gets arrays, float32."""

    content: bytes
    image: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What is in a program.

    Attributes:
        inputs: name and shape of each.
        outputs: name and shape of each.
        weights: of convolutions and linear layers, decoded, each once, in the order they are first used.
        uses: for each convolution and linear layer the place of its weight in `weights`.
        operations: how many of each; constants and what decodes them left out.
    """

    inputs: NamedShapes
    outputs: NamedShapes
    weights: tuple[StoredWeight, ...]
    uses: tuple[int, ...]
    operations: Mapping[str, int]


_CHILD = Child("converters.coreai.worker", "Core AI")


def facts_of(path: Path, content: bytes) -> Answer:
    """What is in the program of a file.

    Raises:
        UserError: Core AI's parser refuses it, crashes on it or does not finish.
    """
    try:
        answer: Answer = _CHILD.ask(Facts(content), SECONDS_TO_READ)
    except RefusedError as reason:
        raise DamagedFileError(path, str(reason)) from None
    return answer


def tensors_of(path: Path, content: bytes, image: np.ndarray) -> list[np.ndarray]:
    """All that a file's program computes on the way for one image (1, channels, height, width), in float32.

    Raises:
        UserError: Apple's runtime refuses it, crashes on it or does not finish.
    """
    try:
        tensors: list[np.ndarray] = _CHILD.ask(Trace(content, image), SECONDS_TO_MAKE_READY)
    except RefusedError as reason:
        raise DamagedFileError(path, str(reason)) from None
    return tensors


class RuntimeApart:
    """A file's program, made ready by Apple's runtime elsewhere.

    Attributes:
        outputs: their names.
        seconds_as_it_is: that one image took through the file as it is, before it was made quick; 0 for one
            that stays as it is.
    """

    outputs: tuple[str, ...]
    seconds_as_it_is: float

    def __init__(self, path: Path, content: bytes, activations: Activations, shape: tuple[int, ...]) -> None:
        self._path, self._activations = path, activations
        self._ready = Ready(
            key=(hashlib.sha256(content).hexdigest(), activations),
            content=content,
            activations=activations,
            image=np.zeros((1, *shape), np.float32),
        )
        self.outputs, self.seconds_as_it_is = self._asked(self._ready, SECONDS_TO_MAKE_READY)
        if activations == "float16":
            self.run(self._ready.image)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """Each output, (n, ...) float32, for images (n, channels, height, width).

        Raises:
            UserError: the runtime fails on the file, crashes or does not finish.
        """
        starts = range(0, len(images), IMAGES_PER_MESSAGE)
        parts = [self._run(images[start : start + IMAGES_PER_MESSAGE]) for start in starts]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        seconds = SECONDS_PER_IMAGE * (len(images) + 1)
        outputs = self._asked(Run(self._ready.key, images), seconds)
        if outputs is None:
            self._asked(self._ready, SECONDS_TO_MAKE_READY)
            outputs = self._asked(Run(self._ready.key, images), seconds)
        if outputs is None:  # Twice it ended the process that had made it ready, and a new one was asked.
            raise DamagedFileError(self._path, _NO_ANSWER + _SLOW_KERNELS * (self._activations == "float16"))
        result: list[np.ndarray] = outputs
        return result

    def _asked(self, message: Ready | Run, seconds: float) -> Any:
        try:
            return _CHILD.ask(message, seconds)
        except RefusedError as reason:
            raise DamagedFileError(self._path, str(reason)) from None
