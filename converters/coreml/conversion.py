"""Write a torch module as a Core ML package that an app can use as it is."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.coreml.compression import compress, contents_of
from converters.coreml.description import describe, segmenter, summary
from converters.coreml.evaluation import LOGITS
from converters.coreml.framework import ct, quiet, temporary_files
from converters.coreml.inspection import layer_facts, name_layers
from converters.coreml.package import SUFFIX, write_package
from converters.coreml.program import StoredWeight, layer_weights, read_program
from converters.errors import ToolError, UserError
from converters.facts import Converted, LayerFacts, Normalization, size_bytes
from converters.layers import WeightedLayer, weighted_layers
from converters.targets import Target
from converters.targets import target as target_named

FORMAT = "coreml"
INPUT = "image"
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
) -> Converted:
    """Convert a model, store its weights as small as the target allows, and write the package.

    Args:
        model: in eval mode, with its zeros already in its weights; it is not changed. It gives a tensor, or
            several: of a dict that has "out", as segmentation models give, the file has that alone, of any
            other dict, list or tuple, as backbones of detectors give, all.
        example: (1, 3, h, w) float32, of the size the file will take.
        path: of the package, ending in ".mlpackage"; a package that is there already is replaced.
        target: name of a Core ML target in `converters.targets.TARGETS`.
        labels: class names in output order: the file then names the class and gives probabilities by name;
            one that gives maps (1, classes, h, w) only says the names, where Xcode looks for them.
        normalization: folded in, so that the file takes an RGB image with pixels in [0, 255].
        metadata: "short_description", "author", "license" and "version" go where Xcode shows them, any
            other key among the user-defined entries.

    Returns:
        What was written, the layers named as `model.named_modules()` names them.

    Raises:
        UserError: the model, the example or an option is not what it should be.
        ToolError: torch or coremltools cannot convert the model.
    """
    converted = convert_all(
        model, example, {target: path}, labels=labels, normalization=normalization, metadata=metadata
    )
    return converted[target]


class Prepared:
    """A model on its way into packages, made by `prepare`: what those of several targets share is made once,
    when the first of them needs it.

    Attributes:
        model: as given.
        example: as given.
        normalization: to fold in.
        results: names of the outputs, see `_results`.
        layers: of the model, in the order they run.
    """

    def __init__(self, model: nn.Module, example: Tensor, normalization: Normalization | None) -> None:
        with torch.no_grad():
            self.given = model(example)
        self.model = model
        self.example = example
        self.normalization = normalization
        self.results = _results(self.given)
        self.layers = weighted_layers(model, example)
        self._exported: dict[bool, tuple[_Deployed, Any]] = {}
        self._programs: dict[tuple[str, bool], Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="edgeprune-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def gives_maps(self) -> bool:
        """Whether it gives (1, classes, h, w)."""
        return isinstance(self.given, Tensor) and self.given.dim() == 4

    def program(self, platform: str, classifies: bool) -> Any:
        """The dense float16 ML program for a platform; `classifies`: with probabilities beside the logits."""
        if classifies not in self._exported:
            deployed = _Deployed(self.model, self.normalization, classifies, self.results)
            self._exported[classifies] = deployed, _export(deployed, self.example)
        if (platform, classifies) not in self._programs:
            deployed, exported = self._exported[classifies]
            with temporary_files(self._folder):
                program = _to_mil(exported, deployed, self.example, platform)
            _check_range(program, self.layers)
            self._programs[platform, classifies] = program
        return self._programs[platform, classifies]


def prepare(model: nn.Module, example: Tensor, normalization: Normalization | None = None) -> Prepared:
    """What the packages of one model for several targets share; for `write`.

    Args:
        model: see `convert`, as for the other arguments.
        example: as there.
        normalization: as there.

    Raises:
        UserError: the model, the example or the normalisation is not what it should be.
    """
    _refuse([*_example_problems(example), *_normalization_problems(normalization), *_model_problems(model)])
    return Prepared(model, example, normalization)


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
        _refuse(_label_problems(labels, prepared.given))
        if prepared.gives_maps:
            metadata, labels = {**segmenter(labels), **(metadata or {})}, None
    program = prepared.program(chosen.platform, labels is not None)
    with temporary_files():
        mlmodel = _compress(program, chosen)
        _write_package(mlmodel, prepared.model, prepared.layers, path, labels, metadata or {})
    return Converted(path, chosen.name, size_bytes(path), layer_facts(path, prepared.layers))


def convert_all(
    model: nn.Module,
    example: Tensor,
    paths: Mapping[str, str | Path],
    *,
    labels: Sequence[str] | None = None,
    normalization: Normalization | None = None,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Converted]:
    """Convert a model for several targets: as `convert` does, sharing the steps that they have in common.

    Args:
        model: see `convert`, as for the other arguments.
        example: as above.
        paths: of the package for each target, by its name.
        labels: as above.
        normalization: as above.
        metadata: as above.

    Returns:
        What was written, by target.

    Raises:
        UserError: the model, the example or an option is not what it should be.
        ToolError: torch or coremltools cannot convert the model.
    """
    for name in paths:
        target_named(name, FORMAT)
    problems = [problem for path in paths.values() for problem in _path_problems(Path(path))]
    problems += [*_example_problems(example), *_normalization_problems(normalization)]
    _refuse([*problems, *_model_problems(model)])
    prepared = prepare(model, example, normalization)
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
) -> None:
    """Check the zeros, describe what was done, and write the package."""
    contents = contents_of(mlmodel)
    program = read_program(contents)
    _check_zeros(model, name_layers(program, layers, contents.spec.specificationVersion))
    texts = {COMPRESSION: summary(layer_weights(program)), **metadata}
    spec = describe(contents.spec, labels, texts, INPUT, PROBABILITIES)
    write_package(spec, Path(mlmodel.weights_dir), path)


class _Deployed(nn.Module):
    """The model as the file has it: pixels normalised before it, probabilities after it, where asked for.

    `results` is what `_results` returns; `forward` gives a tuple of them.
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
        given = self.model((image - self.mean) * self.scale if self.normalizes else image)
        results = [given if key is None else given[key] for key in self.results.values()]
        return (*results, torch.softmax(results[0], 1)) if self.classifies else tuple(results)


