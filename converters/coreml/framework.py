"""coremltools, imported and used without the noise it makes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

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


with quiet():
    import coremltools as ct
    from coremltools import proto
    from coremltools.optimize import coreml as cto

__all__ = ["ct", "cto", "proto", "quiet"]
