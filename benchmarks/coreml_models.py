"""Convert the models that edgeprune is meant for to every Core ML target, run the files, compare with torch.

    python benchmarks/coreml_models.py [MODEL ...] [--targets coreml-ios16 ...]

Weights are random, batch norms have statistics of their own, and 75 % of the weights of 1x1 convolutions
and linear layers are zero. For each file: its bytes, the relative error to the float32 torch model, and the
relative error to the same torch model holding the weights decoded from the file (`twin`), which says whether
evaluating the file is right whatever its storage.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from converters import coreml
from converters.coreml.package import read_package
from converters.coreml.program import Program, Reference, read_program
from converters.errors import EdgepruneError
from converters.facts import Converted
from converters.targets import TARGETS, Format

# Image sizes in pixels, small to be quick; the transformer has one size only.
MODELS = {
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "mobilenet_v2": 64,
    "resnet18": 64,
    "efficientnet_b0": 64,
    "lraspp_mobilenet_v3_large": 96,
    "mobilenetv4_conv_small": 96,
    "repvit_m0_9": 96,
    "fastvit_t8": 128,
    "vit_tiny_patch16_224": 224,
}
IMAGES = 4
ZEROS = 0.75


def build(name: str) -> nn.Module:
    """A model of random weights, pruned."""
    import torchvision.models as zoo

    torch.manual_seed(0)
    if name.startswith("lraspp"):
        model = zoo.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    elif hasattr(zoo, name):
        model = getattr(zoo, name)(weights=None)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            weight = module.weight.data
            last = weight.abs().flatten().kthvalue(max(int(ZEROS * weight.numel()), 1)).values
            weight[weight.abs() <= last] = 0
    return model.eval()


def run(model: nn.Module, images: Tensor) -> np.ndarray:
    """What a torch model gives, the main output where it gives several."""
    with torch.no_grad():
        result = model(images)
    return (result["out"] if isinstance(result, dict) else result).numpy()


class FileSigmoid(nn.Module):
    """Hard sigmoid with the 1/6 that is in the file, which may be a float16."""

    def __init__(self, sixth: float) -> None:
        super().__init__()
        self.sixth = sixth

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.clamp(x * self.sixth + 0.5, 0, 1)


class FileSwish(FileSigmoid):
    """Hard swish likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * super().forward(x)


def twin(model: nn.Module, converted: Converted, example: Tensor) -> nn.Module:
    """The torch model with batch norms folded where the file has them folded, and the file's numbers."""
    model = copy.deepcopy(model)
    program = read_program(read_package(converted.path))
    norms = following_norms(model, example)
    layers = [op for op in program.operations if op.type in ("conv", "linear")]
    modules = dict(model.named_modules())
    unfolded = any(op.type == "batch_norm" for op in program.operations)
    for operation, layer in zip(layers, converted.layers, strict=True):
        module = modules[layer.name]
        stored = {}
        for argument in {"weight", "bias"} & set(operation.arguments):
            reference = operation.arguments[argument][0]
            assert isinstance(reference, Reference)
            stored[argument] = torch.from_numpy(program.constants[reference.name].value.astype(np.float32))
        norm = norms.get(layer.name)
        if norm is not None and not (unfolded and nearer(module.weight, stored["weight"])):
            parent, _, child = norm.rpartition(".")
            # timm's batch norms hold the activation after them
            setattr(model.get_submodule(parent), child, getattr(modules[norm], "act", nn.Identity()))
        module.weight.data = stored["weight"]
        module.bias = nn.Parameter(stored["bias"]) if "bias" in stored else None
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.is_floating_point() and name.rpartition(".")[0] not in {
            fact.name for fact in converted.layers
        }:
            parameter.data = parameter.data.half().float()
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Hardswish, nn.Hardsigmoid)):
            parent, _, child = name.rpartition(".")
            activation = FileSwish if isinstance(module, nn.Hardswish) else FileSigmoid
            setattr(model.get_submodule(parent), child, activation(sixth(program)))
    return model


def sixth(program: Program) -> float:
    """The slope of hard sigmoids in a file."""
    operation = next(operation for operation in program.operations if operation.type == "sigmoid_hard")
    (reference,) = operation.arguments["alpha"]
    assert isinstance(reference, Reference)
    return float(program.constants[reference.name].value)


def nearer(weight: Tensor, stored: Tensor) -> bool:
    """Whether a stored weight is the layer's own, no batch norm folded in."""
    return bool((weight - stored).abs().max() <= 0.1 * weight.abs().max())


def following_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Name of each convolution -> name of the batch norm that takes its result."""
    makers: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept: list[Tensor] = []  # so that no two results share an address
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def made(_: nn.Module, __: object, result: Tensor, name: str = name) -> None:
                kept.append(result)
                makers[id(result)] = name

            handles.append(module.register_forward_hook(made))
        elif isinstance(module, nn.BatchNorm2d):

            def taken(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                if id(given[0]) in makers:
                    pairs[makers[id(given[0])]] = name

            handles.append(module.register_forward_pre_hook(taken))
    run(model, example)
    for handle in handles:
        handle.remove()
    return pairs


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def main() -> None:
    """Print a row for each model and target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    targets = [name for name, target in TARGETS.items() if target.format is Format.COREML]
    parser.add_argument("--targets", nargs="*", default=targets, choices=targets, metavar="TARGET")
    arguments = parser.parse_args()
    print("| model | px | target | bytes | zeros | error to float32 | error to twin | convert s | run s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        model, size_px = build(name), MODELS[name]
        images = torch.rand(IMAGES, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
        wanted = run(model, images)
        for target in arguments.targets:
            print(f"| {name} | {size_px} | {target} | {row(model, images, wanted, target)} |", flush=True)


def row(model: nn.Module, images: Tensor, wanted: np.ndarray, target: str) -> str:
    """Convert, run, compare."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            converted = coreml.convert(model, images[:1], Path(folder) / "model.mlpackage", target=target)
        except EdgepruneError as error:
            return f"failed: {error}"
        convert_s = time.perf_counter() - start
        package = coreml.load(converted.path)
        start = time.perf_counter()
        got = package.predict(images.numpy())
        run_s = time.perf_counter() - start
        to_twin = relative_error(got, run(twin(model, converted, images[:1]), images))
    count = sum(np.prod(layer.shape) for layer in converted.layers)
    zeros = sum(layer.zero_fraction * np.prod(layer.shape) for layer in converted.layers) / count
    return (
        f"{converted.bytes:,} | {zeros:.1%} | {relative_error(got, wanted):.1e} | {to_twin:.1e} "
        f"| {convert_s:.0f} | {run_s:.1f}"
    )


if __name__ == "__main__":
    main()
