"""Files that are whole or not there, and what to say where a disk refuses."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from converters.errors import UserError

TEMPORARY = ".*.tmp"
"""What is left beside a file by a process that was killed while writing it; safe to delete."""

# What failed may have been larger than what is left.
NEARLY_FULL_BYTES = 16 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write a file or folder to; moved into place at the end.

    On failure what was written is removed, and what was at `path` before is still there.

    Raises:
        UserError: the disk refuses: no space, no permission, a file in the way.
    """
    temporary, aside = (path.with_name(f".{path.name}.{suffix}") for suffix in ("new.tmp", "old.tmp"))
    try:
        with explained(path):
            yield temporary
            if temporary.is_file():
                _to_disk(temporary)
            elif path.exists():  # A folder cannot be moved onto another.
                path.rename(aside)
            temporary.replace(path)
    finally:
        if aside.exists() and not path.exists():
            aside.rename(path)
        remove(temporary)
        remove(aside)


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 text file whole or not at all, and return its path.

    Raises:
        UserError: see `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a disk refuses into a message that says what to do.

    Raises:
        UserError: naming `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # Some libraries raise it for a file they cannot read.
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space, or choose another folder" if full else "choose another folder"
        raise UserError(f"cannot write {path}: {error.strerror}; {advice}") from error


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Say that a disk is full where a tool that writes there fails and does not say why.

    Args:
        folder: where it writes what it needs itself.

    Raises:
        UserError: what it said, and how little room is left.
    """
    try:
        yield
    except Exception as error:
        free_bytes = shutil.disk_usage(folder).free if folder.exists() else NEARLY_FULL_BYTES
        if isinstance(error, UserError) or free_bytes >= NEARLY_FULL_BYTES:
            raise
        raise UserError(
            f"{error}; the disk of {folder} has {free_bytes:,} bytes left: free some space, or name another "
            "folder in TMPDIR"
        ) from error


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and the disk lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _to_disk(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())
