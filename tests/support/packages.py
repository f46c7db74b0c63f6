"""Core ML packages with known zeros: what makes, changes and compares them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converters.coreml.constexpr import Constant
from converters.coreml.package import read_package, write_package
from converters.coreml.program import Program, Reference, read_program
from converters.facts import Converted, Normalization

LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay")


NORMALIZATION = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Tiny(nn.Module):
    """The parts of a mobile network, a few channels wide: stem, depthwise, squeeze-and-excite, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 5, 1, 2, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.squeeze = nn.Conv2d(16, 8, 1)
        self.excite = nn.Conv2d(8, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.expand = nn.Sequential(nn.Conv2d(16, 96, 1, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        scale = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.expand(x + self.project(y * scale))
        return self.classifier(x.mean((2, 3)))


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """1x1 convolutions and linear layers by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1)
    }


def prepare(model: nn.Module, zeros: float = 0.75, seed: int = 0) -> nn.Module:
    """Give batch norms statistics of their own and set the smallest weights of prunable layers to zero."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
    for module in prunable(model).values():
        weight = module.weight.data
        last = weight.abs().flatten().kthvalue(max(int(zeros * weight.numel()), 1)).values
        weight[weight.abs() <= last] = 0
    return model.eval()


def run(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the torch model gives."""
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


def normalized(pixels: np.ndarray, normalization: Normalization = NORMALIZATION) -> np.ndarray:
    """Pixels in [0, 255] as a torch model is trained on them."""
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in (normalization.mean, normalization.std))
    return (pixels / np.float32(255) - mean) / std


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value wanted."""
    assert got.shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def images(count: int, size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, size, size), np.float32)


def pixels(count: int, size: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size)).astype(np.float32)


def twin(model: nn.Module, converted: Converted) -> nn.Module:
    """The torch model with batch norms folded and every weight and bias as decoded from the file."""
    model = copy.deepcopy(model)
    program = read_program(read_package(converted.path))
    modules = dict(model.named_modules())
    operations = [op for op in program.operations if op.type in ("conv", "linear")]
    for operation, layer in zip(operations, converted.layers, strict=True):
        module = modules[layer.name]
        module.weight.data = torch.from_numpy(decoded(program, operation.arguments["weight"][0]))
        module.bias = nn.Parameter(torch.from_numpy(decoded(program, operation.arguments["bias"][0])))
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    return model.eval()


def decoded(program: Program, argument: Any) -> np.ndarray:
    assert isinstance(argument, Reference)
    stored = program.constants[argument.name]
    assert isinstance(stored, Constant)
    return stored.value.astype(np.float32)


def edited(package: Path, target: Path, change: Callable[[Any, bytearray], None]) -> Path:
    """A copy of a package after `change(spec, content of weight.bin)`."""
    contents = read_package(package)
    weights = target.parent / f"{target.stem}-weights"
    shutil.copytree(contents.folder / "weights", weights)
    content = bytearray((weights / "weight.bin").read_bytes())
    change(contents.spec, content)
    (weights / "weight.bin").write_bytes(content)
    write_package(contents.spec, weights, target)
    return target


def blob(spec: Any, content: bytearray, type: str, name: str, argument: str) -> tuple[int, int]:
    """Start and end in weight.bin of an argument of the operation that makes `name`."""
    operation = operation_of(spec, type, name)
    value = operation.attributes.get(argument)
    if argument in operation.inputs:
        value = operation.inputs[argument].arguments[0].value
    record = value.blobFileValue.offset
    size, start = np.frombuffer(content[record + 8 : record + 24], "<u8")
    return int(start), int(start + size)


def operation_of(spec: Any, type: str, name: str) -> Any:
    """The operation of a type whose first result contains `name`."""
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    (found,) = [op for op in operations if op.type == type and name in op.outputs[0].name]
    return found
