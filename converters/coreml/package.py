"""The `.mlpackage` folder: read without leaving it, written whole or not at all, the same bytes every time.

NAME.mlpackage/Manifest.json                              which item is the model
NAME.mlpackage/Data/com.apple.CoreML/model.mlmodel        protobuf: description and program
NAME.mlpackage/Data/com.apple.CoreML/weights/weight.bin   the large constants
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from converters.coreml.blobs import MalformedError
from converters.coreml.framework import proto
from converters.errors import UserError
from converters.files import replacing

SUFFIX = ".mlpackage"
_MODEL = "com.apple.CoreML/model.mlmodel"
_WEIGHTS = "com.apple.CoreML/weights"
# What a program writes for "the folder of model.mlmodel".
_MODEL_PATH = "@model_path/"


@dataclass(frozen=True)
class Contents:
    """A package as read.

    Attributes:
        path: of the package.
        spec: the `Model` message.
        folder: of `model.mlmodel`, where a program's weight files are looked up.
    """

    path: Path
    spec: Any
    folder: Path
    _files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def weight_file(self, name: str) -> bytes:
        """Return the content of a weight file as a program names it, e.g. "@model_path/weights/weight.bin".

        Raises:
            MalformedError: it is not there, or not inside the package.
        """
        if name not in self._files:
            if not name.startswith(_MODEL_PATH):
                raise MalformedError(f"weight file {name!r} is not inside the package")
            file = _inside(self.path, self.folder, name.removeprefix(_MODEL_PATH))
            if not file.is_file():
                raise MalformedError(f"weight file {file.relative_to(self.path.resolve())} is missing")
            self._files[name] = file.read_bytes()
        return self._files[name]


def read_package(path: Path) -> Contents:
    """Read manifest and specification of a package that holds an ML program.

    Raises:
        UserError: there is no such package.
        MalformedError: it is one, but not in order.
    """
    spec, folder = read_specification(path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise MalformedError(
            f"holds a {spec.WhichOneof('Type') or 'model of no type'}, expected an ML program"
        )
    return Contents(path, spec, folder)


def read_specification(path: Path) -> tuple[Any, Path]:
    """The `Model` message of a package, of whatever type, and the folder that it lies in.

    Raises:
        UserError: there is no such package.
        MalformedError: it is one, but not in order.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; expected a Core ML package ({SUFFIX} folder)")
    if not path.is_dir() or not (path / "Manifest.json").is_file():
        raise UserError(f"{path}: not a Core ML package: expected a folder with a Manifest.json in it")
    file = _inside(path, path / "Data", _root_item(path / "Manifest.json"))
    if not file.is_file():
        raise MalformedError(
            f"{file.relative_to(path.resolve())}, which Manifest.json names as the model, is missing"
        )
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except DecodeError:
        raise MalformedError(f"{file.name} is not a Core ML specification, or was damaged") from None
    return spec, file.parent


def write_package(
    spec: Any, weights: Path, path: Path, check: Callable[[Path], None] = lambda _: None
) -> None:
    """Write a package: aside first, then moved into place of whatever package was there.

    Args:
        spec: the `Model` message; its maps are written in order, so that it always gives the same bytes.
        weights: folder with the weight files.
        path: of the package to write.
        check: told where the package lies before it is moved into place; what it raises leaves none behind.

    Raises:
        UserError: the disk is full, or the folder is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    with replacing(path) as new:
        model = new / "Data" / _MODEL
        model.parent.mkdir(parents=True)
        model.write_bytes(spec.SerializeToString(deterministic=True))
        (new / "Data" / _WEIGHTS).mkdir()
        for file in weights.iterdir():  # Not copytree: its error does not say why the disk refused.
            shutil.copyfile(file, new / "Data" / _WEIGHTS / file.name)
        (new / "Manifest.json").write_text(json.dumps(_manifest(), indent=4) + "\n")
        check(new)


def _manifest() -> dict[str, Any]:
    """The manifest coremltools writes, with identifiers that depend on nothing but the item's path."""

    def item(path: str, description: str) -> tuple[str, dict[str, str]]:
        identifier = str(uuid.uuid5(uuid.NAMESPACE_URL, path)).upper()
        name = PurePosixPath(path).name
        return identifier, {
            "author": "com.apple.CoreML",
            "description": description,
            "name": name,
            "path": path,
        }

    model, weights = item(_MODEL, "CoreML Model Specification"), item(_WEIGHTS, "CoreML Model Weights")
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": dict([model, weights]),
        "rootModelIdentifier": model[0],
    }


def _root_item(manifest: Path) -> str:
    """Path of the model, relative to `Data`, as the manifest gives it."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        item = content["itemInfoEntries"][content["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedError(
            "Manifest.json does not name the model (rootModelIdentifier, itemInfoEntries)"
        ) from None
    if not isinstance(item, str):
        raise MalformedError("Manifest.json does not name the model (rootModelIdentifier, itemInfoEntries)")
    return item


def _inside(package: Path, folder: Path, name: str) -> Path:
    """Resolve `name` in `folder`; no `..`, absolute path or link may lead out of `package`."""
    try:
        file = (folder / name).resolve()
    except (ValueError, OSError, RuntimeError):  # a zero byte in the name, a loop of links
        raise MalformedError(f"{name!r} is not a path") from None
    if not file.is_relative_to(package.resolve()):
        raise MalformedError(f"{name!r} leads out of the package")
    return file
