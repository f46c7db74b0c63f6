"""Write a torch module as a Core ML package that an app can use as it is."""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters import agreement, arguments
from converters.coreml.checking import check_computes, check_stored
from converters.coreml.compression import compress, contents_of
from converters.coreml.description import describe, detector, segmenter, summary
from converters.coreml.evaluation import load
from converters.coreml.framework import ct, quiet, temporary_files
from converters.coreml.inspection import layer_facts, name_layers
from converters.coreml.package import SUFFIX, Contents, write_package
from converters.coreml.program import StoredWeight, layer_weights, read_program
from converters.deployed import named_results
from converters.errors import ToolError, UserError
from converters.facts import Converted, LayerFacts, Normalization, size_bytes
from converters.head import with_pointwise_head
from converters.layers import WeightedLayer, weighted_layers
from converters.rewriting import Rewriting
from converters.targets import Target
from converters.targets import target as target_named

FORMAT = "coreml"
IMAGE_CHANNELS = 3
INPUT, MAP_INPUT = "image", "features"
PROBABILITIES = "probabilities"
# User-defined entry of the description that says how the weights are stored.
COMPRESSION = "compression"


def convert(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    target: str = "coreml-ios16",
    labels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    metadata: Mapping[str, str] | None = None,
    pointwise_head: bool = False,
) -> Converted:
    """Convert a model, store its weights as small as the target allows, and write the package.

    Args:
        model: in eval mode, with its zeros already in its weights; it is not changed. It gives a tensor, or
            several: of a dict that has "out", as segmentation models give, the file has that alone, of any
            other dict, list or tuple, as backbones of detectors give, all; see `deployed.named_results`.
        example: (1, 3, h, w) float32, of the size the file will take; without a normalisation it may also be
            a map of any other number of channels, and the input is then called "features".
        path: of the package, ending in ".mlpackage"; a package that is there already is replaced.
        target: name of a Core ML target in `converters.targets.TARGETS`.
        labels: class names in output order: the file then names the class and gives probabilities by name;
            one that gives maps (1, classes, h, w) only says the names, where Xcode looks for them.
        normalization: folded in, so that the file takes an RGB image with pixels in [0, 255].
        metadata: "short_description", "author", "license" and "version" go where Xcode shows them, any
            other key among the user-defined entries.
        pointwise_head: write a head of linear layers and hard-swish, as MobileNetV3 has, as 1x1 convolutions:
            the same in exact arithmetic, and right where the Neural Engine gets the former wrong; see
            `converters.head`.

    Returns:
        What was written, the layers named as `model.named_modules()` names them.

    Raises:
        UserError: the model, the example or an option is not what it should be.
        ToolError: torch or coremltools cannot convert the model.
    """
    converted = convert_all(
        model,
        example,
        {target: path},
        labels=labels,
        normalization=normalization,
        metadata=metadata,
        pointwise_head=pointwise_head,
    )
    return converted[target]


