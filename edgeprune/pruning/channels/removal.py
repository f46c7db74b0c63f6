"""Taking channels out of a model, undoing it, and seeing that nothing else changed.

Channels that are zero everywhere (in the weights that make them, carry them and read them) can be taken out
without any change of the answers. So each removal is tried before it is done: zeros in place of the
channels, then no channels, and the answers to random images must agree. Code that fixes a width (a `view` to
a number, a split by a constant) shows itself by an error or by other answers, whatever the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgeprune.errors import ToolError, UserError
from edgeprune.models.resize import fit_widths
from edgeprune.pruning.calibration import evaluating
from edgeprune.pruning.channels.groups import Axis, Group, tensors_in

# Of the spread of the answers; float64 leaves errors far smaller, a wrong channel makes far larger ones.
AGREEMENT = 1e-5
NO_TIME = "the time for trying it ran out"
MOVES = "without some of its channels, zero or not, the model fails or answers otherwise"

# Units to remove of a group.
Cut = tuple[Group, Sequence[int]]


def places_of(cuts: Sequence[Cut]) -> dict[Axis, Tensor]:
    """Places to remove along each axis."""
    gone: dict[Axis, list[Tensor]] = {}
    for group, units in cuts:
        for axis, places in group.places.items():
            gone.setdefault(axis, []).append(torch.from_numpy(places[list(units)].ravel()))
    return {axis: torch.cat(parts) for axis, parts in gone.items() if sum(map(len, parts))}


def take_out(model: nn.Module, cuts: Sequence[Cut]) -> None:
    """Remove the units, in place. Weights stay the same objects: tied ones stay tied, frozen ones frozen."""
    named = _tensors(model)
    with torch.no_grad():
        for axis, places in places_of(cuts).items():
            tensor = named[axis.tensor]
            stays = torch.ones(tensor.shape[axis.dim], dtype=torch.bool)
            stays[places] = False
            tensor.grad = None
            chosen = stays.nonzero().flatten().to(tensor.device)
            tensor.data = tensor.data.index_select(axis.dim, chosen)
    fit_widths(model)


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Whatever is removed or changed inside is back afterwards."""
    with _restoring(model, always=True):
        yield


@contextmanager
def unless_it_fails(model: nn.Module) -> Iterator[None]:
    """After an error the model is what it was before."""
    with _restoring(model, always=False):
        yield


@contextmanager
def _restoring(model: nn.Module, *, always: bool) -> Iterator[None]:
    data = [(tensor, tensor.data, tensor.grad) for tensor in _tensors(model).values()]
    plain = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, (int, tuple))})
        for module in model.modules()
    ]
    finished = False
    try:
        yield
        finished = True
    finally:
        if always or not finished:
            for tensor, before, gradient in data:
                tensor.data = before
                tensor.grad = gradient
            for module, attributes in plain:
                vars(module).update(attributes)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class Trials:
    """Tries removals on a model, which comes back as it was each time."""

    def __init__(self, model: nn.Module, example: Tensor, *, seconds: float) -> None:
        self._model, self._deadline = model, time.thread_time() + seconds
        generator = torch.Generator().manual_seed(0)
        self._images = [
            torch.randn(example.shape, generator=generator).to(example.device, example.dtype)
            for _ in range(2)
        ]

    def possible(self, cuts: Sequence[Cut]) -> tuple[list[Cut], dict[str, str]]:
        """The cuts that move nothing else, all together, and why the others stay, by layer."""
        accepted: list[Cut] = []
        left: dict[str, str] = {}
        with evaluating(self._model), _in_double(self._model) as images_as:
            images = [images_as(image) for image in self._images]
            _measure_norms(self._model, images)
            _refuse_not_finite([_answers(self._model, image) for image in images])
            self._grow(accepted, list(cuts), left, images)
        return accepted, left

    def _grow(
        self, accepted: list[Cut], candidates: list[Cut], left: dict[str, str], images: Sequence[Tensor]
    ) -> None:
        if not candidates:
            return
        if time.thread_time() > self._deadline:
            left.update({group.layer: NO_TIME for group, _ in candidates})
        elif self._agrees([*accepted, *candidates], images):
            accepted += candidates
        elif len(candidates) == 1:
            left[candidates[0][0].layer] = MOVES
        else:
            middle = len(candidates) // 2
            self._grow(accepted, candidates[:middle], left, images)
            self._grow(accepted, candidates[middle:], left, images)

    def _agrees(self, cuts: Sequence[Cut], images: Sequence[Tensor]) -> bool:
        with undone(self._model):
            _zero(self._model, cuts)
            wanted = [_answers(self._model, image) for image in images]
        with undone(self._model):
            try:
                take_out(self._model, cuts)
                found = [_answers(self._model, image) for image in images]
            except Exception:  # Whatever the model's own code says to a width that it does not expect.
                return False
        return agree(wanted, found)


