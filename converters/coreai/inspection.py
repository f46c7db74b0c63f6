"""The facts about a Core AI model: every weight as stored, what it takes, what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.coreai.apart import Answer, facts_of
from converters.coreai.description import input_spec
from converters.coreai.package import Asset, DamagedFileError, read_asset
from converters.coreai.program import StoredWeight
from converters.facts import InputSpec, LayerFacts, size_bytes
from converters.layers import WeightedLayer, matching

LOWEST_OS = "iOS 27, macOS 27"
# Above this share, zeros that are stored like any other value deserve a word.
_MANY_ZEROS = 0.05


@dataclass(frozen=True)
class Inspection:
    """A model, looked at.

    Attributes:
        path: of the folder.
        bytes: of all its files.
        lowest_os: that runs it.
        input: what it takes.
        layers: the weights of convolutions and linear layers, in execution order, named by their place.
        operations: how many of each, constants and what decodes them left out.
        metadata: texts by key, as given to `convert`.
    """

    path: Path
    bytes: int
    lowest_os: str
    input: InputSpec
    layers: tuple[LayerFacts, ...]
    operations: Mapping[str, int]
    metadata: Mapping[str, str]


def decode(path: str | Path) -> tuple[StoredWeight, ...]:
    """The weight of every convolution and linear layer as it is stored, in the order they are first used.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    asset = read_asset(Path(path))
    return facts_of(asset.path, asset.program).weights


def inspect(path: str | Path) -> Inspection:
    """The facts about a model.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    asset = read_asset(Path(path))
    answer = facts_of(asset.path, asset.program)
    return Inspection(
        path=asset.path,
        bytes=size_bytes(asset.path),
        lowest_os=LOWEST_OS,
        input=spec_of(asset, answer),
        layers=tuple(_facts(weight, weight.name, weight.kind) for weight in answer.weights),
        operations=dict(sorted(answer.operations.items())),
        metadata=asset.texts(),
    )


def spec_of(asset: Asset, answer: Answer) -> InputSpec:
    """What a model takes.

    Raises:
        UserError: it is something else than one image.
    """
    if len(answer.inputs) != 1:
        raise DamagedFileError(asset.path, f"takes {len(answer.inputs)} inputs, expected one image")
    shape = answer.inputs[0][1]
    if len(shape) != 4 or shape[:2] != (1, 3):
        raise DamagedFileError(asset.path, f"takes an input of shape {shape}, expected (1, 3, height, width)")
    return input_spec(asset.custom, (shape[1], shape[2], shape[3]))


def name_layers(answer: Answer, layers: Sequence[WeightedLayer]) -> list[tuple[LayerFacts, StoredWeight]]:
    """Pair the weights in a file with the layers of the model.

    A weight is known by its values, see `layers.matching`; one that is like no layer's keeps the file's own
    name.
    """
    left = list(layers)
    # Two layers with the same weight are stored as one, and used as two.
    shared = len(answer.uses) == len(layers)
    weights = [answer.weights[number] for number in answer.uses] if shared else answer.weights
    pairs = []
    for weight in weights:
        match = matching(weight.value, left)
        if match is not None:
            left.remove(match)
        name, kind = (match.name, match.kind) if match is not None else (weight.name, weight.kind)
        pairs.append((_facts(weight, name, kind), weight))
    return pairs


def _facts(weight: StoredWeight, name: str, kind: str) -> LayerFacts:
    return LayerFacts(
        name=name,
        kind=kind,
        shape=tuple(weight.value.shape),
        zero_fraction=weight.zero_fraction,
        bits_per_weight=weight.bits_per_weight,
        encoding=weight.encoding,
        note=_note(weight),
    )


def _note(weight: StoredWeight) -> str | None:
    """Why a weight that has zeros is stored dense; None where there is nothing to explain."""
    if weight.encoding.startswith("sparse") or weight.zero_fraction < _MANY_ZEROS:
        return None
    stored = f"{weight.zero_fraction:.0%} of {weight.value.size:,} weights are zero, stored dense:"
    if weight.zero_fraction == 1:
        return f"{stored} there is no empty list of values"
    return f"{stored} with a mask of a bit for each weight they would take more"