class Prepared:
    """A model on its way into packages, made by `prepare`: what those of several targets share is made once,
    when the first of them needs it.

    Attributes:
        model: as given, or with the head asked for.
        example: as given.
        normalization: to fold in.
        results: names of the outputs, see `deployed.named_results`.
        probe: images, and what the model gives for them.
        layers: of the model, in the order they run.
    """

    def __init__(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> None:
        self.given = arguments.results_of(arguments.outputs_of(model, example))
        self.model = model
        self.example = example
        self.normalization = normalization
        self.results = named_results(self.given)
        self.layers = weighted_layers(model, example)
        self.probe = agreement.probe(model, example, normalization)
        self._exported: dict[bool, tuple[_Deployed, Any]] = {}
        self._programs: dict[tuple[str, bool], Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="edgeprune-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def gives_maps(self) -> bool:
        """Whether it gives (1, classes, h, w)."""
        return len(self.given) == 1 and self._first.dim() == 4

    @property
    def gives_boxes(self) -> bool:
        """Whether it gives the rows of a detector, (1, boxes, values)."""
        return len(self.given) == 1 and self._first.dim() == 3

    @property
    def _first(self) -> Tensor:
        return next(iter(self.given.values()))

    def check_labels(self, labels: Sequence[str]) -> None:
        """Refuse labels that are not the model's."""
        if len(self.given) != 1:
            raise UserError(f"labels are for a classifier; this model gives {len(self.given)} outputs")
        _refuse(arguments.label_problems(labels, self._first.shape))

    def program(self, platform: str, classifies: bool, name: str) -> Any:
        """The dense float16 ML program for a platform, held against the model.

        Args:
            platform: of the target.
            classifies: with probabilities beside the logits.
            name: of the file, for messages.
        """
        if classifies not in self._exported:
            deployed = _Deployed(self.model, self.normalization, classifies, self.results)
            self._exported[classifies] = deployed, _export(deployed, self.example)
        if (platform, classifies) not in self._programs:
            deployed, exported = self._exported[classifies]
            with temporary_files(self._folder):
                program = _to_mil(exported, deployed, self.example, platform)
            dense = contents_of(program)
            _check_range(dense, self.layers)
            check_computes(dense, self.model, self.probe, name)
            self._programs[platform, classifies] = program
        return self._programs[platform, classifies]


def prepare(
    model: nn.Module,
    example: Tensor,
    normalization: Normalization | None = None,
    *,
    pointwise_head: bool = False,
) -> Prepared:
    """What the packages of one model for several targets share; for `write`.

    Args:
        model: see `convert`, as for the other arguments.
        example: as there.
        normalization: as there.
        pointwise_head: as there.

    Raises:
        UserError: the model, the example or the normalisation is not what it should be.
    """
    _refuse(_problems(model, example, normalization))
    return Prepared(with_pointwise_head(model) if pointwise_head else model, example, normalization)


def write(
    prepared: Prepared,
    target: str,
    path: str | Path,
    *,
    labels: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Converted:
    """Store a prepared model's weights as small as the target allows, and write the package.

    Args:
        prepared: by `prepare`.
        target: see `convert`, as for the other arguments.
        path: as there.
        labels: as there.
        metadata: as there.

    Raises:
        UserError: an option is not what it should be.
        ToolError: torch or coremltools cannot convert the model.
    """
    chosen, path = target_named(target, FORMAT), Path(path)
    _refuse(_path_problems(path))
    if labels is not None:
        prepared.check_labels(labels)
        if prepared.gives_maps:
            metadata, labels = {**segmenter(labels), **(metadata or {})}, None
        elif prepared.gives_boxes:
            metadata, labels = {**detector(labels), **(metadata or {})}, None
    program = prepared.program(chosen.platform, labels is not None, path.name)
    check = partial(_check_written, dense=contents_of(program), probe=prepared.probe)
    with temporary_files():
        mlmodel = _compress(program, chosen)
        _write_package(mlmodel, prepared.model, prepared.layers, path, labels, metadata or {}, check)
    return Converted(path, chosen.name, size_bytes(path), layer_facts(path, prepared.layers))


def convert_all(
    model: nn.Module,
    example: Tensor,
    paths: Mapping[str, str | Path],
    *,
    labels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    metadata: Mapping[str, str] | None = None,
    pointwise_head: bool = False,
) -> dict[str, Converted]:
    """Convert a model for several targets: as `convert` does, sharing the steps that they have in common.

    Args:
        model: see `convert`, as for the other arguments.
        example: as above.
        paths: of the package for each target, by its name.
        labels: as above.
        normalization: as above.
        metadata: as above.
        pointwise_head: as above.

    Returns:
        What was written, by target.

    Raises:
        UserError: the model, the example or an option is not what it should be.
        ToolError: torch or coremltools cannot convert the model.
    """
    for name in paths:
        target_named(name, FORMAT)
    problems = [problem for path in paths.values() for problem in _path_problems(Path(path))]
    _refuse([*problems, *_problems(model, example, normalization), *arguments.label_problems(labels)])
    prepared = prepare(model, example, normalization, pointwise_head=pointwise_head)
    return {
        target: write(prepared, target, path, labels=labels, metadata=metadata)
        for target, path in paths.items()
    }


def _compress(mlmodel: Any, target: Target) -> Any:
    try:
        with quiet():
            return compress(mlmodel, target.storage)
    except Exception as error:
        raise ToolError(
            f"coremltools could not compress the model for {target.name}: {_first_line(error)}"
        ) from error


def _write_package(
    mlmodel: Any,
    model: nn.Module,
    layers: Sequence[WeightedLayer],
    path: Path,
    labels: Sequence[str] | None,
    metadata: Mapping[str, str],
    check: Callable[[Path], None],
) -> None:
    """Check the zeros, describe what was done, write the package, and check it."""
    contents = contents_of(mlmodel)
    program = read_program(contents)
    _check_zeros(model, name_layers(program, layers, contents.spec.specificationVersion))
    texts = {COMPRESSION: summary(layer_weights(program)), **metadata}
    spec = describe(contents.spec, labels, texts, PROBABILITIES)
    write_package(spec, Path(mlmodel.weights_dir), path, check)


def _check_written(path: Path, *, dense: Contents, probe: agreement.Probe) -> None:
    """Run a package as it lies on disk, and hold what it stores against the program it was made from."""
    check_stored(dense, path)
    outputs = load(path, native=False).predict_all(probe.fed)
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise ToolError(f"{path.name}: it gives values that are not finite; no file is kept")


class _Deployed(nn.Module):
    """The model as the file has it: pixels normalised before it, probabilities after it, where asked for.

    `results` is what `deployed.named_results` returns; `forward` gives a tuple of them.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        normalization: Normalization | None,
        classifies: bool,
        results: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        self.classifies = classifies
        self.results = dict(results)
        self.normalizes = normalization is not None
        if normalization is not None:
            # (x - 255 mean) * (1 / 255 std), in this order, as float16: the mean is exact to 1/32 of a pixel
            # step and the scale to 1/2048 of what is left, where x * scale + bias loses a quarter of a step.
            mean, std = (
                torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in _values(normalization)
            )
            self.register_buffer("mean", (mean * 255).float())
            self.register_buffer("scale", (1 / (255 * std)).float())
        self.eval()

    def forward(self, image: Tensor) -> Any:
        """(1, 3, h, w) -> what the model gives, and its softmax where it classifies."""
        # A copy, so that a model that changes its input in place does not change the file's.
        image = (image - self.mean) * self.scale if self.normalizes else image.clone()
        with Rewriting():
            given = self.model(image)
        results = [given if key is None else given[key] for key in self.results.values()]
        return (*results, torch.softmax(results[0], 1)) if self.classifies else tuple(results)


def _values(normalization: Normalization) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return normalization.mean, normalization.std


def _export(model: _Deployed, example: Tensor) -> Any:
    """Trace the model by torch.export, the route that folds batch norms into the convolutions before them."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, (example.detach().cpu(),)).run_decompositions({})
            return _without_copies(exported)
    except Exception as error:  # torch.export raises whatever the model's own code does
        raise ToolError(f"torch.export could not trace the model: {_first_line(error)}") from error


# Other names and copies of a value, which coremltools does not know.
COPIES = (
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.lift_fresh_copy.default,
)


def _without_copies(exported: Any) -> Any:
    """Let what reads a copy of a value read the value."""
    given = {spec.arg.name for spec in exported.graph_signature.output_specs}
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target in COPIES and node.name not in given:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


def _to_mil(exported: Any, model: _Deployed, example: Tensor, platform: str) -> Any:
    shape = tuple(example.shape)
    image = (
        ct.ImageType(name=INPUT, shape=shape, color_layout=ct.colorlayout.RGB)
        if model.normalizes
        else ct.TensorType(name=INPUT if shape[1] == IMAGE_CHANNELS else MAP_INPUT, shape=shape, dtype=float)
    )
    names = [*model.results, PROBABILITIES] if model.classifies else list(model.results)
    try:
        with quiet():
            return ct.convert(
                exported,
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, platform),
                compute_precision=ct.precision.FLOAT16,
                inputs=[image],
                outputs=[ct.TensorType(name=name, dtype=float) for name in names],
                skip_model_load=True,
            )
    except Exception as error:
        raise ToolError(f"coremltools could not convert the model: {_first_line(error)}") from error


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise UserError(problems)


def _problems(model: nn.Module, example: Tensor, normalization: Normalization | None) -> list[str]:
    return [
        *arguments.model_problems(model),
        *arguments.example_problems(example, None if normalization is None else IMAGE_CHANNELS),
        *arguments.normalization_problems(normalization, IMAGE_CHANNELS),
    ]


def _path_problems(path: Path) -> list[str]:
    if path.suffix != SUFFIX:
        return [f"{path}: the name of a Core ML package ends in {SUFFIX}"]
    if path.exists() and not (path / "Manifest.json").is_file():
        return [f"{path} exists and is not a Core ML package: not overwritten"]
    return []


def _check_range(contents: Contents, layers: Sequence[WeightedLayer]) -> None:
    """Refuse weights that float16, the type the Neural Engine computes with, cannot hold.

    coremltools leaves such a weight, and the layer it belongs to, in float32.
    """
    named = name_layers(read_program(contents), layers, contents.spec.specificationVersion)
    problems = [
        f"{fact.name} has weights up to {np.abs(weight.value).max():,.0f} once batch norms are folded in, "
        "and float16 ends at 65,504"
        for fact, weight in named
        if weight.value.dtype != np.float16
    ]
    if problems:
        raise UserError(problems)


def _check_zeros(model: nn.Module, named: Sequence[tuple[LayerFacts, StoredWeight]]) -> None:
    """Make sure that every zero of the model is one in the file, in the layer it was taken for."""
    modules = dict(model.named_modules())
    for fact, weight in named:
        if fact.name not in modules:
            continue
        original = modules[fact.name].get_parameter("weight").detach().cpu().numpy()
        lost = np.count_nonzero(weight.value[original.reshape(weight.value.shape) == 0])
        if lost:
            raise ToolError(f"{fact.name}: {lost:,} of its zeros are not zero as coremltools stored them")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
