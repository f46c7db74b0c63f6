"""Plain data (from JSON or TOML) into frozen dataclasses; whatever does not fit is refused, all at once."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from converters.errors import UserError

T = TypeVar("T")
LARGEST = sys.float_info.max  # NaN compares with nothing, and a whole number can be larger.

_SIMPLE = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    type(None): "null",
    Path: "a path, as text",
}


def build(cls: type[T], data: object, where: str) -> T:
    """Make a `cls` (a dataclass) from plain data.

    Nothing is converted but a whole number to a float, a list to a tuple and text to a path.

    Args:
        cls: its fields may be typed with str, bool, int, float, Path, Any, other such dataclasses, and dict,
            Mapping, tuple and Optional of these.
        data: what `json.loads` or `tomllib.loads` gives.
        where: what the data is, for messages.

    Raises:
        UserError: every missing, unknown or wrong field, one line each.
    """
    problems: list[str] = []
    result = _value(cls, data, where, problems)
    if problems:
        raise UserError(problems)
    return typing.cast(T, result)


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        advice: what makes it, or what to do about it, for the message.

    Raises:
        UserError: it is not there, or holds something else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {advice}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, NaN in it, or nested without end
        raise UserError(f"{path} is not JSON: {error}; {advice}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number JSON knows")


def not_plain(data: object, where: str) -> Iterator[str]:
    """Name everything in `data` that JSON cannot hold: NaN, infinities, objects, keys that are not text."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                yield f"{where}: key {key!r} is not text"
            yield from not_plain(value, f"{where}.{key}")
    elif isinstance(data, (list, tuple)):
        for index, value in enumerate(data):
            yield from not_plain(value, f"{where}[{index}]")
    elif isinstance(data, float) and not math.isfinite(data):
        yield f"{where} is {data}, which is not a finite number"
    elif not (data is None or isinstance(data, (str, bool, int, float))):
        yield f"{where} is a {type(data).__name__}, which JSON cannot hold"


def _value(kind: Any, data: object, where: str, problems: list[str]) -> object:
    if type(data) is kind and kind in (str, int, bool):  # Most of what a report holds.
        return data
    if kind is Any:
        problems.extend(not_plain(data, where))
        return data
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _record(kind, data, where, problems)
    if origin in (typing.Union, types.UnionType):  # only Optional is used
        if data is None:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _value(inner, data, where, problems)
    if origin is tuple:
        return _tuple(arguments, data, where, problems)
    if origin is not None:  # dict[str, X] or Mapping[str, X]
        if not isinstance(data, dict):
            problems.append(f"{where} must be an object with named values, not {shown(data)}")
            return {}
        return {key: _value(arguments[1], value, f"{where}.{key}", problems) for key, value in data.items()}
    if kind is Path and isinstance(data, str):
        return Path(data)
    if not _fits(kind, data):
        problems.append(f"{where} must be {_SIMPLE[kind]}, not {shown(data)}")
        return data
    return float(typing.cast(float, data)) if kind is float else data


def _fits(kind: type, data: object) -> bool:
    if kind is float:
        return isinstance(data, (int, float)) and not isinstance(data, bool) and abs(data) <= LARGEST
    return isinstance(data, kind) and (kind is bool or not isinstance(data, bool))


def _record(cls: Any, data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, dict):
        problems.append(f"{where} must be an object with named values, not {shown(data)}")
        return None
    kinds, required = _fields(cls)
    problems.extend(f"{where} lacks {name!r}" for name in required if name not in data)
    problems.extend(
        f"{where} has an unknown field {name!r}: the fields are {', '.join(kinds)}"
        for name in data
        if name not in kinds
    )
    before = len(problems)
    values = {
        name: _value(kind, data[name], f"{where}.{name}", problems)
        for name, kind in kinds.items()
        if name in data
    }
    complete = len(problems) == before and all(name in data for name in required)
    return cls(**values) if complete else None


@functools.cache  # A report holds thousands of records of a few kinds.
def _fields(cls: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The types of a dataclass's fields, and the names of those that must be given."""
    required = tuple(
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return typing.get_type_hints(cls), required


def _tuple(arguments: tuple[Any, ...], data: object, where: str, problems: list[str]) -> object:
    if not isinstance(data, (list, tuple)):
        problems.append(f"{where} must be a list, not {shown(data)}")
        return ()
    if arguments[-1] is not Ellipsis and len(data) != len(arguments):
        problems.append(f"{where} must have {len(arguments)} values, not {len(data)}")
        return ()
    kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
    return tuple(
        _value(kind, value, f"{where}[{index}]", problems)
        for index, (kind, value) in enumerate(zip(kinds, data, strict=True))
    )


def shown(data: object) -> str:
    """A value in a message, shortened."""
    text = "null" if data is None else repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
