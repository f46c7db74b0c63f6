"""Does a file just written compute what its model does? Asked of every conversion, before the file is kept.

The file is run on the given example and on random images, and held against torch. Where it is off, the trace
of the model is gone through for the first step whose result the file has nowhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.arguments import results_of
from converters.errors import ToolError, UserError
from converters.facts import Normalization
from converters.rewriting import TRAINING_ONLY, Rewriting

MAX_PIXEL = 255.0
COARSE_PX = 5
# float32 on both sides; more only where torch itself is that much off its own result in float64.
TOLERANCE = 1e-4
ARITHMETIC = 30.0
# By how much two results on the way must differ to be different ones.
PARTING = 5e-3
# What is no further off than this is the same step, done wrong; what a step was fused into is further off.
LIKE = 0.25


@dataclass(frozen=True)
class Probe:
    """Images, and what the torch model gives for them.

    Attributes:
        inputs: (n, channels, height, width) float32, as the model takes them: the example first.
        fed: the same as the file takes them.
        wanted: each output the file has, (n, ...).
    """

    inputs: np.ndarray
    fed: np.ndarray
    wanted: tuple[np.ndarray, ...]


Run = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def probe(
    model: nn.Module | Run, example: Tensor, normalization: Normalization | None, images: int = 2
) -> Probe:
    """Run the model on the example and on `images` random ones: noise, and large soft patches.

    Args:
        model: a torch module, or what gives the outputs for images.
        example: (1, channels, height, width), as the model takes it.
        normalization: that the file does before the model; None: it takes what the model takes.
        images: how many random ones.

    Raises:
        UserError: it gives two answers for one image.
    """
    inputs, fed = _images(example, normalization, images)
    run: Run = partial(answers, model) if isinstance(model, nn.Module) else model
    wanted = run(inputs)
    if worst(run(inputs[-1:]), [output[-1:] for output in wanted]) > TOLERANCE:
        raise UserError(
            "the model gives different answers for one and the same image: something in its forward is "
            "random; a file cannot be held against it"
        )
    return Probe(inputs, fed, wanted)


class Plain(nn.Module):
    """A model as a file has it: without what serves training only, its outputs a tuple, its input kept."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.training = False
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, channels, height, width) -> the outputs that a file has."""
        with Rewriting(TRAINING_ONLY):
            return tuple(results_of(self.model(image.clone())).values())


def answers(model: nn.Module, inputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """The outputs that a file has of a model's, (n, ...) each, float64, image by image."""
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    images = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
    with torch.no_grad():
        singly = [Plain(model)(image[None]) for image in images]
    return tuple(torch.cat(parts).double().cpu().numpy() for parts in zip(*singly, strict=True))


def _images(
    example: Tensor, normalization: Normalization | None, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(1 + count) images as the model takes them, and as the file does."""
    generator = torch.Generator().manual_seed(0)
    _, channels, height, width = example.shape
    drawn = []
    for index in range(count):
        sides = (height, width) if index % 2 == 0 else (COARSE_PX, COARSE_PX)
        noise = torch.rand(1, channels, *sides, generator=generator)
        drawn.append(F.interpolate(noise, size=(height, width), mode="bilinear"))
    example = example.detach().cpu()
    if normalization is None:
        inputs = torch.cat([example, *(4 * image - 2 for image in drawn)]).numpy()
        return inputs, inputs
    mean, std = (np.asarray(v, np.float32).reshape(-1, 1, 1) for v in (normalization.mean, normalization.std))
    shown = np.clip((example.numpy() * std + mean) * MAX_PIXEL, 0, MAX_PIXEL)
    fed = np.rint(np.concatenate([shown, torch.cat(drawn).numpy() * MAX_PIXEL])).astype(np.float32)
    return ((fed / np.float32(MAX_PIXEL) - mean) / std).astype(np.float32), fed


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest wanted value; infinite where shapes or NaN do not match.

    >>> difference(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    0.25
    """
    if found.size != wanted.size or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(wanted).max(initial=0.0))
    off = float(np.abs(found.reshape(wanted.shape) - wanted).max(initial=0.0))
    return off / largest if largest else off


