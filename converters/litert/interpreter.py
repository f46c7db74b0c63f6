"""LiteRT's interpreter, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.litert.silence import quiet


class Refused(Exception):  # noqa: N818 (an answer, not an accident)
    """Why LiteRT does not run a model; the caller knows the file's name."""


class Interpreter:
    """A model of one image in, ready to run."""

    def __init__(self, content: bytes, threads: int | None) -> None:
        with quiet():
            from ai_edge_litert.interpreter import Interpreter as LitertInterpreter

            try:
                self._interpreter = LitertInterpreter(model_content=content, num_threads=threads)
                self._interpreter.allocate_tensors()
            except (RuntimeError, ValueError, MemoryError) as error:
                raise Refused(_reason(error)) from None
        (self._in,) = self._interpreter.get_input_details()
        self._out = self._interpreter.get_output_details()

    @property
    def output_bytes(self) -> int:
        """Of what `run` gives for an image."""
        return self._values * np.dtype(np.float32).itemsize

    @property
    def _values(self) -> int:
        return sum(int(np.prod(out["shape"])) for out in self._out)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Run images of the model's own layout.

        Args:
            images: (n, ...) float32; quantised here if the model takes integers.

        Returns:
            (n, values) float32; of several outputs those of the first, then those of the next.

        Raises:
            Refused: LiteRT fails while running.
        """
        try:
            outputs = [self._run(image[None]) for image in images]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise Refused(_reason(error)) from None
        return np.stack(outputs) if outputs else np.zeros((0, self._values), np.float32)

    def _run(self, image: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._in["index"], _quantized(image, self._in))
        self._interpreter.invoke()
        parts = [_dequantized(self._interpreter.get_tensor(out["index"]), out).ravel() for out in self._out]
        return np.concatenate(parts)


def _reason(error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"LiteRT refuses it: {first_line}"


def _quantized(image: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, offset = details["quantization"]
    dtype = np.dtype(details["dtype"])
    if dtype.kind == "f" or not scale:
        return np.ascontiguousarray(image, dtype)
    limits = np.iinfo(dtype)
    quantized: np.ndarray = np.clip(np.rint(image / scale) + offset, limits.min, limits.max).astype(dtype)
    return quantized


def _dequantized(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, offset = details["quantization"]
    if values.dtype.kind == "f" or not scale:
        return values.astype(np.float32, copy=False)
    result: np.ndarray = (values.astype(np.float32) - offset) * np.float32(scale)
    return result
