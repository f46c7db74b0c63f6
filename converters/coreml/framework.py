"""coremltools, imported and used without the noise it makes."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from converters.files import told_when_full

# Loggers that speak up, on import or for every layer, of things that the caller can do nothing about:
# versions newer than the tested ones, the missing macOS library, weights left as they are (which the
# facts of a conversion report).
_LOGGERS = ("coremltools", "torch.utils._pytree", "torch.onnx", "torchao")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back coremltools' log lines, warnings and progress bars while a block runs; errors still raise."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def temporary_files(folder: Path | None = None) -> Iterator[None]:
    """Give coremltools a folder for its temporary packages, which else stay until Python ends.

    It has no setting for that: while the block runs, the folder is `tempfile`'s for the whole process.

    Args:
        folder: of the caller's, who removes it; None: one that is removed at the end of the block.

    Raises:
        UserError: it fails, and the disk is full.
    """
    before = tempfile.tempdir
    own = (
        tempfile.TemporaryDirectory(prefix="edgeprune-") if folder is None else contextlib.nullcontext(folder)
    )
    with own as place:
        tempfile.tempdir = str(place)
        try:
            with told_when_full(Path(place)):
                yield
        finally:
            tempfile.tempdir = before


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Hide TensorFlow, where it is installed and not imported yet.

    coremltools imports whatever it could convert from: seconds and log lines for nothing, and TensorFlow 2.21
    ended the process with a segmentation fault when it was imported after torch.
    """
    hidden = "tensorflow" not in sys.modules
    if hidden:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # what makes Python refuse the import
    try:
        yield
    finally:
        if hidden:
            del sys.modules["tensorflow"]


with quiet(), _without_tensorflow():
    import coremltools as ct
    from coremltools import proto
    from coremltools.optimize import coreml as cto

__all__ = ["ct", "cto", "proto", "quiet", "temporary_files"]
