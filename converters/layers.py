"""The weighted layers of a torch module in the order they run, to name what a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Called with the name of a layer, the layer, and its input or output.
Watch = Callable[[str, Any, Tensor], None]


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or linear layer.

    Attributes:
        name: as `named_modules()` gives it.
        kind: see `kind_of`.
        shape: of its weight.
        uses: how many times each weight is used for an example: the pixels of what the layer gives; 0 where
            none was run.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    uses: int = 0


def kind_of(module: nn.Conv2d | nn.Linear) -> str:
    """Return "linear", "conv1x1", "depthwise" or "conv".

    >>> kind_of(nn.Conv2d(8, 8, 3, groups=8)), kind_of(nn.Conv2d(8, 4, 1))
    ('depthwise', 'conv1x1')
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1 and module.groups == module.in_channels:
        return "depthwise"
    return "conv1x1" if module.groups == 1 and module.kernel_size == (1, 1) else "conv"


def weighted_layers(model: nn.Module, example: torch.Tensor) -> list[WeightedLayer]:
    """Run `model` once on `example` and list its convolution and linear layers in execution order.

    A layer that runs twice is listed once, where it ran first, with the uses of both.
    """
    seen: dict[str, WeightedLayer] = {}

    def note(name: str, layer: nn.Conv2d | nn.Linear, output: Tensor) -> None:
        before = seen[name].uses if name in seen else 0
        uses = output[0].numel() // output.shape[1 if output.ndim == 4 else -1]
        seen[name] = WeightedLayer(name, kind_of(layer), tuple(layer.weight.shape), before + uses)

    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    with torch.no_grad(), watching(layers, outputs=note):
        model(example)
    return list(seen.values())


def batch_norms(model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor) -> dict[str, _BatchNorm]:
    """The batch norm that takes each layer's output as it is, by the layer's name; found by a run.

    Args:
        model: it is run as it is, in eval mode or not.
        layers: of the model, by name; those without such a batch norm are left out of the result.
        example: what it takes.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}  # A tensor is kept so that no other takes its identity.
    found: dict[str, _BatchNorm] = {}

    def note(name: str, _: nn.Module, output: Tensor) -> None:
        outputs[id(output)] = name, output

    def meet(_: str, norm: _BatchNorm, given: Tensor) -> None:
        if id(given) in outputs:
            found[outputs[id(given)][0]] = norm

    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    with torch.no_grad(), watching(layers, outputs=note), watching(norms, inputs=meet):
        model(example)
    return found


@contextmanager
def watching(
    layers: Mapping[str, nn.Module], *, inputs: Watch | None = None, outputs: Watch | None = None
) -> Iterator[None]:
    """Inside, `inputs` is called before each layer runs and `outputs` after it; no hooks are left."""

    def before(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            if inputs is not None:
                inputs(name, layer, args[0] if args else kwargs["input"])

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, _: object, output: Tensor) -> None:
            if outputs is not None:
                outputs(name, layer, output)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            if inputs is not None:
                hooks.enter_context(layer.register_forward_pre_hook(before(name), with_kwargs=True))
            if outputs is not None:
                hooks.enter_context(layer.register_forward_hook(after(name)))
        yield
