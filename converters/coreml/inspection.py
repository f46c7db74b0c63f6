"""The facts about a Core ML package: every weight as stored, what runs it, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.accelerators import Backend
from converters.coreml.accelerators import examine
from converters.coreml.compression import JOINT_SPECIFICATION, Encoding, encoded_bytes, statistics
from converters.coreml.evaluation import input_spec, well_formed
from converters.coreml.neural_engine import leaving_operations, skips
from converters.coreml.package import Contents, read_package
from converters.coreml.program import (
    Program,
    StoredWeight,
    layer_uses,
    layer_weights,
    read_program,
    stored_weights,
)
from converters.facts import InputSpec, LayerFacts, size_bytes
from converters.layers import WeightedLayer, matching
from converters.targets import Storage, carrying

# Lowest systems by specification version.
_SYSTEMS = {
    6: "iOS 15, macOS 12",
    7: "iOS 16, macOS 13",
    8: "iOS 17, macOS 14",
    9: "iOS 18, macOS 15",
    10: "iOS 26, macOS 26",
}


@dataclass(frozen=True)
class Inspection:
    """A package, looked at.

    Attributes:
        path: of the package.
        bytes: of all its files.
        lowest_os: that runs it, e.g. "iOS 16, macOS 13".
        input: what it takes.
        layers: the weights of convolutions and linear layers, in execution order, named as in the file.
        operations: how many of each, constants left out.
        skipped: layers whose zeros the Neural Engine may skip, by name, and why.
        leaving: operations known to leave the Neural Engine, a line each.
        accelerators: what is known of each operation on them.
        metadata: texts by key, as given to `convert`.
    """

    path: Path
    bytes: int
    lowest_os: str
    input: InputSpec
    layers: tuple[LayerFacts, ...]
    operations: Mapping[str, int]
    skipped: Mapping[str, str]
    leaving: tuple[str, ...]
    accelerators: tuple[Backend, ...]
    metadata: Mapping[str, str]


def decode(path: str | Path) -> tuple[StoredWeight, ...]:
    """Every floating point constant of a package as it is stored, in the order they are used.

    Raises:
        UserError: there is no such package, or it is damaged.
    """
    return stored_weights(_read(Path(path))[1])


def inspect(path: str | Path) -> Inspection:
    """The facts about a package.

    Raises:
        UserError: there is no such package, or it is damaged.
    """
    path = Path(path)
    contents, program = _read(path)
    with well_formed(path):
        taken = input_spec(contents, program)
    version = contents.spec.specificationVersion
    weights = layer_weights(program)
    return Inspection(
        path=path,
        bytes=size_bytes(path),
        lowest_os=_SYSTEMS.get(version, f"unknown (specification version {version})"),
        input=taken,
        layers=tuple(_facts(weight, weight.name, version) for weight in weights),
        operations=dict(sorted(Counter(operation.type for operation in program.operations).items())),
        skipped={weight.name: why for weight in weights if (why := skips(weight))},
        leaving=leaving_operations(program),
        accelerators=examine(program),
        metadata=_metadata(contents),
    )


def layer_facts(path: Path, layers: Sequence[WeightedLayer]) -> tuple[LayerFacts, ...]:
    """The weights of a package's layers, named after the torch modules they came from."""
    contents, program = _read(path)
    return tuple(facts for facts, _ in name_layers(program, layers, contents.spec.specificationVersion))


def name_layers(
    program: Program, layers: Sequence[WeightedLayer], specification: int
) -> list[tuple[LayerFacts, StoredWeight]]:
    """Pair the weights in a file with the layers of the model.

    A weight is known by its values, see `layers.matching`; one that is like no layer's keeps the file's own
    name: that of a transposed convolution, for one.
    """
    left = list(layers)
    # Layers of equal weights share one constant, and so does a layer that runs twice; the model lists the
    # first as two, the second as one.
    uses = layer_uses(program)
    pairs = []
    for weight in uses if len(uses) == len(layers) else layer_weights(program):
        match = matching(weight.value, left) if weight.value.ndim > 1 else None
        if match is None:
            pairs.append((_facts(weight, weight.name, specification), weight))
            continue
        left.remove(match)
        pairs.append((_facts(weight, match.name, specification, match.kind), weight))
    return pairs


def _read(path: Path) -> tuple[Contents, Program]:
    with well_formed(path):
        contents = read_package(path)
        return contents, read_program(contents)


def _facts(weight: StoredWeight, name: str, specification: int, kind: str | None = None) -> LayerFacts:
    return LayerFacts(
        name=name,
        kind=kind or weight.kind,
        shape=tuple(weight.value.shape),
        zero_fraction=weight.zero_fraction,
        bits_per_weight=weight.bits_per_weight,
        encoding=weight.encoding,
        note=_note(weight, specification),
    )


# Above this share, zeros that are stored like any other value deserve a word.
_MANY_ZEROS = 0.05


def _note(weight: StoredWeight, specification: int) -> str | None:
    """Why a weight that has zeros is stored dense; None where there is nothing to explain."""
    if weight.encoding.startswith("sparse") or weight.zero_fraction < _MANY_ZEROS:
        return None
    stored = f"{weight.zero_fraction:.0%} of {weight.value.size:,} weights are zero, stored dense:"
    if weight.zero_fraction == 1:
        return f"{stored} Core ML has no empty list of values"
    if weight.encoding not in {storage.value for storage in Storage}:
        return f"{stored} their encoding keeps them"
    storage, counts = Storage(weight.encoding), statistics(weight.value)
    if storage is not Storage.FLOAT16 and specification < JOINT_SPECIFICATION:
        carriers = [t.name for t in carrying(storage, sparse=True) if t.format == "coreml"]
        return f"{stored} zeros left out of {weight.encoding} values need {' or '.join(carriers)}"
    dense, sparse = (encoded_bytes(Encoding(storage, left_out), counts) for left_out in (False, True))
    if sparse < dense:
        return f"{stored} leaving them out would take {sparse:,} bytes instead of {dense:,}"
    return (
        f"{stored} leaving them out takes {sparse:,} bytes, mask and padding included, instead of {dense:,}"
    )


def _metadata(contents: Contents) -> dict[str, str]:
    metadata = contents.spec.description.metadata
    fields = {
        "short_description": metadata.shortDescription,
        "author": metadata.author,
        "license": metadata.license,
        "version": metadata.versionString,
    }
    return {key: text for key, text in fields.items() if text} | dict(sorted(metadata.userDefined.items()))
