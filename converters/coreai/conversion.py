"""Write a torch module as a Core AI model, each weight as small as the target allows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters import agreement, arguments
from converters.arguments import FLOAT16_LIMIT
from converters.coreai import encoding
from converters.coreai.apart import facts_of
from converters.coreai.checking import check_computes, check_narrow
from converters.coreai.description import describe
from converters.coreai.framework import mlir, quiet
from converters.coreai.inspection import name_layers
from converters.coreai.package import metadata_content, path_problems, write_asset
from converters.coreai.precision import narrow
from converters.coreai.program import StoredWeight, decode, distinct, layer_uses, producer
from converters.coreai.runtime import module_of, program_bytes
from converters.deployed import Deployed, named_results
from converters.errors import ToolError, UserError
from converters.facts import Converted, LayerFacts, Normalization, size_bytes
from converters.head import with_pointwise_layers
from converters.layers import WeightedLayer, weighted_layers
from converters.targets import Storage
from converters.targets import target as target_named

FORMAT = "coreai"
IMAGE_CHANNELS = 3
INPUT = "image"
# Of the program in messages, before it has a file.
NAME = "the Core AI program"


@dataclass(frozen=True)
class Prepared:
    """A model converted once, to be written for several targets.

    Attributes:
        given: the model, in eval mode.
        model: the same, linear layers of one vector an image made convolutions.
        layers: its weighted layers in execution order.
        program: Apple's, in float32.
        normalization: done by the file, where there is any.
        shape: of the image, (channels, height, width).
        answer: shape of its one output, a batch of one; None where it gives several.
        probe: images, and what the model gives for them.
    """

    given: nn.Module
    model: nn.Module
    layers: tuple[WeightedLayer, ...]
    program: Any
    normalization: Normalization | None
    shape: tuple[int, int, int]
    answer: tuple[int, ...] | None
    probe: agreement.Probe

    def program_for(self, storage: Storage) -> Any:
        """A copy of the program that computes as files of this storage do, weights not compressed."""
        return copy.deepcopy(self.program if storage is Storage.FLOAT32 else self._narrowed)

    @functools.cached_property
    def _narrowed(self) -> Any:
        """The program in float16, held against the model."""
        _check_range(self.program)
        program = copy.deepcopy(self.program)
        with quiet():
            narrow(module_of(program))
            content = program_bytes(program)
        check_narrow(content, self.given, self.probe, NAME)
        return program


def convert(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    target: str = "coreai-ios27",
    labels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Convert a model, store its weights as small as the target allows, and write the folder.

    Args:
        model: in eval mode, with its zeros already in its weights; it is not changed. It gives a tensor, or a
            dict, list or tuple of them (of a dict that has "out" that alone).
        example: (1, 3, h, w) float32, of the size the file will take.
        path: of the folder, ending in ".aimodel"; a model that is there already is replaced.
        target: name of a Core AI target.
        labels: class names in output order, for the metadata.
        normalization: folded in, so that the file takes RGB pixels in [0, 255].
        metadata: "short_description", "author" and "license" go where Apple has them, any other key among the
            creator's own entries.

    Returns:
        What was written, read back from the disk; the layers named as `model.named_modules()` names them.

    Raises:
        UserError: the model, the example or an option is not what it should be.
        ToolError: torch or coreai-torch cannot convert the model, or the file does not hold what was meant.
    """
    path = Path(path)
    target_named(target, FORMAT)
    problems = path_problems(path)
    prepared = prepare(model, example, normalization, problems=problems)
    return write(prepared, target, path, labels=labels, metadata=metadata)


def prepare(
    model: nn.Module,
    example: Tensor,
    normalization: Normalization | None = None,
    *,
    problems: Sequence[str] = (),
) -> Prepared:
    """The slow half of `convert`, which targets share: trace the model and let coreai-torch convert it.

    Args:
        model: see `convert`, as for the other arguments.
        example: as above.
        normalization: as above.
        problems: found already, to be told together with those found here.

    Raises:
        UserError: the model or the example is not what it should be.
        ToolError: torch or coreai-torch cannot convert the model.
    """
    problems = [
        *problems,
        *arguments.example_problems(example, IMAGE_CHANNELS),
        *arguments.normalization_problems(normalization, IMAGE_CHANNELS),
        *arguments.model_problems(model),
    ]
    if problems:
        raise UserError(problems)
    probe = agreement.probe(model, example, normalization)
    changed = with_pointwise_layers(model, example)
    given = arguments.results_of(arguments.outputs_of(changed, example))
    results = named_results(given)
    first = next(iter(given.values()))
    answer = tuple(first.shape) if len(results) == 1 else None
    program = _program(Deployed(changed, normalization, results), example, list(results))
    check_computes(program_bytes(program), model, probe, NAME)
    layers = tuple(weighted_layers(changed, example))
    _, channels, height, width = example.shape
    shape = (channels, height, width)
    return Prepared(model, changed, layers, program, normalization, shape, answer, probe)


