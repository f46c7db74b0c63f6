"""A torch module or Keras model in, a `.tflite` file out whose zeros make it smaller, and faster where the
runtime can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converters import agreement, arguments, targets
from converters.errors import UserError
from converters.facts import Converted, Normalization, size_bytes
from converters.files import replacing
from converters.layers import WeightedLayer, matching, weighted_layers
from converters.litert import checking, keras_models, repair, storage
from converters.litert import metadata as file_metadata
from converters.litert.graph import Graph, read, weights
from converters.litert.inspection import layer_facts, torch_layout
from converters.litert.lowering import MAX_PIXEL, image_shape, lower
from converters.litert.quantize import MIN_CALIBRATION_IMAGES, static_int8


def convert(
    model: nn.Module | Any,
    example: torch.Tensor,
    path: Path | str,
    *,
    target: str = "litert-arm64",
    labels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    fold_normalization: bool = True,
    metadata: Mapping[str, str] | None = None,
    lowered: bytes | None = None,
    calibration: np.ndarray | None = None,
) -> Converted:
    """Write `model` as a `.tflite` file.

    Args:
        model: a torch module in eval mode, or, with the `tensorflow` extra, a Keras model; its zeros already
            in its weights; it is not modified. Where it gives maps (1, classes, height, width) the file gives
            them as (1, height, width, classes).
        example: (1, channels, height, width) float32, also for a Keras model; only its shape counts.
        path: the file to write, replaced if it is there.
        target: a LiteRT target of `converters.targets`.
        labels: class names in output order, stored in the file.
        normalization: what the model wants done to pixels; the file says so.
        fold_normalization: the file takes plain pixels in [0, 255] and normalises them itself. Otherwise the
            app does, as the file says.
        metadata: further entries to store in the file.
        lowered: what `lower` made of the same model, and of the normalisation where that is folded; saves
            making it again for each target.
        calibration: real images for a static int8 target, (n, channels, height, width) float32, what the file
            takes: plain pixels where it normalises them itself.

    Raises:
        UserError: the model is in training mode, or an argument is not what it must be.
        ToolError: litert-torch, or TensorFlow, cannot convert the model.
    """
    chosen = targets.target(target, targets.Format.LITERT)
    path = Path(path)
    done_inside = normalization if fold_normalization else None
    source = _source(model, example, path, labels, normalization, done_inside)
    static = chosen.storage is targets.Storage.STATIC_INT8
    if static:
        images = _calibration(calibration, image_shape(example), source.takes_pixels)

    graph = read(lower(model, example, done_inside) if lowered is None else lowered, path.name)
    name_weights(graph, source.layers)
    repair.repair(graph)
    name_tensors(graph)
    exact = [graph.constant(tensor) for _, tensor in weights(graph)]
    if chosen.storage is not targets.Storage.FLOAT32:
        source.check_computes(graph, path)
    if static:
        storage.drop_unused(graph)  # the calibrator looks at every tensor there is
        graph = static_int8(graph, images)
    else:
        storage.store_weights(graph, chosen.storage)
        repair.repair_sparse(graph)
    shape = image_shape(example)
    described = file_metadata.describe(
        shape, labels, source.normalization or normalization, source.takes_pixels, metadata
    )
    file_metadata.write(graph, described)
    storage.drop_unused(graph)
    storage.share_buffers(graph)

    with replacing(path) as temporary:
        temporary.write_bytes(graph.to_bytes())
        written = read(temporary.read_bytes(), path.name)
        checking.check_rounding(exact, written, path.name)
        if chosen.storage is targets.Storage.FLOAT32:
            source.check_computes(written, path)
        else:
            checking.check_runs_as_stored(written, temporary.read_bytes(), source.probe, static, path.name)
    return Converted(path, chosen.name, size_bytes(path), layer_facts(graph))


@dataclass(frozen=True)
class _Source:
    """What a file is made from, looked at before.

    Attributes:
        model: the torch module; None where it is a Keras model.
        layers: in execution order.
        normalization: that a Keras model does itself.
        takes_pixels: whether the file takes plain pixels in [0, 255].
        probe: images, and what the model gives for them.
    """

    model: nn.Module | None
    layers: Sequence[WeightedLayer]
    normalization: Normalization | None
    takes_pixels: bool
    probe: agreement.Probe

    def check_computes(self, graph: Graph, path: Path) -> None:
        """See `checking.check_computes`."""
        checking.check_computes(graph, graph.to_bytes(), self.model, self.probe, path.name)


def _source(
    model: nn.Module | Any,
    example: torch.Tensor,
    path: Path,
    labels: Sequence[str] | None,
    normalization: Normalization | None,
    folded: Normalization | None,
) -> _Source:
    """Look at the model.

    Raises:
        UserError: it, or another argument, is not what it must be.
    """
    keras = keras_models.is_keras(model)
    problems = [] if keras else arguments.model_problems(model)
    problems += [*arguments.example_problems(example), *_path_problems(path)]
    channels = None if problems else int(example.shape[1])
    problems += arguments.normalization_problems(normalization, channels)
    problems += arguments.label_problems(labels)
    if problems:
        raise UserError(problems)
    if keras:
        return _keras_source(model, example, labels, normalization, folded)
    given = arguments.results_of(arguments.outputs_of(model, example))
    if len(given) != 1:
        shapes = ", ".join(f"{key!r}: {tuple(part.shape)}" for key, part in given.items())
        raise UserError(
            f"the model returns {len(given)} outputs ({shapes}), and a .tflite file gives one: wrap the "
            "model in a module that returns the one it is for"
        )
    (output,) = given.values()
    problems = arguments.label_problems(labels, output.shape)
    if problems:
        raise UserError(problems)
    layers = weighted_layers(model, example)
    probe = agreement.probe(model, example, folded)
    return _Source(model, layers, None, folded is not None, probe)


def _keras_source(
    model: Any,
    example: torch.Tensor,
    labels: Sequence[str] | None,
    normalization: Normalization | None,
    folded: Normalization | None,
) -> _Source:
    keras_models.check(model, image_shape(example), labels, normalization)
    own = keras_models.own_normalization(model)
    # Pixels for a model that rescales them itself: as if nothing were to be done to them.
    plain = Normalization((0.0,) * 3, (1 / MAX_PIXEL,) * 3) if own is not None else folded
    probe = agreement.probe(keras_models.run(model), example, plain)
    pixels = own is not None or folded is not None
    return _Source(None, keras_models.weighted_layers(model), own, pixels, probe)


def _calibration(images: np.ndarray | None, shape: tuple[int, int, int], pixels: bool) -> np.ndarray:
    problems = arguments.calibration_problems(images, shape, pixels, MIN_CALIBRATION_IMAGES)
    if problems or images is None:
        raise UserError(problems)
    return images


def name_weights(graph: Graph, layers: Sequence[WeightedLayer]) -> None:
    """Call each weight what the model calls the layer whose values it has; any other keeps its name."""
    free = list(layers)
    for op, tensor in weights(graph):
        layer = matching(torch_layout(graph.op_name(op), graph.constant(tensor)), free)
        if layer is not None:
            free.remove(layer)
            graph.tensors[tensor].name = layer.name


def name_tensors(graph: Graph) -> None:
    """Give every other tensor a short name of its own: the converter's are stack traces of 300 characters.

    A value is called after the layer that computes it, else after its op.
    """
    layers = {id(op): graph.name(int(op.inputs[1])) for op, _ in weights(graph)}
    taken = {graph.name(int(t)) for t in [*graph.subgraph.inputs, *graph.subgraph.outputs]} | set(
        layers.values()
    )
    for number, op in enumerate(graph.ops):
        plain = f"{graph.op_name(op).lower()}_{number}"
        preferred = f"{layers[id(op)]}:out" if id(op) in layers else plain
        for output in op.outputs:
            if graph.name(int(output)) not in taken:
                graph.tensors[int(output)].name = plain if preferred in taken else preferred
                taken.add(graph.name(int(output)))
    made = set(graph.producers())
    for index in range(len(graph.tensors)):
        if index not in made and graph.is_constant(index) and graph.name(index) not in taken:
            graph.tensors[index].name = f"constant_{index}"


def _path_problems(path: Path) -> list[str]:
    problems = []
    if path.suffix != ".tflite":
        problems.append(f"{path}: the file's name must end in .tflite")
    if not path.parent.is_dir():
        problems.append(f"{path.parent}: no such folder to write {path.name} into")
    return problems
