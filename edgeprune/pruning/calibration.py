"""What calibration images tell about layers: input norms, second moments, gradients, batch norms.

Every function runs the model in eval mode, on the model's own device, and leaves it as it was: modes
restored, hooks removed, no gradients kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from converters import layers as torch_layers
from converters.layers import batch_norms
from edgeprune.errors import EdgepruneError, UserError

Layer = nn.Conv2d | nn.Linear
Calibration = Iterable[Tensor | Sequence[Any]]
Loss = Callable[[Any, Any], Tensor]
Batch = tuple[Tensor, Any]

PATCH_ELEMENTS = 1 << 24  # Unfolded inputs held at a time: 64 MiB.
# Least squares has seen enough with so many images, and so many places for each of a layer's columns.
ENOUGH_IMAGES = 512
ENOUGH_PLACES = 40


def read_batches(calibration: Calibration | None, criterion: str) -> list[Batch]:
    """Read calibration batches: images, or (images, labels), labels in whatever form the loss takes them.

    Raises:
        UserError: none, or images that are not tensors.
    """
    if calibration is None:
        raise UserError(
            f"criterion {criterion!r} looks at images: give calibration=[images, ...], batches of what "
            "the model takes; some hundred images are enough"
        )
    batches = [_read_batch(batch) for batch in calibration]
    if not batches:
        raise UserError(f"criterion {criterion!r}: the calibration images are empty")
    return batches


def _read_batch(batch: object) -> Batch:
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, (tuple, list)) else []
    if not parts or not isinstance(parts[0], Tensor):
        raise UserError(
            f"calibration: a batch is a tensor of images or (images, labels), not {type(batch).__name__}"
        )
    return parts[0], parts[1] if len(parts) > 1 else None


@contextmanager
def watching(
    model: nn.Module, watch: Callable[[str, Tensor], None], layers: Mapping[str, Layer]
) -> Iterator[None]:
    """Call `watch(name, input)` before each of `layers` runs; eval mode, no gradients."""

    def inputs(name: str, _: nn.Module, given: Tensor) -> None:
        watch(name, given)

    with evaluating(model), torch.no_grad(), torch_layers.watching(layers, inputs=inputs):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def unchanged_on_error(model: nn.Module) -> Iterator[None]:
    """An error of ours inside leaves the model's weights and statistics as they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        yield
    except EdgepruneError:
        model.load_state_dict(before)
        raise


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms take the statistics of the batch they see, in eval mode too; their own stay as they were.

    What a pruned model gives so is what it gives with statistics measured again, if batches are large: some
    hundred images. Those it had belong to the weights that it had.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_var is not None
    ]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.running_mean, norm.running_var = mean, variance


def beside(labels: Any, tensor: Tensor) -> Any:
    """Labels on the device of a tensor, where they are one themselves."""
    return labels.to(tensor.device) if isinstance(labels, Tensor) else labels


def run_model(model: nn.Module, images: Tensor) -> Any:
    """Run `model` on images brought to its device and type."""
    return model(as_taken(model, images))


def as_taken(model: nn.Module, images: Tensor) -> Tensor:
    """Images on a model's device, and in its type where they are not integers."""
    parameter = next(model.parameters())
    return images.to(parameter.device, parameter.dtype if images.is_floating_point() else images.dtype)