def worst(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """The largest `difference` of several outputs."""
    return max(difference(f, w) for f, w in zip(found, wanted, strict=True))


def arithmetic(model: nn.Module, of: Probe) -> float:
    """How far torch's own float32 is from its float64 on these images; 0 where the model has no float64."""
    try:
        exact = answers(copy.deepcopy(model).double(), of.inputs.astype(np.float64))
    except Exception:  # Whatever the model's own code raises on another type.
        return 0.0
    return worst(of.wanted, exact)


def allowed(error: float, own: Callable[[], float]) -> float:
    """What float32 may be off: more than usual only where torch's float32 is off its own float64, too.

    Args:
        error: to be judged; where it is within the usual, `own` is not asked.
        own: gives how far torch's float32 is off.
    """
    return TOLERANCE if error <= TOLERANCE else max(TOLERANCE, ARITHMETIC * own())


def within(error: float, model: nn.Module | None, of: Probe) -> bool:
    """Whether an error is float32 arithmetic: within the tolerance, or like torch's own."""
    return error <= allowed(error, lambda: 0.0 if model is None else arithmetic(model, of))


def refused(
    what: str, error: float, model: nn.Module, image: np.ndarray, tensors: Callable[[], list[np.ndarray]]
) -> ToolError:
    """The error that says that a file and its model part, and where.

    Args:
        what: was compared: the file, by its name.
        error: see `difference`.
        model: the torch module.
        image: (1, channels, height, width), as it takes it.
        tensors: gives all that the file computed on the way, for the same image.
    """
    place = first_parting(model, image, tensors, PARTING)
    size = f"off by {error:.2g} of the largest value"
    if error == float("inf"):
        size = "what it gives is not finite, or of another shape"
    return ToolError(f"{what} does not compute what the model does: {size}{place}; no file is kept")


def first_parting(
    model: nn.Module, image: np.ndarray, tensors: Callable[[], list[np.ndarray]], tolerance: float
) -> str:
    """Where a file and its model part: "; the first step where they part: features.3.conv (conv2d)".

    That is the first step of the model's trace whose result is not among what the file computes, nor that of
    any step after it: what a converter fuses is nowhere in the file, but something behind it is, unless it is
    wrong.

    Args:
        model: the torch module.
        image: (1, channels, height, width), as it takes it.
        tensors: gives all that the file computed on the way, for the same image.
        tolerance: up to which two results are the same.

    Returns:
        "" where every step leads to a result that is there, or the model cannot be traced.
    """
    try:
        place = _first_parting(model, torch.from_numpy(np.ascontiguousarray(image)), tensors(), tolerance)
    except Exception:  # It only words an error that stands already.
        return ""
    return f"; the first step where they part: {place}" if place else ""


def _first_parting(
    model: nn.Module, image: Tensor, tensors: Sequence[np.ndarray], tolerance: float
) -> str | None:
    found = find_steps(model, image.numpy(), tensors, tolerance)
    return next((step.place for step in found if not step.is_passed), None)


@dataclass(frozen=True)
class Found:
    """A step of a model's trace, looked for among what a file computes.

    Attributes:
        place: "features.3.conv (conv2d)".
        largest: value that it gives in the model.
        value: the nearest that the file has, as the model lays it out, float64; None where none has its size.
        error: `difference` of that one; infinite where there is none.
        is_there: whether the error is within the tolerance.
        is_passed: whether it is, or that of a step made from it: then the file has gone by it, fused or not.
    """

    place: str
    largest: float
    value: np.ndarray | None
    error: float
    is_there: bool
    is_passed: bool


def find_steps(
    model: nn.Module, image: np.ndarray, tensors: Sequence[np.ndarray], tolerance: float
) -> list[Found]:
    """Look for each step of the model among what a file computes, in the model's order.

    Steps that give no floating point tensor are left out.

    Args:
        model: the torch module.
        image: (1, channels, height, width), as it takes it.
        tensors: all that the file computed on the way, for the same image.
        tolerance: up to which two results are the same.
    """
    by_size: dict[int, list[np.ndarray]] = {}
    for tensor in tensors:
        by_size.setdefault(tensor.size, []).append(np.asarray(tensor, np.float64).reshape(-1))
    values = _traced(model, torch.from_numpy(np.ascontiguousarray(image)))
    passed: set[Any] = set()
    found: list[Found] = []
    for node, value in reversed(values.items()):
        if node.op != "call_function":
            continue
        parts = [_nearest(part, by_size) for part in _floats(value)]
        error = max((off for off, _ in parts), default=0.0)
        if error <= tolerance or any(user in passed for user in node.users):
            passed.add(node)
        if isinstance(value, Tensor) and parts:
            largest = float(value.abs().max())
            nearest = parts[0][1]
            found.append(Found(_place(node), largest, nearest, error, error <= tolerance, node in passed))
        elif node not in passed:
            found.append(Found(_place(node), 0.0, None, error, False, False))
    return found[::-1]


def _floats(value: Any) -> list[np.ndarray]:
    """The floating point tensors that a step gives, float64."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    tensors = [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return [tensor.detach().double().numpy() for tensor in tensors]


def errors_by_tensor(
    model: nn.Module, image: np.ndarray, tensors: Sequence[np.ndarray]
) -> list[float | None]:
    """How far each tensor of a file is from the step of the model that it is most like, see `difference`.

    Args:
        model: the torch module.
        image: (1, channels, height, width), as it takes it.
        tensors: that the file computed for the same image.

    Returns:
        None where no step is like it (`LIKE`): it is within something that the model does in one step.
    """
    values = _traced(model, torch.from_numpy(np.ascontiguousarray(image))).values()
    wanted = [part for value in values for part in _floats(value)]
    found: list[float | None] = []
    for tensor in tensors:
        flat = {tensor.size: [np.asarray(tensor, np.float64).reshape(-1)]}
        error = min((_nearest(part, flat)[0] for part in wanted if part.size == tensor.size), default=None)
        found.append(None if error is None or error > LIKE else error)
    return found


def _nearest(
    value: np.ndarray, by_size: Mapping[int, Sequence[np.ndarray]]
) -> tuple[float, np.ndarray | None]:
    """The tensor that differs least from a value, channels first or last, and `difference` to it."""
    best: tuple[float, np.ndarray | None] = (float("inf"), None)
    for candidate in by_size.get(value.size, ()):
        for channels_last in (False, True) if value.ndim in (3, 4) else (False,):
            way = np.moveaxis(value, 1, -1) if channels_last else value
            off = difference(candidate, way.reshape(-1))
            if off < best[0] or best[1] is None:
                laid_out = candidate.reshape(way.shape)
                best = off, np.moveaxis(laid_out, -1, 1) if channels_last else laid_out
    return best


def _traced(model: nn.Module, image: Tensor) -> dict[Any, Any]:
    """Each step of a model's trace and its result."""
    with torch.no_grad():
        exported = torch.export.export(Plain(model), (image,))
        return dict(_Values(exported.module()).of(image))


class _Values(torch.fx.Interpreter):
    """Runs a trace and keeps what each step gives."""

    def of(self, image: Tensor) -> Iterator[tuple[Any, Any]]:
        """Each step and its result."""
        self._kept: dict[Any, Any] = {}
        self.run(image)
        yield from self._kept.items()

    def run_node(self, n: Any) -> Any:
        """Run a step."""
        self._kept[n] = super().run_node(n)
        return self._kept[n]


def _place(node: Any) -> str:
    """A step by the module it is in, as the model names it, and its operation."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    name = str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""
    target = str(node.target).removeprefix("aten.").rsplit(".", 1)[0]
    if not name and target == "clone":  # See `Plain`.
        return "the image"
    return f"{name} ({target})" if name else target
