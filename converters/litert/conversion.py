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

from converters import agreement, arguments, targets
from converters.deployed import SCORES, named_results
from converters.errors import ToolError, UserError
from converters.facts import Converted, Normalization, size_bytes
from converters.files import replacing
from converters.layers import WeightedLayer, matching, weighted_layers
from converters.litert import checking, keras_models, repair, storage
from converters.litert import metadata as file_metadata
from converters.litert.graph import DamagedFileError, Graph, read, weights
from converters.litert.inspection import layer_facts, torch_layout
from converters.litert.lowering import MAX_PIXEL, image_shape, lower
from converters.litert.quantize import MIN_CALIBRATION_IMAGES, static_int8

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
            them as (1, height, width, classes). It gives one tensor, or a dict of several with "scores" among
            its keys, which the file then has as names.
        example: (1, channels, height, width) float32, also for a Keras model; only its shape counts. It need
            not be an image: of a map with any number of channels the file says how it takes it.
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
    _refuse([*_problems(model, example, normalization), *_path_problems(path)])
    _refuse(arguments.label_problems(labels))
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
        probe: images, and what the model gives for them.
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
        self._shapes = {} if keras else _output_shapes(model, example)
        self.model = model
        self.example = example
        self.normalization = normalization
        self.done_inside = done_inside
        self.layers = keras_models.weighted_layers(model) if keras else weighted_layers(model, example)
        self.own = keras_models.own_normalization(model) if keras else None
        self.probe = _probe(model, example, done_inside, self.own)
        self._lowered = lowered
        self._is_checked = False

    @property
    def lowered(self) -> bytes:
        """The dense float32 flatbuffer."""
        if self._lowered is None:
            self._lowered = lower(self.model, self.example, self.done_inside)
        return self._lowered

    @property
    def takes_pixels(self) -> bool:
        """Whether the files take plain pixels in [0, 255]."""
        return self.own is not None or self.done_inside is not None

    def check_computes(self, graph: Graph, content: bytes, name: str) -> None:
        """Hold a file of float32 weights against the model; see `checking.check_computes`."""
        model = None if keras_models.is_keras(self.model) else self.model
        checking.check_computes(graph, content, model, self.probe, name)
        self._is_checked = True

    def check_lowered(self, graph: Graph, name: str) -> None:
        """The same for the graph that smaller files are made from; once for all of them."""
        if not self._is_checked:
            self.check_computes(graph, graph.to_bytes(), name)

    def check_labels(self, labels: Sequence[str] | None) -> None:
        """Refuse labels that are not the model's."""
        if keras_models.is_keras(self.model):
            keras_models.check(self.model, image_shape(self.example), labels, self.normalization)
            return
        if labels is not None and len(self._shapes) != 1:
            raise UserError(f"labels are for a classifier; this model gives {len(self._shapes)} outputs")
        _refuse(arguments.label_problems(labels, next(iter(self._shapes.values()))))

    @property
    def output_names(self) -> list[str]:
        """Of a model that names several outputs; none where there is one."""
        return list(self._shapes) if len(self._shapes) > 1 else []


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
    _refuse(_problems(model, example, normalization))
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
    static = chosen.storage is targets.Storage.STATIC_INT8
    images = _calibration(calibration, shape, prepared.takes_pixels) if static else None

    graph = _read_lowered(prepared.lowered, path.name)
    name_outputs(graph, prepared.output_names)
    name_weights(graph, prepared.layers)
    repair.repair(graph)
    name_tensors(graph)
    exact = [graph.constant(tensor) for _, tensor in weights(graph)]
    done = prepared.own or prepared.normalization
    described = file_metadata.describe(shape, labels, done, prepared.takes_pixels, metadata)
    file_metadata.write(graph, described)  # Now, too: what is checked says what it takes.
    if chosen.storage is not targets.Storage.FLOAT32:
        prepared.check_lowered(graph, path.name)
    if images is not None:
        storage.drop_unused(graph)  # the calibrator looks at every tensor there is
        graph = static_int8(graph, images)
        name_outputs(graph, prepared.output_names)
    else:
        storage.store_weights(graph, chosen.storage)
        repair.repair_sparse(graph)
    file_metadata.write(graph, described)
    storage.drop_unused(graph)
    storage.share_buffers(graph)

    with replacing(path) as temporary:
        temporary.write_bytes(graph.to_bytes())
        content = temporary.read_bytes()
        written = read(content, path.name)
        checking.check_rounding(exact, written, path.name)
        if chosen.storage is targets.Storage.FLOAT32:
            prepared.check_computes(written, content, path.name)
        else:
            checking.check_runs_as_stored(written, content, prepared.probe, static, path.name)
    return Converted(path, chosen.name, size_bytes(path), layer_facts(graph))