def input_norms(model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """L2 norm of each input of each layer over all images and places, of the weight's shape, float32.

    Raises:
        UserError: a layer that never runs.
    """
    sums: dict[str, Tensor] = {}

    def watch(name: str, inputs: Tensor) -> None:
        for columns in patches(layers[name], inputs):
            add(sums, name, columns.square().sum(dim=2))

    with watching(model, watch, layers):
        for images, _ in batches:
            run_model(model, images)
    refuse_idle(layers, sums)
    return {name: _per_weight(sums[name].sqrt(), layer) for name, layer in layers.items()}


@dataclass(frozen=True)
class Pairing:
    """What a layer reads in one model, beside what it gives in another: means over places.

    Attributes:
        moments: (groups, columns, columns) float64, inputs times inputs.
        cross: (groups, out / groups, columns) float64, outputs that are wanted times inputs.
        inputs: (groups, columns) float64.
        outputs: (groups, out / groups) float64, that are wanted.
        samples: as many independent ones would tell as much: between the images and the places, since
            neighbouring places of an image are much alike.
    """

    moments: Tensor
    cross: Tensor
    inputs: Tensor
    outputs: Tensor
    samples: float


@torch.no_grad()
def paired_moments(layer: Layer, pairs: Iterable[tuple[Tensor, Tensor]]) -> Pairing:
    """How the inputs of a layer go with the outputs that are wanted of it.

    Read until there are enough images, and places for the layer's columns.

    Args:
        layer: whose inputs they are.
        pairs: inputs and outputs of one batch after the other, at least one.
    """
    sums: dict[str, Tensor] = {}
    places = images_seen = 0
    for inputs, outputs in pairs:
        rows = _output_rows(layer, outputs)
        begin = 0
        for columns in patches(layer, inputs):
            part = rows[:, :, begin : begin + columns.shape[2]]
            begin += columns.shape[2]
            add(sums, "moments", (columns @ columns.transpose(1, 2)).double())
            add(sums, "cross", (part @ columns.transpose(1, 2)).double())
            add(sums, "inputs", columns.double().sum(2))
            add(sums, "outputs", part.double().sum(2))
        places += begin
        images_seen += len(inputs)
        if images_seen >= ENOUGH_IMAGES and places >= ENOUGH_PLACES * layer.weight[0].numel():
            break
    means = {key: total / places for key, total in sums.items()}
    return Pairing(**means, samples=math.sqrt(images_seen * places))


def second_moments(layer: Layer, inputs: Iterable[Tensor]) -> Tensor:
    """Second moments of all that a layer reads: (groups, in / groups * kernel, same), float64."""
    sums: dict[str, Tensor] = {}
    places = 0
    for given in inputs:
        for columns in patches(layer, given):
            add(sums, "", (columns @ columns.transpose(1, 2)).double())
            places += columns.shape[2]
    return sums[""] / places


def _output_rows(layer: Layer, outputs: Tensor) -> Tensor:
    """What a layer gives, in the order of `patches`: (groups, out / groups, places), float32."""
    outputs = outputs.detach().float()
    if isinstance(layer, nn.Linear):
        return outputs.reshape(-1, layer.out_features).t().unsqueeze(0)
    images = outputs if outputs.dim() == 4 else outputs.unsqueeze(0)
    # (n, out, h, w) -> (groups, out / groups, n * places)
    grouped = images.reshape(len(images), layer.groups, -1, images.shape[2] * images.shape[3])
    return grouped.permute(1, 2, 0, 3).flatten(2)


def gradients(
    model: nn.Module,
    layers: Mapping[str, Layer],
    batches: Sequence[Batch],
    gather: Callable[[Tensor, Tensor], Tensor],
    loss: Loss,
    criterion: str,
) -> dict[str, Tensor]:
    """Mean over batches of `gather(weight, gradient)`, float32; the layers' own `.grad` is not touched.

    Raises:
        UserError: images without labels, a layer the loss does not depend on.
    """
    labelled = [(images, labels) for images, labels in batches if labels is not None]
    if len(labelled) < len(batches):
        raise UserError(f"criterion {criterion!r} needs the loss: give calibration as (images, labels) pairs")
    weights = [layer.weight for layer in layers.values()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    sums: dict[str, Tensor] = {}
    with evaluating(model), torch.enable_grad():
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            for images, labels in labelled:
                outputs = run_model(model, images)
                value = loss(outputs, beside(labels, weights[0]))
                found = torch.autograd.grad(value, weights, allow_unused=True)
                for (name, layer), gradient in zip(layers.items(), found, strict=True):
                    if gradient is not None:
                        add(sums, name, gather(layer.weight.detach().float(), gradient.float()))
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
    refuse_idle(layers, sums)
    return {name: total / len(batches) for name, total in sums.items()}


def batch_norm_scales(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Scale (out,) of the batch norm that takes each layer's output as it is; see `batch_norms_behind`."""
    behind = batch_norms_behind(model, layers, batches)
    return {name: norm.weight.detach() for name, norm in behind.items() if norm.weight is not None}


def batch_norms_behind(
    model: nn.Module, layers: Mapping[str, Layer], batches: Sequence[Batch]
) -> dict[str, _BatchNorm]:
    """The batch norm that takes each layer's output as it is; found by running one image.

    Layers without such a batch norm are left out.
    """
    with evaluating(model):
        return batch_norms(model, layers, as_taken(model, batches[0][0][:1]))


def patches(layer: Layer, inputs: Tensor) -> Iterator[Tensor]:
    """Unfold `inputs` into the columns that the rows of `layer`'s weight are multiplied with.

    Yields:
        (groups, in / groups * kernel, places), float32, a part of the images at a time.
    """
    inputs = inputs.detach().float()
    if isinstance(layer, nn.Linear):
        rows = inputs.reshape(-1, layer.in_features)
        for part in torch.split(rows, max(PATCH_ELEMENTS // layer.in_features, 1)):
            yield part.t().unsqueeze(0)
        return
    images = inputs if inputs.dim() == 4 else inputs.unsqueeze(0)
    # (n, in, h, w) padded as the layer pads it; the mode of zeros is "constant" elsewhere in torch.
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    for part in torch.split(
        images, max(PATCH_ELEMENTS // (images[0].numel() * layer.weight[0, 0].numel()), 1)
    ):
        yield _unfold(layer, F.pad(part, _padding(layer), mode))


def _unfold(layer: nn.Conv2d, padded: Tensor) -> Tensor:
    """(n, in, h, w) -> (groups, in / groups * kernel, n * places)."""
    if layer.kernel_size == (1, 1):
        columns = padded[:, :, :: layer.stride[0], :: layer.stride[1]].flatten(2)
    else:
        columns = F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)
    # (n, in * kernel, places) -> (n, groups, in / groups * kernel, places): input channels come first.
    grouped = columns.reshape(len(columns), layer.groups, -1, columns.shape[2])
    return grouped.permute(1, 2, 0, 3).flatten(2)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Left, right, top, bottom, in pixels."""
    sides: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        else:
            pixels = 0 if layer.padding == "valid" else int(layer.padding[axis])
            sides += [pixels, pixels]
    return sides


def _per_weight(values: Tensor, layer: Layer) -> Tensor:
    """(groups, in / groups * kernel) -> the weight's shape: each row sees its group's inputs."""
    out = layer.weight.shape[0]
    return values.repeat_interleave(out // len(values), dim=0).view(layer.weight.shape)


def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Add `value` to what `sums` holds under `name`, or put it there."""
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value


def refuse_idle(layers: Mapping[str, Layer], ran: Iterable[str]) -> None:
    """Refuse layers of which calibration could tell nothing."""
    idle = [name for name in layers if name not in set(ran)]
    if idle:
        raise UserError(
            [
                f"layer {name!r} takes no part in the model's answer to the calibration images: "
                "name the layers to prune without it"
                for name in idle
            ]
        )
