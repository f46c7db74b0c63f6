"""The deployment targets, as data: where a file will run, and how its weights are stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from converters.errors import UserError


class Format(str, Enum):
    """File format."""

    COREML = "coreml"
    LITERT = "litert"


class Storage(str, Enum):
    """How the values of weights are kept in the file; zeros are left out wherever that is smaller."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    STATIC_INT8 = "static int8"
    TABLE6 = "6-bit table"
    TABLE4 = "4-bit table"


@dataclass(frozen=True)
class Target:
    """Where a file will run.

    Attributes:
        name: public name.
        format: Core ML package or LiteRT file.
        storage: of the weight values.
        platform: lowest OS ("iOS16") of a Core ML package; linter runtime ("arm64", "web") of a LiteRT file.
        description: for `--help` and the report.
    """

    name: str
    format: Format
    storage: Storage
    platform: str
    description: str


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "coreml-ios16", Format.COREML, Storage.FLOAT16, "iOS16", "Core ML, float16, sparse where pruned"
        ),
        Target("coreml-ios16-int8", Format.COREML, Storage.INT8, "iOS16", "Core ML, int8, or sparse float16"),
        Target(
            "coreml-ios16-6bit",
            Format.COREML,
            Storage.TABLE6,
            "iOS16",
            "Core ML, 6-bit tables, or sparse float16",
        ),
        Target(
            "coreml-ios16-4bit",
            Format.COREML,
            Storage.TABLE4,
            "iOS16",
            "Core ML, 4-bit tables, or sparse float16",
        ),
        Target(
            "coreml-ios17", Format.COREML, Storage.FLOAT16, "iOS17", "Core ML, float16, sparse where pruned"
        ),
        Target(
            "coreml-ios18", Format.COREML, Storage.FLOAT16, "iOS18", "Core ML, float16, sparse where pruned"
        ),
        Target(
            "coreml-ios18-int8", Format.COREML, Storage.INT8, "iOS18", "Core ML, int8, sparse where pruned"
        ),
        Target(
            "coreml-ios18-6bit",
            Format.COREML,
            Storage.TABLE6,
            "iOS18",
            "Core ML, 6-bit tables, sparse where pruned",
        ),
        Target(
            "coreml-ios18-4bit",
            Format.COREML,
            Storage.TABLE4,
            "iOS18",
            "Core ML, 4-bit tables, sparse where pruned",
        ),
        Target(
            "litert-arm64",
            Format.LITERT,
            Storage.FLOAT32,
            "arm64",
            "LiteRT on ARM, float32, sparse where pruned",
        ),
        Target(
            "litert-arm64-int8", Format.LITERT, Storage.INT8, "arm64", "LiteRT on ARM, weights stored as int8"
        ),
        Target(
            "litert-arm64-static-int8",
            Format.LITERT,
            Storage.STATIC_INT8,
            "arm64",
            "LiteRT on ARM, dense, weights and activations int8; needs calibration images",
        ),
        Target("litert-web", Format.LITERT, Storage.FLOAT32, "web", "LiteRT.js in a browser, float32"),
        Target("litert-web-int8", Format.LITERT, Storage.INT8, "web", "LiteRT.js in a browser, int8-stored"),
    )
}


def target(name: str, format: Format | None = None) -> Target:
    """Look a target up by name, of the given format if one is named.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    choices = [t for t in TARGETS.values() if format is None or t.format is format]
    for choice in choices:
        if choice.name == name:
            return choice
    raise UserError(f"unknown target {name!r}: choose from {', '.join(t.name for t in choices)}")
