"""The `.aimodel` folder: read as bytes, checked, and written whole or not at all.

NAME.aimodel/main.mlirb       the program, with all constants
NAME.aimodel/main.hash        SHA-256 of it
NAME.aimodel/metadata.json    author, licence, description, and entries of the creator's own
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import UserError
from converters.files import replacing

SUFFIX = ".aimodel"
PROGRAM, HASH, METADATA = "main.mlirb", "main.hash", "metadata.json"
# Entries of the creator's own, beside Apple's.
CUSTOM = "creatorDefinedMetadata"
# The one that edgeprune says its own in; JSON, because Apple's reader takes texts only.
NAME = "edgeprune"
_PLACES = {"short_description": "description", "author": "author", "license": "license"}
_VERSION = "2.0"


class DamagedFileError(UserError):
    """A file that is there and cannot be used: the message names it and says what is wrong."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: not a usable Core AI model: {reason}")


@dataclass(frozen=True)
class Asset:
    """A folder as read.

    Attributes:
        path: of the folder.
        program: content of `main.mlirb`.
        metadata: content of `metadata.json`.
    """

    path: Path
    program: bytes
    metadata: Mapping[str, Any]

    @property
    def custom(self) -> Mapping[str, Any]:
        """Entries of the creator's own; none where they are not what they should be."""
        entries = self.metadata.get(CUSTOM)
        return entries if isinstance(entries, dict) else {}

    def texts(self) -> dict[str, str]:
        """Author, licence and description as `convert` takes them, and the creator's own texts, by key."""
        found = {key: self.metadata.get(place) for key, place in _PLACES.items()}
        own = {
            key: value for key, value in sorted(self.custom.items()) if isinstance(value, str) and key != NAME
        }
        return {key: value for key, value in found.items() if isinstance(value, str) and value} | own


def read_asset(path: Path) -> Asset:
    """Read a folder, and make sure that its program is the one it was written with.

    Raises:
        UserError: there is no such folder, or it is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a Core AI model ({SUFFIX} folder)")
    if not path.is_dir() or not (path / PROGRAM).is_file():
        raise UserError(f"{path}: not a Core AI model: expected a folder with {PROGRAM} in it")
    try:
        program, digest = (path / PROGRAM).read_bytes(), (path / HASH).read_bytes()
        metadata = json.loads((path / METADATA).read_text(encoding="utf-8"))
    except OSError as error:
        raise DamagedFileError(path, f"{error.strerror or error}: {Path(error.filename).name}") from None
    except (ValueError, RecursionError):
        raise DamagedFileError(path, f"{METADATA} is not JSON") from None
    if not isinstance(metadata, dict):
        raise DamagedFileError(path, f"{METADATA} is not a JSON object")
    if hashlib.sha256(program).digest() != digest:
        raise DamagedFileError(path, f"{HASH} is not the SHA-256 of {PROGRAM}: one of them was changed")
    return Asset(path, program, metadata)


def metadata_content(texts: Mapping[str, str], own: Mapping[str, Any], producer: str) -> dict[str, Any]:
    """What `metadata.json` holds. No date: the same model gives the same bytes.

    Args:
        texts: the caller's, by key; those Apple has a place for go there.
        own: what edgeprune says of the file.
        producer: which package wrote the program.
    """
    placed = {_PLACES[key]: text for key, text in texts.items() if key in _PLACES}
    other = {key: text for key, text in texts.items() if key not in _PLACES}
    return {"assetVersion": _VERSION, "producer": producer, **placed, CUSTOM: {**own, **other}}


def write_asset(path: Path, program: bytes, metadata: Mapping[str, Any]) -> None:
    """Write a folder: aside first, then moved into place of whatever model was there.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    with replacing(path) as new:
        new.mkdir()
        (new / PROGRAM).write_bytes(program)
        (new / HASH).write_bytes(hashlib.sha256(program).digest())
        text = json.dumps(metadata, indent=2, ensure_ascii=False, sort_keys=True)
        (new / METADATA).write_text(text + "\n", encoding="utf-8", newline="\n")


def path_problems(path: Path) -> list[str]:
    """Why a model cannot be written there."""
    if path.suffix != SUFFIX:
        return [f"{path}: the name of a Core AI model ends in {SUFFIX}"]
    if path.exists() and not (path / PROGRAM).is_file():
        return [f"{path} exists and is not a Core AI model: not overwritten"]
    return []
