"""The weighted layers of a torch module in the order they run, to name what a file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Called with the name of a layer, the layer, and its input or output.
Watch = Callable[[str, Any, Tensor], None]
# Cosine of the rows of two weights from which they are the same, and the least for one made from the other:
# a layer norm folded in scales columns too. Unrelated ones have next to none.
SAME, ALIKE = 0.995, 0.4


@dataclass(frozen=True)
class WeightedLayer:
    """A convolution or linear layer.

    Attributes:
        name: as `named_modules()` gives it.
        kind: see `kind_of`.
        shape: of its weight.
        uses: how many times each weight is used for an example: the pixels of what the layer gives; 0 where
            none was run.
        weight: its values, to know it by in a file; None where they are not at hand.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    uses: int = 0
    weight: np.ndarray | None = field(default=None, compare=False, repr=False)


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

    A layer that runs twice is listed once, where it ran first, with the uses of both. The two weights of
    `nn.MultiheadAttention` are listed as "attn.in_proj_weight" and "attn.out_proj".
    """
    seen: dict[str, WeightedLayer] = {}

    def meet(name: str, kind: str, weight: Tensor, uses: int) -> None:
        before = seen[name].uses if name in seen else 0
        values = weight.detach().cpu().numpy()
        seen[name] = WeightedLayer(name, kind, tuple(weight.shape), before + uses, values)

    def note(name: str, layer: Any, output: Any) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            uses = output[0].numel() // layer.embed_dim
            if layer.in_proj_weight is not None:
                meet(f"{name}.in_proj_weight", "linear", layer.in_proj_weight, uses)
            meet(f"{name}.out_proj", "linear", layer.out_proj.weight, uses)
            return
        uses = output[0].numel() // output.shape[1 if output.ndim == 4 else -1]
        meet(name, kind_of(layer), layer.weight, uses)

    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, kinds)}
    with torch.no_grad(), watching(layers, outputs=note):
        model(example.clone())  # Some models change their input.
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


def matching(value: np.ndarray, layers: Sequence[WeightedLayer]) -> WeightedLayer | None:
    """The layer whose weight a file holds as `value`: folded batch norms scale its rows, storing rounds them.

    Args:
        value: of a weight in a file, laid out as torch does.
        layers: not taken yet, in execution order; those without values are known by their shape alone.

    Returns:
        None where no layer's weight is like it.
    """
    best, likeness = None, ALIKE
    for layer in layers:
        if _squeezed(layer.shape) != _squeezed(value.shape):
            continue
        # A batch norm that multiplies by zero leaves nothing to know a weight by: then the order does.
        unknown = layer.weight is None or not value.any()
        found = 1.0 if unknown or layer.weight is None else alike(value, layer.weight)
        if found >= SAME:
            return layer
        if found > likeness:
            best, likeness = layer, found
    return best


def alike(value: np.ndarray, own: np.ndarray) -> float:
    """Mean cosine of the rows of two weights, whatever their signs, over the rows that are not zero in both.

    >>> alike(np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([[2.0, 4.0], [1.0, 0.0]]))
    1.0
    """
    a, b = (w.reshape(len(w), -1) for w in (value, own))
    # Summed in float64 without a copy in it: of a large layer it would take gigabytes.
    sums = partial(np.einsum, "ij,ij->i", dtype=np.float64)
    norms = np.sqrt(sums(a, a)) * np.sqrt(sums(b, b))
    filled = norms > 0
    if not filled.any():
        return 1.0 if not (a.any() or b.any()) else 0.0
    cosines = np.abs(sums(a, b)[filled]) / norms[filled]
    return round(float(cosines.mean()), 9)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its trailing ones: a 1x1 convolution may come as a matrix, and a matrix as one."""
    kept = list(shape)
    while len(kept) > 2 and kept[-1] == 1:
        kept.pop()
    return tuple(kept)
