"""Which images were decoded once without a fault: kept by a digest of their names, sizes and times."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from converters.errors import UserError
from converters.files import write_text


def cache_folder() -> Path:
    """Where edgeprune keeps what can be made again."""
    own = os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path.home() / ".cache") / "edgeprune"


def was_checked(version: str) -> bool:
    """Whether images of this version were found to be readable before."""
    return _mark(version).exists()


def keep_checked(version: str) -> None:
    """Remember that images of this version are readable; what cannot be kept is checked again."""
    with suppress(OSError, UserError):
        _mark(version).parent.mkdir(parents=True, exist_ok=True)
        write_text(_mark(version), "")


def _mark(version: str) -> Path:
    return cache_folder() / "checked" / version