def agree(wanted: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]]) -> bool:
    """Whether two sets of answers to the same images are the same, measured by how images differ."""
    if [[t.shape for t in answers] for answers in wanted] != [
        [t.shape for t in answers] for answers in found
    ]:
        return False
    if not any(tensor.numel() for answers in wanted for tensor in answers):
        return False  # Nothing was seen.
    for outputs, replies in zip(zip(*wanted, strict=True), zip(*found, strict=True), strict=True):
        same_shapes = len({t.shape for t in outputs}) == 1
        spread = float((outputs[0] - outputs[-1]).abs().max()) if same_shapes and outputs[0].numel() else 0.0
        for one, other in zip(outputs, replies, strict=True):
            size = float(one.abs().max()) if one.numel() else 0.0
            rounding = torch.finfo(one.dtype).eps * size * 1e3
            if one.numel() and not float((one - other).abs().max()) <= AGREEMENT * spread + rounding:
                return False
    return True


def _refuse_not_finite(answers: Sequence[Sequence[Tensor]]) -> None:
    if not all(bool(tensor.isfinite().all()) for outputs in answers for tensor in outputs):
        raise UserError(
            "the model answers NaN or infinity to random images: what goes cannot be told to matter"
        )


def _answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [tensor.clone() for tensor in tensors_in(model(images)) if tensor.is_floating_point()]


def _measure_norms(model: nn.Module, images: Sequence[Tensor]) -> None:
    """Give batch norms the statistics of these images: through an untrained network no signal comes else."""
    norms = [(m, m.momentum) for m in model.modules() if isinstance(m, _BatchNorm) and not m.training]
    try:
        for norm, _ in norms:
            for buffer in norm.buffers():
                buffer.data = buffer.data.clone()  # They are written in place.
            norm.training, norm.momentum = True, 1.0
        with torch.no_grad(), suppress(Exception):  # A model that takes no two images at once does without.
            model(torch.cat(list(images)))
    finally:
        for norm, momentum in norms:
            norm.training, norm.momentum = False, momentum


def _zero(model: nn.Module, cuts: Sequence[Cut]) -> None:
    _fill(model, places_of(cuts))


def zero_makers(model: nn.Module, cuts: Sequence[Cut]) -> None:
    """Zero what makes the units and what shifts them, in place: not the weights that read them."""
    reading = {axis for group, _ in cuts for axis in group.readers}
    measured = ("running_mean", "running_var")
    _fill(
        model,
        {
            axis: places
            for axis, places in places_of(cuts).items()
            if axis not in reading and not axis.tensor.endswith(measured)
        },
    )


def zero_readers(model: nn.Module, cuts: Sequence[Cut], axes: Sequence[Axis]) -> None:
    """Zero the weights that read the units along these axes, in place."""
    _fill(model, {axis: places for axis, places in places_of(cuts).items() if axis in axes})


def _fill(model: nn.Module, gone: Mapping[Axis, Tensor]) -> None:
    named = _tensors(model)
    for axis, places in gone.items():
        tensor = named[axis.tensor]
        tensor.data = tensor.data.index_fill(axis.dim, places.to(tensor.device), 0.0)


@contextmanager
def _in_double(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """The model in float64 where it can be, so that rounding cannot hide a difference."""
    with undone(model):
        with suppress(TypeError, RuntimeError):  # Some devices have no float64.
            wide = [(t, t.data.double()) for t in _tensors(model).values() if t.is_floating_point()]
            for tensor, data in wide:
                tensor.data = data
        yield lambda images: _as_taken(model, images)


def _as_taken(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the type that the model can be run with now."""
    floating: Any = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(floating.dtype) if images.is_floating_point() else images


def reasons_or(error: str, left: Mapping[str, str]) -> ToolError:
    """An error that nothing could be removed, with what was found on the way."""
    lines = [f"  {name!r} stays: {reason}" for name, reason in list(left.items())[:5]]
    more = [f"  and {len(left) - 5} more layers"] * (len(left) > 5)
    return ToolError("\n".join([error, *lines, *more]))
