"""Apple's Core AI packages, imported and used without the noise they make.

They are a beta whose program representation is reached through a private module: `pyproject.toml` pins the
exact versions, and this is the only file that knows where their names live.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from converters.coreai.availability import INSTALL, missing
from converters.errors import UserError

_LOGGERS = ("torch.utils._pytree", "torch.utils.cpp_extension", "torch.export", "torchao", "coreai_torch")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back log lines, warnings, banners and progress bars while a block runs; errors still raise."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


try:
    with quiet():
        # coreai.authoring first: the dialect below imports it back.
        from coreai.authoring import AIModelAsset, AIProgram
        from coreai._compiler import ir as mlir  # isort: skip
        from coreai._compiler._mlir_libs._coreaiIR._bindings import compiler  # type: ignore[attr-defined,unused-ignore]  # isort: skip
        from coreai._compiler.dialects import coreai as ops  # isort: skip
        from coreai._compiler.dialects.coreai.constant import create_elements_attr  # isort: skip
        from coreai.runtime import AIModelAssetMetadata, NDArray  # isort: skip
except ImportError as error:
    reason = missing() or f"Core AI: Apple's packages cannot be imported ({error}): {INSTALL}"
    raise UserError(reason) from None

__all__ = [
    "AIModelAsset",
    "AIModelAssetMetadata",
    "AIProgram",
    "NDArray",
    "compiler",
    "create_elements_attr",
    "mlir",
    "ops",
    "quiet",
]
