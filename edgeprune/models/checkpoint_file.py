"""A file of weights, whoever wrote it: read without running anything in it, or named for what it is."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl", ".model")
SAVE_ONE = "save one with torch.save(model.state_dict(), path) or safetensors"
DEEPEST = 3  # Training loops keep a state dict at most this far down, e.g. under ema, then module.
MOST_KINDS = 1000  # of foreign objects in one file
HTML = (b"<!doctype html", b"<html", b"<?xml")
ZIP = b"PK\x03\x04"
OTHER_FORMATS = {  # What else ends up under such a path, by its first bytes.
    b"version https://git-lfs": (
        "it is a Git LFS pointer, which only stands for the file: fetch the file itself with git lfs pull"
    ),
    b"\x89HDF": "it is an HDF5 file, as Keras writes: only weights of a torch model can be read",
    ZIP: f"it is a zip archive, not one of torch.save: unpack it, or {SAVE_ONE}",
    b"\x1f\x8b": "it is packed with gzip: unpack it first",
    b"\xfd7zXZ": "it is packed with xz: unpack it first",
}


class Unread:
    """Stands for any object beside the weights whose class is not torch's: read past, never made."""

    def __new__(cls, *_: Any, **__: Any) -> Unread:
        """Take whatever the object would have been made of."""
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        """Drop whatever the object held."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Drop an entry, as an unknown kind of dictionary has them."""

    def append(self, _: Any) -> None:
        """Drop an entry, as an unknown kind of list has them."""

    extend = append


def state_dicts(path: Path, what: str = "checkpoint") -> dict[str, dict[str, Tensor]]:
    """Every state dict in a file, by where in it it is; "" for a file that is nothing but one.

    Args:
        path: what `torch.save` or safetensors wrote: a state dict, or anything that holds some.
        what: the file is for, in messages.

    Raises:
        UserError: what is wrong with the file: missing, a folder, another format, without weights.
    """
    told = f"{what} {path}"
    if path.is_dir():
        raise UserError(f"{told}: it is a folder; {_inside(path)}")
    if not path.is_file():
        raise UserError(f"{told}: no such file")
    content = _content(path, told)
    found = {place: state for place, state in _nested(content, "") if state}
    foreign = next(_foreign_objects(content), None)
    if not found and foreign is not None:
        raise UserError(
            f"{told}: it is a whole pickled module ({type(foreign).__name__}), which only the code that made "
            "it can read; load it there and save its weights: torch.save(model.state_dict(), path)"
        )
    if not found:
        raise UserError(f"{told}: it holds no state dict; {SAVE_ONE}")
    return found


def _inside(folder: Path) -> str:
    from converters.format import FORMATS

    for format in FORMATS.values():
        if folder.suffix == format.suffix:
            return f"a {format.title} {format.kind} has no torch weights"
    files = sorted(file.name for file in folder.iterdir() if file.suffix in SUFFIXES)
    return f"name a file in it: {', '.join(files[:5])}" if files else "there are no weights in it"


def _content(path: Path, told: str) -> Any:
    with path.open("rb") as file:
        start = file.read(512)
    fault = _not_weights(path, start)
    if fault:
        raise UserError(f"{told}: {fault}")
    try:
        # Of a safetensors file the first eight bytes are the length of the JSON after them.
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        return _unpickled(path)
    except UserError:
        raise
    except Exception as error:  # Each reader has many ways to say that a file is not its own.
        raise UserError(
            f"{told}: not a checkpoint that can be read safely ({type(error).__name__}); {SAVE_ONE}"
        ) from None


def _not_weights(path: Path, start: bytes) -> str | None:
    """What the file is instead, and what to do."""
    if not start:
        return "it is empty: copy or download it again"
    if start.lstrip().lower().startswith(HTML):
        return "it is an HTML page: download the file itself, not the page that shows it"
    if start[4:8] == b"TFL3":
        return "it is a .tflite file: only weights of a torch model can be read"
    if zipfile.is_zipfile(path):
        fault = _archive(path)
        if fault is not None:
            return fault or None
    elif start.startswith(ZIP):
        return "its end is missing: copy or download it again"
    return next((fault for begin, fault in OTHER_FORMATS.items() if start.startswith(begin)), None)


def _archive(path: Path) -> str | None:
    """What a zip archive is instead of a checkpoint; "" for a checkpoint, None where this is not known."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # Of a damaged archive zipfile raises more than BadZipFile.
        return "its table of contents is damaged: copy or download it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "it is TorchScript; save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
        )
    if any(name.endswith(("/archive_format", "serialized_exported_program.json")) for name in names):
        return (
            "it is an exported program (.pt2); save its weights: "
            "torch.save(torch.export.load(path).state_dict, 'weights.pt')"
        )
    return "" if any(name.endswith("data.pkl") for name in names) else None


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote; of what is not torch's nothing is made or run."""
    known: list[Any] = []
    for _ in range(MOST_KINDS):
        try:
            with torch.serialization.safe_globals(known):
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            name = _foreign(str(error))
            if name is None:
                raise
            known.append((type(name, (Unread,), {}), name))
    raise UserError(f"checkpoint {path}: more than {MOST_KINDS} kinds of foreign objects; {SAVE_ONE}")


def _foreign(message: str) -> str | None:
    """The name of a class that torch's safe reader does not know, of its error's message."""
    import re

    found = re.search(r"GLOBAL (\S+) was not an allowed global", message)
    if found is None:
        return None
    name = found.group(1)
    return name if "." in name else f"builtins.{name}"


def _nested(content: Any, place: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping from names to tensors in `content`, and where it is."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if all(isinstance(key, str) for key in tensors):
        yield place, tensors
    for key, value in content.items():
        yield from _nested(value, f"{place}.{key}".lstrip("."), depth + 1)


def _foreign_objects(content: Any) -> Iterator[Unread]:
    """Objects in `content` whose class is not torch's."""
    if isinstance(content, Unread):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from _foreign_objects(value)