def write(
    prepared: Prepared,
    target: str,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """The quick half of `convert`: store the weights as one target has them, write, and read back.

    Raises:
        UserError: see `convert`.
        ToolError: the file does not hold what was meant.
    """
    path = Path(path)
    found = target_named(target, FORMAT)
    problems = path_problems(path)
    if labels is not None and prepared.answer is None:
        problems.append("labels were given, and the model gives several outputs")
    problems += arguments.label_problems(labels, prepared.answer)
    if problems:
        raise UserError(problems)
    try:
        with quiet():
            content, meant = _encoded(prepared, found.storage)
    except UserError:
        raise
    except Exception as error:  # whatever the beta packages raise
        raise ToolError(f"Core AI could not store the model for {target}: {_first_line(error)}") from error
    read = facts_of(path, content)
    _check_stored(read.weights, meant)
    named = name_layers(read, prepared.layers)
    _check_zeros(prepared.model, named)
    own = describe(prepared.shape, labels, prepared.normalization, read.weights)
    write_asset(path, content, metadata_content(metadata or {}, own, _producer()))
    return Converted(path, target, size_bytes(path), tuple(fact for fact, _ in named))


def _program(deployed: Deployed, example: Tensor, outputs: list[str]) -> Any:
    with quiet():
        import coreai_torch
    try:
        with torch.no_grad(), quiet():
            exported = torch.export.export(deployed, (example.detach().cpu().contiguous(),))
            exported = exported.run_decompositions(coreai_torch.get_decomp_table())
    except Exception as error:  # torch.export raises whatever the model's own code does
        raise ToolError(f"torch.export could not trace the model: {_first_line(error)}") from error
    try:
        with quiet():
            converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
            converter.add_exported_program(exported, input_names=[INPUT], output_names=outputs)
            return converter.to_coreai()
    except Exception as error:
        raise ToolError(f"coreai-torch could not convert the model: {_first_line(error)}") from error


def _encoded(prepared: Prepared, storage: Storage) -> tuple[bytes, list[encoding.Planned]]:
    """The program with each weight in its smallest encoding, as bytes, and what each is to be read as."""
    program = prepared.program_for(storage)
    module = module_of(program)
    meant = []
    with module.context, mlir.Location.unknown():
        for use in distinct(layer_uses(module)):
            weight = decode(use.source)
            if weight is None:
                raise ToolError(f"the weight of {use.operation.name} is not constant")
            planned = encoding.plan(weight.value, storage, use.kind, 1 if use.transposed else 0)
            operation = producer(use.source)
            with mlir.InsertionPoint(operation):
                use.source.replace_all_uses_with(encoding.write(planned))
            operation.operation.erase()
            value = planned.value.T if use.transposed else planned.value
            meant.append(encoding.Planned(planned.encoding, planned.stored, np.ascontiguousarray(value)))
    return program_bytes(program), meant


def _check_range(program: Any) -> None:
    """Refuse weights that float16, the type the Neural Engine computes with, cannot hold."""
    module = module_of(program)
    with module.context:
        weights = [decode(use.source) for use in layer_uses(module)]
    largest = [float(np.abs(weight.value).max()) for weight in weights if weight is not None]
    problems = [
        f"layer {number} has weights up to {value:,.0f} once batch norms are folded in, and float16 ends at "
        f"{FLOAT16_LIMIT:,.0f}"
        for number, value in enumerate(largest)
        if value > FLOAT16_LIMIT
    ]
    if problems:
        raise UserError(problems)


def _check_stored(weights: Sequence[StoredWeight], meant: Sequence[encoding.Planned]) -> None:
    """Compare every weight, decoded from the bytes to be written, with what was meant: bit for bit."""
    if len(weights) != len(meant):
        raise ToolError(f"Core AI stored {len(weights)} weights of {len(meant)}")
    for weight, planned in zip(weights, meant, strict=True):
        if weight.encoding != planned.encoding.name:
            raise ToolError(
                f"{weight.name} was to be stored as {planned.encoding.name}, and is {weight.encoding}"
            )
        same = weight.value.shape == planned.value.shape and weight.value.dtype == planned.value.dtype
        if not same or weight.value.tobytes() != planned.value.tobytes():
            raise ToolError(f"{weight.name} is not stored as it was meant")


def _check_zeros(model: nn.Module, named: Sequence[tuple[LayerFacts, StoredWeight]]) -> None:
    """Make sure that every zero of the model is one in the file, in the layer it was taken for."""
    modules = dict(model.named_modules())
    for fact, weight in named:
        if fact.name not in modules:
            continue
        original = modules[fact.name].get_parameter("weight").detach().cpu().numpy()
        lost = np.count_nonzero(weight.value[original.reshape(weight.value.shape) == 0])
        if lost:
            raise ToolError(f"{fact.name}: {lost:,} of its zeros are not zero as Core AI stored them")


def _producer() -> str:
    from importlib.metadata import version

    return f"coreai-core {version('coreai-core')}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
