"""The JSON Schema of `report.json`, made from the records themselves.

    python -m edgeprune.report.schema > docs/report.schema.json

writes it down anew after a record has changed; a test holds the two equal.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.facts import LayerFacts
from edgeprune.report import records

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SIMPLE = {
    str: {"type": "string"},
    Path: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
}


def report_schema() -> dict[str, Any]:
    """What `records.from_json` takes, as far as JSON Schema can say it."""
    definitions: dict[str, Any] = {}
    root = _schema(records.Report, definitions)
    # What the records leave open and the reader looks at.
    definitions["Report"]["properties"]["schema"]["const"] = records.SCHEMA
    definitions["Report"]["required"].append("schema")
    definitions["Row"]["properties"]["layers"]["items"] = _schema(LayerFacts, definitions)
    definitions["Row"]["if"] = {"properties": {"sparse_runtime": {"type": "null"}}}
    definitions["Row"]["then"] = {"properties": {"sparse_runtime_reason": {"type": "string", "minLength": 1}}}
    definitions["Row"]["allOf"] = _one_metric(lost=True)
    definitions["Training"]["allOf"] = _one_metric(lost=False)
    epochs = definitions["Training"]["properties"]["epochs"]
    epochs["items"] = {"type": "object", "additionalProperties": {"type": "number"}}
    return {"$schema": DIALECT, "title": "report.json of edgeprune", **root, "$defs": definitions}


def _one_metric(lost: bool) -> list[dict[str, Any]]:
    """Of the metrics one is a number, with the points `lost` of it, and a null top1 has its reason."""
    number, null = {"type": "number"}, {"type": "null"}
    top1, miou = ([name, f"{name}_drop_points"] if lost else [name] for name in records.METRICS)
    reason = {"properties": {"top1": {"type": "string", "minLength": 1}}, "required": ["top1"]}
    maps = {**dict.fromkeys(top1, null), **dict.fromkeys(miou, number), "not_measured": reason}
    return [
        {
            "if": {"properties": {"top1": number}},
            "then": {"properties": {**dict.fromkeys(top1, number), **dict.fromkeys(miou, null)}},
            "else": {"properties": maps, "required": [*miou, "not_measured"]},
        }
    ]


def to_text(schema: Mapping[str, Any]) -> str:
    """A schema as the text of a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type that `parsing.build` knows; dataclasses go into `definitions`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # Taken, should one of its fields be of its own kind.
            definitions[kind.__name__].update(_record(kind, definitions))
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        items = [_schema(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is not None:  # dict[str, X] or Mapping[str, X]
        return {"type": "object", "additionalProperties": _schema(arguments[1], definitions)}
    return dict(_SIMPLE[kind])


def _record(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    kinds, told = typing.get_type_hints(cls), _attributes(cls)
    fields = dataclasses.fields(cls)
    properties = {}
    for field in fields:
        described = {"description": told[field.name]} if field.name in told else {}
        properties[field.name] = {
            **_schema(kinds[field.name], definitions),
            **_range(field.name),
            **described,
        }
    required = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {
        "type": "object",
        "description": inspect.getdoc(cls).split("\n")[0],  # type: ignore[union-attr]
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _range(name: str) -> dict[str, Any]:
    """The range that the reader holds a number of this name to; JSON Schema lets null pass it."""
    if name in records.FRACTIONS:
        return {"minimum": 0, "maximum": 1}
    if name in records.NOT_NEGATIVE:
        return {"minimum": 0}
    return {"exclusiveMinimum": 0} if name in records.POSITIVE else {}


def _attributes(cls: Any) -> dict[str, str]:
    """What the docstring says of each field: `name: text`, or `one, two: text`."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    told: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section.split("\n\n")[0]):
        names, _, text = " ".join(entry.split()).partition(": ")
        told.update(dict.fromkeys(names.split(", "), text))
    return told


if __name__ == "__main__":
    sys.stdout.write(to_text(report_schema()))