def name_outputs(graph: Graph, names: Sequence[str]) -> None:
    """Call the outputs what the model calls them, in the signature that apps read, too; none: as they are."""
    if not names:
        return
    named = dict(zip(map(int, graph.subgraph.outputs), names, strict=True))
    for index, tensor in enumerate(graph.tensors):
        if graph.name(index) in names:
            tensor.name = f"{graph.name(index)}_inside"
    for tensor, name in named.items():
        graph.tensors[tensor].name = name
    for signature in graph.model.signatureDefs or ():
        for entry in signature.outputs or ():
            entry.name = named[int(entry.tensorIndex)]


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


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(problems)


def _problems(
    model: nn.Module | Any, example: torch.Tensor, normalization: Normalization | None
) -> list[str]:
    problems = [] if keras_models.is_keras(model) else arguments.model_problems(model)
    problems += arguments.example_problems(example)
    channels = None if problems else int(example.shape[1])
    return [*problems, *arguments.normalization_problems(normalization, channels)]


def _path_problems(path: Path) -> list[str]:
    problems = []
    if path.suffix != ".tflite":
        problems.append(f"{path}: the file's name must end in .tflite")
    if not path.parent.is_dir():
        problems.append(f"{path.parent}: no such folder to write {path.name} into")
    return problems


def _output_shapes(model: nn.Module, example: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Of the tensors that the file will give, by name."""
    given = arguments.results_of(arguments.outputs_of(model, example))
    if len(given) != 1 and SCORES not in given:
        shapes = ", ".join(f"{key!r}: {tuple(part.shape)}" for key, part in given.items())
        raise UserError(
            f"the model returns {len(given)} outputs ({shapes}), and a .tflite file gives one: wrap the "
            "model in a module that returns the one it is for"
        )
    return {name: tuple(given[key].shape) for name, key in named_results(given).items()}


def _probe(
    model: nn.Module | Any,
    example: torch.Tensor,
    done_inside: Normalization | None,
    own: Normalization | None,
) -> agreement.Probe:
    if not keras_models.is_keras(model):
        return agreement.probe(model, example, done_inside)
    # Pixels for a model that rescales them itself: as if nothing were to be done to them.
    plain = Normalization((0.0, 0.0, 0.0), (1 / MAX_PIXEL,) * 3) if own is not None else done_inside
    return agreement.probe(keras_models.runner(model), example, plain)


def _read_lowered(content: bytes, name: str) -> Graph:
    """The graph that litert-torch wrote; what it writes for ops with a graph of their own does not hold."""
    try:
        return read(content, name)
    except DamagedFileError as error:
        raise ToolError(
            f"litert-torch wrote a file that nothing can load (sorting, top-k?): {error}"
        ) from None


def _calibration(images: np.ndarray | None, shape: tuple[int, int, int], pixels: bool) -> np.ndarray:
    problems = arguments.calibration_problems(images, shape, pixels, MIN_CALIBRATION_IMAGES)
    if problems or images is None:
        raise UserError(problems)
    return images