def _values(normalization: Normalization) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return normalization.mean, normalization.std


def _export(model: _Deployed, example: Tensor) -> Any:
    """Trace the model by torch.export, the route that folds batch norms into the convolutions before them."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, (example.detach().cpu(),)).run_decompositions({})
    except Exception as error:  # torch.export raises whatever the model's own code does
        raise ToolError(f"torch.export could not trace the model: {_first_line(error)}") from error


def _to_mil(exported: Any, model: _Deployed, example: Tensor, platform: str) -> Any:
    shape = tuple(example.shape)
    image = (
        ct.ImageType(name=INPUT, shape=shape, color_layout=ct.colorlayout.RGB)
        if model.normalizes
        else ct.TensorType(name=INPUT, shape=shape, dtype=float)
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


def _model_problems(model: nn.Module) -> list[str]:
    problems = []
    training = [name or type(module).__name__ for name, module in model.named_modules() if module.training]
    if training:
        problems.append(f"model is in training mode ({training[0]}): call model.eval() before converting")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{name} has values that are not finite (NaN or infinity)")
    return problems


def _results(given: Any) -> dict[str, Any]:
    """Names of the outputs, and the key of each in what the model gives; None where that is a tensor.

    A segmentation model's dict has its result in "out", and what else there is serves its training.
    """
    if isinstance(given, Tensor):
        return {LOGITS: None}
    if isinstance(given, Mapping) and "out" in given:
        given = {"out": given["out"]}
    parts = dict(enumerate(given)) if isinstance(given, (list, tuple)) else given
    tensors = isinstance(parts, Mapping) and all(isinstance(part, Tensor) for part in parts.values())
    if not parts or not tensors:
        raise UserError(
            f"model gives a {type(given).__name__} that is not of tensors; expected a tensor, or a dict, "
            "list or tuple of them: of a detector, convert the backbone"
        )
    if len(parts) == 1:
        return {LOGITS: next(iter(parts))}
    return {f"features_{re.sub('[^A-Za-z0-9_]', '_', str(key))}": key for key in parts}


def _path_problems(path: Path) -> list[str]:
    if path.suffix != SUFFIX:
        return [f"{path}: the name of a Core ML package ends in {SUFFIX}"]
    if path.exists() and not (path / "Manifest.json").is_file():
        return [f"{path} exists and is not a Core ML package: not overwritten"]
    return []


def _example_problems(example: Tensor) -> list[str]:
    if example.dim() != 4 or tuple(example.shape[:2]) != (1, 3):
        return [f"example has shape {tuple(example.shape)}, expected (1, 3, height, width)"]
    if example.dtype != torch.float32:
        return [f"example has type {example.dtype}, expected torch.float32"]
    return []


def _normalization_problems(normalization: Normalization | None) -> list[str]:
    if normalization is None:
        return []
    problems = []
    if {len(normalization.mean), len(normalization.std)} != {3}:
        problems.append("normalization needs three values for mean and three for std, one a channel")
    if any(not std > 0 for std in normalization.std):
        problems.append(f"normalization std {normalization.std}: every value must be above 0")
    if any(not -1 <= mean <= 2 for mean in normalization.mean):
        problems.append(f"normalization mean {normalization.mean}: values are for pixels in [0, 1]")
    return problems


def _check_range(mlmodel: Any, layers: Sequence[WeightedLayer]) -> None:
    """Refuse weights that float16, the type the Neural Engine computes with, cannot hold.

    coremltools leaves such a weight, and the layer it belongs to, in float32.
    """
    contents = contents_of(mlmodel)
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
        lost = np.count_nonzero(weight.value[original == 0])
        if lost:
            raise ToolError(f"{fact.name}: {lost:,} of its zeros are not zero as coremltools stored them")


def _label_problems(labels: Sequence[str], result: Any) -> list[str]:
    if not isinstance(result, Tensor):
        return [f"labels are for a classifier; this model gives a {type(result).__name__}"]
    if result.dim() not in (2, 4):
        return [f"labels are for a classifier; this model gives an output of shape {tuple(result.shape)}"]
    problems = []
    if len(labels) != result.shape[1]:
        problems.append(f"{len(labels)} labels for a model of {result.shape[1]} classes")
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        problems.append(f"labels that appear twice, which Core ML cannot tell apart: {', '.join(repeated)}")
    return problems


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
