"""The deployment targets, as data: where a file will run, and how its weights are stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from converters.errors import UserError


class Storage(str, Enum):
    """How the values of weights are kept in the file; zeros are left out wherever that is smaller."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    STATIC_INT8 = "static int8"
    TABLE6 = "6-bit table"
    TABLE4 = "4-bit table"


# As fast as single zeros on ARM and in browsers at a quarter of the indices: docs/results/litert_patterns.md;
# past 75 % zeros the Neural Engine takes any pattern.
BLOCK = (1, 4)


@dataclass(frozen=True)
class Target:
    """Where a file will run.

    Attributes:
        name: public name.
        format: name of a row of `converters.format.FORMATS`.
        storage: of the weight values.
        platform: lowest OS ("iOS16") of a file for Apple's systems; linter runtime ("arm64", "web") of a
            LiteRT file.
        description: for `--help` and the report.
        sparse_values: whether zeros are left out of values of this storage; where not, a layer is stored
            either so or as sparse float16.
        block: output by input channels that are best zeroed together.
    """

    name: str
    format: str
    storage: Storage
    platform: str
    description: str
    sparse_values: bool = True
    block: tuple[int, int] = BLOCK


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("coreml-ios16", "coreml", Storage.FLOAT16, "iOS16", "Core ML, float16, sparse where pruned"),
        Target(
            "coreml-ios16-int8",
            "coreml",
            Storage.INT8,
            "iOS16",
            "Core ML, int8, or sparse float16",
            sparse_values=False,
        ),
        Target(
            "coreml-ios16-6bit",
            "coreml",
            Storage.TABLE6,
            "iOS16",
            "Core ML, 6-bit tables, or sparse float16",
            sparse_values=False,
        ),
        Target(
            "coreml-ios16-4bit",
            "coreml",
            Storage.TABLE4,
            "iOS16",
            "Core ML, 4-bit tables, or sparse float16",
            sparse_values=False,
        ),
        Target("coreml-ios17", "coreml", Storage.FLOAT16, "iOS17", "Core ML, float16, sparse where pruned"),
        Target("coreml-ios18", "coreml", Storage.FLOAT16, "iOS18", "Core ML, float16, sparse where pruned"),
        Target("coreml-ios18-int8", "coreml", Storage.INT8, "iOS18", "Core ML, int8, sparse where pruned"),
        Target(
            "coreml-ios18-6bit",
            "coreml",
            Storage.TABLE6,
            "iOS18",
            "Core ML, 6-bit tables, sparse where pruned",
        ),
        Target(
            "coreml-ios18-4bit",
            "coreml",
            Storage.TABLE4,
            "iOS18",
            "Core ML, 4-bit tables, sparse where pruned",
        ),
        Target("coreai-ios27", "coreai", Storage.FLOAT16, "iOS27", "Core AI, float16, sparse where pruned"),
        Target("coreai-ios27-int8", "coreai", Storage.INT8, "iOS27", "Core AI, int8, sparse where pruned"),
        Target(
            "coreai-ios27-6bit",
            "coreai",
            Storage.TABLE6,
            "iOS27",
            "Core AI, 6-bit tables, sparse where pruned",
        ),
        Target(
            "coreai-ios27-4bit",
            "coreai",
            Storage.TABLE4,
            "iOS27",
            "Core AI, 4-bit tables, sparse where pruned",
        ),
        Target(
            "coreai-ios27-float32",
            "coreai",
            Storage.FLOAT32,
            "iOS27",
            "Core AI, float32, sparse where pruned; to look for faults with",
        ),
        Target(
            "litert-arm64",
            "litert",
            Storage.FLOAT32,
            "arm64",
            "LiteRT on ARM, float32, sparse where pruned",
        ),
        Target("litert-arm64-int8", "litert", Storage.INT8, "arm64", "LiteRT on ARM, weights stored as int8"),
        Target(
            "litert-arm64-static-int8",
            "litert",
            Storage.STATIC_INT8,
            "arm64",
            "LiteRT on ARM, dense, weights and activations int8; needs calibration images",
            sparse_values=False,
        ),
        Target("litert-web", "litert", Storage.FLOAT32, "web", "LiteRT.js in a browser, float32"),
        Target("litert-web-int8", "litert", Storage.INT8, "web", "LiteRT.js in a browser, int8-stored"),
    )
}


# What a name may call a storage, and in which words; the first that fits counts.
_WORDS: tuple[tuple[frozenset[str], Storage], ...] = (
    (frozenset({"static", "int8"}), Storage.STATIC_INT8),
    (frozenset({"int8"}), Storage.INT8),
    (frozenset({"8bit"}), Storage.INT8),
    (frozenset({"6bit"}), Storage.TABLE6),
    (frozenset({"4bit"}), Storage.TABLE4),
    (frozenset({"float16"}), Storage.FLOAT16),
    (frozenset({"float32"}), Storage.FLOAT32),
)


def target(name: str, format: str | None = None) -> Target:
    """Look a target up by name, of the given format if one is named.

    Raises:
        UserError: there is none; the message names those that carry what was asked for, and lists all.
    """
    choices = [t for t in TARGETS.values() if format is None or t.format == format]
    for choice in choices:
        if choice.name == name:
            return choice
    names = [t.name for t in choices]
    raise UserError(f"unknown target {name!r}: {_advice(name, names)}choose from {', '.join(names)}")


def carrying(storage: Storage, *, sparse: bool) -> list[Target]:
    """The targets that store values so; `sparse`: with the zeros among them left out.

    >>> [target.name for target in carrying(Storage.INT8, sparse=True)]
    ['coreml-ios18-int8', 'coreai-ios27-int8', 'litert-arm64-int8', 'litert-web-int8']
    """
    return [t for t in TARGETS.values() if t.storage is storage and (t.sparse_values or not sparse)]


def _advice(name: str, choices: list[str]) -> str:
    """Who carries the storage that an unknown name asks for, or what the name is a slip of."""
    words = set(re.findall(r"[a-z]+\d*|\d+bit", name.lower().replace("-bit", "bit")))
    sparse = "sparse" in words
    for needed, storage in _WORDS:
        if needed <= words:
            carriers = [t.name for t in carrying(storage, sparse=sparse)]
            # of the format and for the system asked for, as far as there are any
            for word in sorted(words - needed):
                carriers = [carrier for carrier in carriers if word in carrier.split("-")] or carriers
            told = [carrier for carrier in carriers if carrier in choices] or carriers
            what = f"sparse {storage.value}" if sparse else storage.value
            names = " and ".join(told)
            return f"targets with {what} weights: {names}; " if told else f"no target has {what} weights; "
    plain = name.replace("-sparse", "")
    if sparse and plain in choices:
        return f"{plain} leaves zeros out already; "
    alike = [choice for choice in choices if _numbers(name) in ([], _numbers(choice))]
    close = get_close_matches(name.lower(), alike, n=1, cutoff=0.85)
    return f"did you mean {close[0]}? Else " if close else ""


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)
