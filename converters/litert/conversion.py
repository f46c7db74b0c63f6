"""A torch module or Keras model in, a `.tflite` file out whose zeros make it smaller, and faster where the
runtime can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converters import targets
from converters.errors import UserError
from converters.facts import Converted, Normalization, size_bytes
from converters.files import replacing
from converters.layers import WeightedLayer, weighted_layers
from converters.litert import keras_models, repair, storage
from converters.litert import metadata as file_metadata
from converters.litert.graph import Graph, read, weights
from converters.litert.inspection import layer_facts, torch_layout
from converters.litert.lowering import MAP_DIMS, image_shape, lower
from converters.litert.quantize import check_images, static_int8

FORMAT = "litert"


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
    path = Path(path)
    targets.target(target, FORMAT)
    _refuse([*_model_problems(model, example, normalization), *_path_problems(path)])
    prepared = prepare(model, example, normalization, fold_normalization=fold_normalization, lowered=lowered)
    return write(prepared, target, path, labels=labels, metadata=metadata, calibration=calibration)


class Prepared:
    """A model on its way into files, made by `prepare`: the graph that all of them start from is made once,
    when the first needs it.

    Attributes:
        model: as given.
        example: as given.
        normalization: what the model wants done to pixels.
        done_inside: that part of it which the file does.
        layers: of the model, in the order they run.
        own: a Keras model's own normalisation.
    """

    def __init__(
        self,
        model: nn.Module | Any,
        example: torch.Tensor,
        normalization: Normalization | None,
        done_inside: Normalization | None,
        lowered: bytes | None,
    ) -> None:
        keras = keras_models.is_keras(model)
        self.model = model
        self.example = example
        self.normalization = normalization
        self.done_inside = done_inside
        self.layers = keras_models.weighted_layers(model) if keras else weighted_layers(model, example)
        self.own = keras_models.own_normalization(model) if keras else None
        self._lowered = lowered

    @property
    def lowered(self) -> bytes:
        """The dense float32 flatbuffer."""
        if self._lowered is None:
            self._lowered = lower(self.model, self.example, self.done_inside)
        return self._lowered

    def check_labels(self, labels: Sequence[str] | None) -> None:
        """Refuse labels that are not the model's, and a model that does not give one tensor."""
        if keras_models.is_keras(self.model):
            keras_models.check(self.model, image_shape(self.example), labels, self.normalization)
        else:
            _check_output(self.model, self.example, labels)


def prepare(
    model: nn.Module | Any,
    example: torch.Tensor,
    normalization: Normalization | None = None,
    *,
    fold_normalization: bool = True,
    lowered: bytes | None = None,
) -> Prepared:
    """What the files of one model for several targets share; for `write`.

    Args:
        model: see `convert`, as for the other arguments.
        example: as there.
        normalization: as there.
        fold_normalization: as there.
        lowered: as there.

    Raises:
        UserError: the model is in training mode, or an argument is not what it must be.
    """
    _refuse(_model_problems(model, example, normalization))
    if keras_models.is_keras(model):
        keras_models.check(model, image_shape(example), None, normalization)
    return Prepared(model, example, normalization, normalization if fold_normalization else None, lowered)


def write(
    prepared: Prepared,
    target: str,
    path: Path | str,
    *,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    calibration: np.ndarray | None = None,
) -> Converted:
    """Write a prepared model as a `.tflite` file.

    Args:
        prepared: by `prepare`.
        target: see `convert`, as for the other arguments.
        path: as there.
        labels: as there.
        metadata: as there.
        calibration: as there.

    Raises:
        UserError: an argument is not what it must be.
        ToolError: litert-torch, or TensorFlow, cannot convert the model.
    """
    chosen, path, shape = targets.target(target, FORMAT), Path(path), image_shape(prepared.example)
    _refuse(_path_problems(path))
    prepared.check_labels(labels)
    if chosen.storage is targets.Storage.STATIC_INT8:
        check_images(calibration, shape)

    graph = read(prepared.lowered)
    name_weights(graph, prepared.layers)
    repair.repair(graph)
    name_tensors(graph)
    if chosen.storage is targets.Storage.STATIC_INT8:
        storage.drop_unused(graph)  # the calibrator looks at every tensor there is
        graph = static_int8(graph, check_images(calibration, shape))
    else:
        storage.store_weights(graph, chosen.storage)
        repair.repair_sparse(graph)
    own, folded = prepared.own, prepared.own is not None or prepared.done_inside is not None
    described = file_metadata.describe(shape, labels, own or prepared.normalization, folded, metadata)
    file_metadata.write(graph, described)
    storage.drop_unused(graph)
    storage.share_buffers(graph)

    with replacing(path) as temporary:
        temporary.write_bytes(graph.to_bytes())
    return Converted(path, chosen.name, size_bytes(path), layer_facts(graph))


def name_weights(graph: Graph, layers: Sequence[WeightedLayer]) -> None:
    """Call each weight what the model calls its layer: the first of that shape, in order, not yet taken."""
    free = list(layers)
    for op, tensor in weights(graph):
        shape = torch_layout(graph.op_name(op), graph.constant(tensor)).shape
        layer = next((entry for entry in free if _squeezed(entry.shape) == _squeezed(shape)), None)
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


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its trailing ones: a 1x1 convolution may come as a matrix, and a matrix as one."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(problems)


def _model_problems(
    model: nn.Module | Any, example: torch.Tensor, normalization: Normalization | None
) -> list[str]:
    problems = []
    if isinstance(model, nn.Module) and model.training:
        problems.append("the model is in training mode: call model.eval() before converting it")
    if example.ndim != 4 or example.shape[0] != 1 or example.dtype != torch.float32:
        problems.append(
            f"the example is {tuple(example.shape)} {example.dtype}: "
            "it must be (1, channels, height, width) float32"
        )
    elif normalization is not None and example.shape[1] != len(normalization.mean):
        problems.append(
            f"normalisation is for {len(normalization.mean)} channels, the example has {example.shape[1]}"
        )
    if normalization is not None and not all(np.isfinite(s) and s > 0 for s in normalization.std):
        problems.append(f"normalisation divides by std {normalization.std}: each must be above 0")
    return problems


def _path_problems(path: Path) -> list[str]:
    problems = []
    if path.suffix != ".tflite":
        problems.append(f"{path}: the file's name must end in .tflite")
    if not path.parent.is_dir():
        problems.append(f"{path.parent}: no such folder to write {path.name} into")
    return problems


def _check_output(model: nn.Module, example: torch.Tensor, labels: Sequence[str] | None) -> None:
    with torch.no_grad():
        output = model(example)
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the model returns {type(output).__name__}: it must return one tensor")
    if labels is not None and (output.ndim not in (2, MAP_DIMS) or len(labels) != output.shape[1]):
        raise UserError(f"{len(labels)} labels for a model that returns {tuple(output.shape)}")
