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
    _check_arguments(model, example, path, normalization)
    shape = image_shape(example)
    done_inside = normalization if fold_normalization else None
    if keras_models.is_keras(model):
        keras_models.check(model, shape, labels, normalization)
        layers = keras_models.weighted_layers(model)
        own = keras_models.own_normalization(model)
    else:
        layers = weighted_layers(model, example)
        _check_output(model, example, labels)
        own = None
    if chosen.storage is targets.Storage.STATIC_INT8:
        check_images(calibration, shape)

    graph = read(lower(model, example, done_inside) if lowered is None else lowered)
    name_weights(graph, layers)
    repair.repair(graph)
    name_tensors(graph)
    if chosen.storage is targets.Storage.STATIC_INT8:
        storage.drop_unused(graph)  # the calibrator looks at every tensor there is
        graph = static_int8(graph, check_images(calibration, shape))
    else:
        storage.store_weights(graph, chosen.storage)
        repair.repair_sparse(graph)
    folded = own is not None or done_inside is not None
    described = file_metadata.describe(shape, labels, own or normalization, folded, metadata)
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


def _check_arguments(
    model: nn.Module | Any, example: torch.Tensor, path: Path, normalization: Normalization | None
) -> None:
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
    if path.suffix != ".tflite":
        problems.append(f"{path}: the file's name must end in .tflite")
    if not path.parent.is_dir():
        problems.append(f"{path.parent}: no such folder to write {path.name} into")
    if problems:
        raise UserError(problems)


def _check_output(model: nn.Module, example: torch.Tensor, labels: Sequence[str] | None) -> None:
    with torch.no_grad():
        output = model(example)
    if not isinstance(output, torch.Tensor):
        raise UserError(f"the model returns {type(output).__name__}: it must return one tensor")
    if labels is not None and (output.ndim not in (2, MAP_DIMS) or len(labels) != output.shape[1]):
        raise UserError(f"{len(labels)} labels for a model that returns {tuple(output.shape)}")
