"""The JSON Schema of `report.json`, made from the records themselves.

    python -m edgeprune.report.schema > docs/report.schema.json

writes it down again after a record has changed; a test holds the two equal.
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
from edgeprune.evaluation import records as evaluation
from edgeprune.report import records
from edgeprune.tasks import metrics

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NUMBER_OR_NULL = {"anyOf": [{"type": "number"}, {"type": "null"}]}
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
    for name, whose, lost in (("Row", "the file", True), ("Training", "the float32 torch model", False)):
        _score_by_metric(definitions[name], whose, lost)
    _score_of_one_metric(definitions["Sensitivity"])
    del definitions["Report"]["properties"]["analyses"]
    for key, record in records.sections().items():
        listed = {"type": "array", "items": _schema(record, definitions)}
        definitions["Report"]["properties"][key] = listed
    epochs = definitions["Training"]["properties"]["epochs"]
    epochs["items"] = {"type": "object", "additionalProperties": {"type": "number"}}
    return {"$schema": DIALECT, "title": "report.json of edgeprune", **root, "$defs": definitions}


def _score_by_metric(definition: dict[str, Any], whose: str, lost: bool) -> None:
    """Have a record's score under the keys of the metrics: one is a number, a null top1 has its reason."""
    own = {"metric", "score", "drop_points"}
    known, properties = metrics(), definition["properties"]
    fields: dict[str, Any] = {}
    for metric in known:
        told = (
            f"{metric.heading} of {whose} on the held-out images; null: not what this model is measured by."
        )
        fields[metric.key] = {**_NUMBER_OR_NULL, "minimum": 0, "maximum": 1, "description": told}
        if lost:
            told = "Percentage points below the dense float32 torch model on the same images."
            fields[f"{metric.key}{evaluation.DROP}"] = {**_NUMBER_OR_NULL, "description": told}
    kept = {name: value for name, value in properties.items() if name not in own}
    definition["properties"] = {"variant": kept.pop("variant"), **fields, **kept}
    always = [key for key in fields if key.removesuffix(evaluation.DROP) == evaluation.ALWAYS[0]]
    definition["required"] = [name for name in definition["required"] if name not in own] + always
    definition["anyOf"] = [
        {
            "properties": {
                key: {"type": "number" if key.removesuffix(evaluation.DROP) == metric.key else "null"}
                for key in fields
            },
            "required": [key for key in fields if key.removesuffix(evaluation.DROP) == metric.key],
        }
        for metric in known
    ]
    definition["allOf"] = [
        {
            "if": {"properties": {evaluation.ALWAYS[0]: {"type": "null"}}},
            "then": {
                "properties": {
                    "not_measured": {
                        "properties": {evaluation.ALWAYS[0]: {"type": "string", "minLength": 1}},
                        "required": [evaluation.ALWAYS[0]],
                    }
                },
                "required": ["not_measured"],
            },
        }
    ]


def _score_of_one_metric(definition: dict[str, Any]) -> None:
    """Have the score of a sensitivity under the key of its metric."""
    kept = {k: v for k, v in definition["properties"].items() if k not in ("metric", "score")}
    scores = {metric.key: {"type": "number", "minimum": 0, "maximum": 1} for metric in metrics()}
    definition["properties"] = {**kept, **scores}
    definition["required"] = [name for name in definition["required"] if name not in ("metric", "score")]
    definition["oneOf"] = [{"required": [key]} for key in scores]


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
