"""Which channels can only go together, and which cannot go: seen by running the model on numbered channels.

Every axis of every weight and buffer is numbered, place by place. The model runs once on an example, and
each tensor on the way carries, element by element, the number of the channel that made it. What moves data
(reshaping, slicing, concatenation, shuffles, flips, rolls) moves the numbers as it moves the values; where
two channels meet (a sum, a gate, a batch norm, the weights that read them) their numbers are joined. Numbers
that are joined are one unit: they go together or not at all (the dependency groups of DepGraph, Fang et al.,
CVPR 2023, found per channel instead of per layer).

What is not understood stays: an operation that is not known here, a normalisation or softmax across channels,
attention, a weight that is computed, the model's answers. The reason is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from edgeprune.errors import ToolError, UserError
from edgeprune.pruning.calibration import evaluating

Integers = NDArray[np.int64]
ANSWER = "its channels are the model's answers"
KEPT = "it is asked to keep its channels"
TOGETHER = "its channels can only go all together"
FIXED = "its channels meet values whose width is fixed"


@dataclass(frozen=True)
class Axis:
    """One axis of a weight or buffer.

    Attributes:
        tensor: name, as `named_parameters()` or `named_buffers()` gives it.
        dim: which of its axes.
    """

    tensor: str
    dim: int

    @property
    def layer(self) -> str:
        """Name of the module that holds it."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """Units that compete with each other: each takes places of the same axes.

    Attributes:
        layer: name of the first layer that makes these channels; it stands for the group.
        places: by axis, (units, places of each): the indices that go with a unit.
        makers: the axes among them along which a layer makes the channels.
        readers: the axes along which a layer reads them and mixes them.
    """

    layer: str
    places: Mapping[Axis, Integers]
    makers: tuple[Axis, ...]
    readers: tuple[Axis, ...]

    def __len__(self) -> int:
        return len(next(iter(self.places.values())))


@dataclass(frozen=True)
class Grouping:
    """All that a model's channels depend on.

    Attributes:
        groups: what can be removed.
        left: layers with channels that cannot go, and why.
    """

    groups: tuple[Group, ...]
    left: Mapping[str, str]


def find_groups(
    model: nn.Module, example: Tensor, *, keep: Sequence[str] = (), seconds: float = 30
) -> Grouping:
    """Run `model` on `example` and find the channels that can only go together.

    Args:
        model: any module; it is run in eval mode and comes back as it was.
        example: (1, 3, h, w), or whatever the model takes.
        keep: names of layers, or of modules around them, whose outputs stay as they are.
        seconds: of this thread's own time, whatever else the machine does, after which the search is given
            up.

    Raises:
        UserError: a scripted module, a model without layers, or an example that the model does not take.
        ToolError: it took too long.
    """
    _refuse(model)
    trace = _Trace(model, time.thread_time() + seconds)
    with evaluating(model), torch.no_grad():
        try:
            with trace:
                outputs = model(example)
        except _TimeError:
            raise ToolError(
                f"the search for channels that go together took more than {seconds:g} s"
            ) from None
        except Exception as error:  # Whatever a model says to an example that is not its own.
            raise UserError(
                f"the model does not take the example, {tuple(example.shape)} {example.dtype}: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            ) from error
    for output in tensors_in(outputs):
        trace.pin(output, ANSWER)
    for name in keep:
        trace.keep(name)
    return trace.grouping()


def _refuse(model: nn.Module) -> None:
    scripted = [name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise UserError(
            f"module {scripted[0]!r} is scripted, its code fixes its widths: give the module it was made of"
        )
    if not any(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules()):
        raise UserError("the model has no convolution and no linear layer: there are no channels to remove")


class _TimeError(Exception):
    """The deadline has passed."""


@dataclass
class _Weight:
    """A weight on its way to its use: the numbers along each of its axes, in the order they have now."""

    axes: tuple[Tensor, ...]

    def single(self) -> int | None:
        """The one axis that has more than one place; None if several have."""
        long = [dim for dim, axis in enumerate(self.axes) if len(axis) > 1]
        return None if len(long) > 1 else long[0] if long else max(len(self.axes) - 1, 0)


@dataclass
class _Numbers:
    """The numbers of all places of all axes, from 1; 0 stands for what has no channel."""

    axes: list[Axis] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    count: int = 1

    def along(self, axis: Axis, size: int) -> Tensor:
        self.axes.append(axis)
        self.begins.append(self.count)
        self.count += size
        return torch.arange(self.count - size, self.count)


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every operation of a run."""

    def __init__(self, model: nn.Module, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model, self._deadline = model, deadline
        self._numbers = _Numbers()
        self._labels: Any = WeakIdKeyDictionary()
        self._weights: Any = WeakIdKeyDictionary()
        self._by_name: dict[str, _Weight] = {}
        self._joined: list[Tensor] = []  # (2, pairs)
        self._pinned: list[tuple[Tensor, str]] = []
        self._makers: dict[Axis, None] = {}
        self._readers: dict[Axis, None] = {}
        self._axis_of: dict[int, Axis] = {}  # By the first number along it.
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim():
                axes = tuple(self._numbered(Axis(name, dim), size) for dim, size in enumerate(tensor.shape))
                self._weights[tensor] = self._by_name[name] = _Weight(axes)

    def _numbered(self, axis: Axis, size: int) -> Tensor:
        numbers = self._numbers.along(axis, size)
        if size:
            self._axis_of[int(numbers[0])] = axis
        return numbers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if time.thread_time() > self._deadline:
            raise _TimeError
        result = func(*args, **(kwargs or {}))
        self._follow(func, args, kwargs or {}, result)
        return result

    # What a tensor carries.

    def labels(self, tensor: Tensor) -> Tensor:
        """Number of the channel that made each element, of the tensor's own shape."""
        if tensor in self._labels:
            found: Tensor = self._labels[tensor]
            return found
        if tensor in self._weights:
            weight: _Weight = self._weights[tensor]
            dim = weight.single()
            if dim is not None and weight.axes:
                shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                return weight.axes[dim].view(shape).expand(tensor.shape)
            self._pin_weight(tensor, "its weight is computed from others")
        return torch.zeros((), dtype=torch.int64).expand(tensor.shape)

    def _set(self, tensor: object, labels: Tensor) -> None:
        if isinstance(tensor, Tensor):
            self._labels[tensor] = labels if labels.shape == tensor.shape else labels.expand(tensor.shape)

    def _known(self, tensor: Tensor) -> bool:
        return tensor in self._labels or tensor in self._weights

    def pin(self, tensor: Tensor, reason: str) -> None:
        """Whatever made this tensor stays."""
        if tensor in self._weights:
            self._pin_weight(tensor, reason)
        elif tensor in self._labels:
            self._pin(self._labels[tensor], reason)

    def _pin_weight(self, tensor: Tensor, reason: str) -> None:
        for axis in self._weights[tensor].axes:
            self._pin(axis, reason)

    def _pin(self, labels: Tensor, reason: str) -> None:
        self._pinned.append((_unique(labels), reason))

    def _join(self, first: Tensor, second: Tensor) -> None:
        """Elements at the same places belong together; those that meet what has no channel stay."""
        first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
        pairs = torch.stack([part.flatten() for part in _without_repeats(first, second)])
        alone = (pairs == 0).any(0)
        if bool(alone.any()):
            self._pin(pairs[:, alone], FIXED)
        pairs = pairs[:, ~alone & (pairs[0] != pairs[1])]
        if pairs.shape[1]:
            self._joined.append(torch.unique(pairs, dim=1) if pairs.shape[1] > 4096 else pairs)

    def _join_along(self, labels: Tensor, dim: int) -> None:
        self._join(labels, labels.narrow(dim, 0, 1))

    def keep(self, name: str) -> None:
        """The outputs of all layers in the module of this name stay."""
        inside = [
            (f"{name}.{inner}" if inner else name, module)
            for inner, module in self._model.get_submodule(name).named_modules()
        ]
        for layer, _ in inside:
            for axis in self._makers:
                if axis.layer == layer:
                    self._pin(self._by_name[axis.tensor].axes[axis.dim], KEPT)

    # What operations do to it.

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        given = list(tensors_in((args, kwargs)))
        if not any(self._known(tensor) for tensor in given):
            return
        name = func.overloadpacket.__name__
        if (
            len(given) == 1
            and given[0] in self._weights
            and self._follow_weight(name, func, args, kwargs, result)
        ):
            return
        follow = _FOLLOWED.get(name)
        if follow is not None:
            follow(self, func, args, kwargs, result)
        elif torch.Tag.pointwise in func.tags or name.rstrip("_") in _POINTWISE:
            self._pointwise(given, result)
        else:
            self._unknown(name, given)

    def _follow_weight(self, name: str, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        """A weight that is only turned or copied stays a weight."""
        if name not in _TURNING or not isinstance(result, Tensor):
            return False
        weight: _Weight = self._weights[args[0]]
        axes = weight.axes
        # The numbers of each axis, laid out like the weight, go through the same operation.
        turned = []
        for dim in range(result.dim()):
            if result.shape[dim] <= 1:
                turned.append(torch.zeros(result.shape[dim], dtype=torch.int64))
                continue
            found = self._axis_after(axes, dim, func, args, kwargs, result)
            if found is None:
                return False
            turned.append(found)
        self._weights[result] = _Weight(tuple(turned))
        return True

    def _axis_after(
        self, axes: Sequence[Tensor], dim: int, func: Any, args: Any, kwargs: Any, result: Tensor
    ) -> Tensor | None:
        for number, axis in enumerate(axes):
            if len(axis) != result.shape[dim]:
                continue
            shape = [-1 if other == number else 1 for other in range(len(axes))]
            laid = func(axis.view(shape).expand(args[0].shape), *args[1:], **kwargs)
            line = _line(laid, dim)
            if torch.equal(line, axis) and not any(_varies(laid, d) for d in range(laid.dim()) if d != dim):
                return line
        return None

    def _unknown(self, name: str, given: Sequence[Tensor]) -> None:
        for tensor in given:
            self.pin(tensor, f"its channels go through {name}, which mixes them or fixes their width")

    def _pointwise(self, given: Sequence[Tensor], result: Any) -> None:
        if not isinstance(result, Tensor):
            return self._unknown("a pointwise operation", given)
        shape = torch.Size(result.shape)
        weights = [tensor for tensor in given if tensor in self._weights and tensor not in self._labels]
        several = [t for t in weights if self._weights[t].single() is None]
        joined: Tensor | None = None
        others = [t for t in given if not any(t is other for other in several)]
        grown = [_grown(self.labels(t), shape) for t in others]
        for index, (labels, stretched) in enumerate(grown):
            rest = [other for place, (other, _) in enumerate(grown) if place != index]
            if any(_varies(other, dim) for other in rest for dim in stretched):
                # One map for all channels: it has no channel that could go with them.
                self._pin(labels, "its one channel is spread over others")
                continue
            if not bool((labels != 0).any()) and not _widths_fixed(others[index], labels, rest):
                continue  # A number, or what is spread over the channels: it has no width.
            if joined is None:
                joined = labels
            else:
                self._join(joined, labels)
                joined = torch.where(joined == 0, labels, joined) if bool((joined == 0).any()) else joined
        if joined is None:
            joined = torch.zeros((), dtype=torch.int64).expand(shape)
        for tensor in several:
            self._meet(joined, self._weights[tensor])
        self._set(result, joined)
        return None

    def _meet(self, labels: Tensor, weight: _Weight) -> None:
        """A weight of several axes meets channels element by element: a position embedding, a layer scale."""
        offset = labels.dim() - len(weight.axes)
        for dim, axis in enumerate(weight.axes):
            if len(axis) == 1:
                continue
            if not _varies(labels, dim + offset):
                self._pin(axis, FIXED)
                continue
            shape = [-1 if d == dim + offset else 1 for d in range(labels.dim())]
            self._join(labels, axis.view(shape))

    def _moved(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Data moves, and the numbers with it."""
        lists = args[0] if isinstance(args[0], (list, tuple)) else None
        before: Any = [self.labels(t) for t in lists] if lists is not None else self.labels(args[0])
        # The numbers may lie in memory as no view allows.
        views = func.overloadpacket.__name__ in ("view", "_unsafe_view")
        after = torch.reshape(before, args[1]) if views else func(before, *args[1:], **kwargs)
        if lists is None and isinstance(after, Tensor):
            self._split_axes(before, after)
        elif func.overloadpacket.__name__ == "cat":
            self._join_places(after, args[1] if len(args) > 1 else kwargs.get("dim", 0), before)
        for tensor, labels in zip(tensors_in(result), tensors_in(after), strict=True):
            self._set(tensor, labels)

    def _split_axes(self, before: Tensor, after: Tensor) -> None:
        """One axis of channels became two: what fixes the outer one's length stays, the inner one shrinks."""
        varying = [dim for dim in range(after.dim()) if _varies(after, dim)]
        if len(varying) > sum(_varies(before, dim) for dim in range(before.dim())):
            self._join_along(after, varying[0])

    def _join_places(self, labels: Tensor, dim: int, parts: Sequence[Tensor]) -> None:
        """Maps laid side by side, a class token before others: the same channels, more places."""
        alike = [
            not _varies(part, dim) and any(_varies(part, d) for d in range(part.dim())) for part in parts
        ]
        if all(alike):
            self._join_along(labels, dim)

    def _cut_up(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Parts of a tensor: equal ones lose the same places each, others fix the width."""
        labels = self.labels(args[0])
        name = func.overloadpacket.__name__
        position = {"split": 2, "split_with_sizes": 2, "unbind": 1, "select": 1, "slice": 1}[name]
        dim = args[position] if len(args) > position else kwargs.get("dim", 0)
        parts = func(labels, *args[1:], **kwargs)
        whole = isinstance(parts, Tensor) and parts.shape == labels.shape
        if _varies(labels, dim) and not whole:
            equal = not isinstance(parts, Tensor) and len({p.shape for p in parts}) == 1
            if equal:
                for part in parts[1:]:
                    self._join(parts[0], part)
            else:
                self._pin(labels, "a part of its channels is taken by number")
        for tensor, part in zip(tensors_in(result), tensors_in(parts), strict=True):
            self._set(tensor, part)

    def _spatial(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Pooling, padding, resizing: channels stay what they are."""
        labels = self._one_per_channel(args[0], result)
        for tensor in tensors_in(result):
            if labels is None or tensor.dim() != labels.dim() or tensor.shape[1] != labels.shape[1]:
                return self._unknown(func.overloadpacket.__name__, [args[0]])
            self._set(tensor, labels)
        return None

    def _one_per_channel(self, tensor: Tensor, result: Any) -> Tensor | None:
        """(n, channels, 1, ...): all elements of a channel joined; None where there is no such axis."""
        labels = self.labels(tensor)
        if labels.dim() < 3:
            return None
        start = labels.dim() - 2 if labels.dim() == 3 else 2
        for dim in (0, *range(start, labels.dim())):
            if _varies(labels, dim):
                self._join_along(labels, dim)
            labels = labels.narrow(dim, 0, 1)
        return labels

    def _reduced(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """A sum, mean or maximum along axes: the channels along them are joined."""
        labels = self.labels(args[0])
        place = 2 if func.overloadpacket.__name__ in ("linalg_vector_norm",) else 1
        dims = args[place] if len(args) > place else kwargs.get("dim")
        if isinstance(dims, bool) or (place == 1 and func.overloadpacket.__name__ == "var" and len(args) < 2):
            dims = None
        axes = range(labels.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
        axes = sorted({axis % labels.dim() for axis in axes} or set(range(labels.dim())))
        for axis in axes:
            if _varies(labels, axis):
                self._join_along(labels, axis)
            labels = labels.narrow(axis, 0, 1)
        for tensor in tensors_in(result):
            self._set(tensor, labels if tensor.dim() == labels.dim() else labels.squeeze(axes))

    def _convolved(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        inputs, weight, bias = args[:3]
        transposed, groups = bool(args[6]), int(args[8])
        known = self._weights.get(weight) if weight not in self._labels else None
        if known is None or not isinstance(inputs, Tensor) or inputs in self._weights:
            for tensor in (inputs, weight, bias):
                if isinstance(tensor, Tensor):
                    self.pin(tensor, "a convolution with a computed weight reads it")
            return
        make, read = (1, 0) if transposed else (0, 1)
        labels = self.labels(inputs)
        for dim in (0, *range(2, labels.dim())):
            if _varies(labels, dim):
                self._join_along(labels, dim)
            labels = labels.narrow(dim, 0, 1)
        channels = labels.flatten()
        rows = known.axes[0]
        if groups == len(channels) and known.axes[1].numel() == 1 and groups > 1:  # Depthwise.
            self._join(channels.repeat_interleave(len(rows) // groups), rows)
            made = rows
            self._makes(rows, passes=True)
        elif groups > 1 and transposed:
            self._pin(torch.cat([channels, *known.axes]), "it is a grouped transposed convolution")
            made = known.axes[1].repeat(groups)
        elif groups > 1:
            # The number of groups stays: all of them lose the same places.
            self._join(channels.view(groups, -1), known.axes[read])
            self._join(rows.view(groups, -1), rows.view(groups, -1)[:1])
            made = rows
            self._makes(rows)
            self._reads(known.axes[read])
        else:
            self._join(channels, known.axes[read])
            made = known.axes[make]
            self._makes(made)
            self._reads(known.axes[read])
        if isinstance(bias, Tensor):
            self._join(made, self.labels(bias))
        self._set(result, made.view(1, -1, *(1 for _ in result.shape[2:])))

    def _multiplied(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        """A linear layer, as `addmm` or `mm`; two maps multiplied with each other stay whole."""
        bias, inputs, weight = (None, *args[:2]) if func.overloadpacket.__name__ == "mm" else args[:3]
        known = self._weights.get(weight) if weight not in self._labels else None
        if known is None or inputs in self._weights:
            return self._unknown("a product of two maps", [t for t in args if isinstance(t, Tensor)])
        self._linear(inputs, known.axes[0], known.axes[1], bias, result)
        return None

    def _linear_op(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        inputs, weight = args[:2]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        known = self._weights.get(weight) if weight not in self._labels else None
        if known is None or inputs in self._weights:
            return self._unknown("a product of two maps", [t for t in args if isinstance(t, Tensor)])
        self._linear(inputs, known.axes[1], known.axes[0], bias, result)
        return None

    def _linear(self, inputs: Tensor, read: Tensor, make: Tensor, bias: Any, result: Tensor) -> None:
        labels = self.labels(inputs)
        rows = [dim for dim in range(labels.dim() - 1) if _varies(labels, dim)]
        if rows and not _varies(labels, -1):
            # It mixes places, not channels: its own widths stay, and the channels pass.
            self._pin(torch.cat([read, make]), "it runs along an axis that is not the channels'")
            if isinstance(bias, Tensor):
                self.pin(bias, FIXED)
            self._set(result, labels.narrow(-1, 0, 1))
            return
        for dim in rows:
            self._join_along(labels, dim)
        self._join(_line(labels, -1), read)
        self._makes(make)
        self._reads(read)
        if isinstance(bias, Tensor):
            self._join(make, self.labels(bias))
        self._set(result, make.view(*(1 for _ in result.shape[:-1]), -1))

    def _makes(self, numbers: Tensor, *, passes: bool = False) -> None:
        axis = self._axis_of.get(int(numbers[0]))
        if axis is not None and not passes:
            self._makers[axis] = None

    def _reads(self, numbers: Tensor) -> None:
        axis = self._axis_of.get(int(numbers[0]))
        if axis is not None:
            self._readers[axis] = None

    def _batch_norm(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        inputs, *parameters = args[:5]
        labels = self.labels(inputs)
        for dim in (0, *range(2, labels.dim())):
            if _varies(labels, dim):
                self._join_along(labels, dim)
        channels = labels.transpose(0, 1).flatten(1)[:, 0] if labels.dim() > 1 else labels
        for tensor in parameters:
            if isinstance(tensor, Tensor) and len(tensor) == len(channels):
                self._join(channels, self.labels(tensor))
        self._set(next(iter(tensors_in(result))), labels)

    def _normalized(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Across channels: what goes would change the mean and the variance of the others."""
        for tensor in tensors_in((args, kwargs)):
            self.pin(tensor, "a normalisation across channels reads it")
        self._set(next(iter(tensors_in(result))), self.labels(args[0]))

    def _softmax(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> None:
        labels = self.labels(args[0])
        if _varies(labels, args[1]):
            self._pin(labels, "a softmax across channels reads it")
        self._set(result, labels)

    def _written(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """`copy_`: onto a part of another tensor, or all of it."""
        target, source = args[:2]
        if target in self._weights or target._is_view():
            for tensor in (target, source):
                self.pin(tensor, "its channels are written into a part of another map")
            return
        self._set(target, self.labels(source).expand(target.shape))

    def _copied(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._set(next(iter(tensors_in(result))), self.labels(args[0]))

    def _made_anew(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """It has no channels."""

    # What it all comes to.

    def grouping(self) -> Grouping:
        """Units, groups of them, and what cannot go."""
        unit_of = self._units()
        reasons = self._reasons(unit_of)
        members = self._members(unit_of)
        kinds: dict[tuple[tuple[Axis, int], ...], list[dict[Axis, list[int]]]] = {}
        left: dict[str, str] = {}
        for unit, places in members.items():
            makers = [axis for axis in places if axis in self._makers]
            if unit in reasons:
                for axis in makers:
                    left.setdefault(axis.layer, reasons[unit])
            elif makers and any(axis in self._readers for axis in places):
                kinds.setdefault(tuple((axis, len(found)) for axis, found in places.items()), []).append(
                    places
                )
        groups = []
        for units in kinds.values():
            group = self._group(units)
            if len(group) > 1:
                groups.append(group)
            else:
                for axis in group.makers:
                    left.setdefault(axis.layer, TOGETHER)
        order = {axis.layer: place for place, axis in enumerate(self._makers)}
        groups.sort(key=lambda group: order[group.layer])
        return Grouping(tuple(groups), {name: left[name] for name in sorted(left, key=lambda n: order[n])})

    def _units(self) -> Integers:
        """Number of the unit that each numbered place belongs to."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        count = self._numbers.count
        pairs = torch.cat(self._joined, 1).numpy() if self._joined else np.zeros((2, 0), np.int64)
        matrix = coo_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(count, count))
        return np.asarray(connected_components(matrix, directed=False)[1], np.int64)

    def _reasons(self, unit_of: Integers) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for labels, reason in self._pinned:
            for unit in np.unique(unit_of[labels.numpy()[labels.numpy() != 0]]):
                if reasons.get(int(unit), FIXED) == FIXED:  # Anything else says more.
                    reasons[int(unit)] = reason
        return reasons

    def _members(self, unit_of: Integers) -> dict[int, dict[Axis, list[int]]]:
        """By unit, the places of each axis that belong to it; units that make no channel are left out."""
        making = {
            int(unit)
            for axis in self._makers
            for unit in unit_of[self._by_name[axis.tensor].axes[axis.dim].numpy()]
        }
        members: dict[int, dict[Axis, list[int]]] = {unit: {} for unit in sorted(making)}
        ends = [*self._numbers.begins[1:], self._numbers.count]
        for axis, begin, end in zip(self._numbers.axes, self._numbers.begins, ends, strict=True):
            for place, unit in enumerate(unit_of[begin:end].tolist()):
                if unit in making:
                    members[unit].setdefault(axis, []).append(place)
        return members

    def _group(self, units: Sequence[Mapping[Axis, list[int]]]) -> Group:
        axes = list(units[0])
        order = list(self._makers)
        makers = sorted((axis for axis in axes if axis in self._makers), key=order.index)
        readers = tuple(axis for axis in axes if axis in self._readers)
        # In the order of the layer that stands for them: ties are broken by the channel's number.
        units = sorted(units, key=lambda places: places[makers[0]])
        places = {axis: np.array([unit[axis] for unit in units], np.int64) for axis in axes}
        return Group(makers[0].layer, places, tuple(makers), readers)


_TURNING = {
    "t", "transpose", "permute", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "expand", "alias",
    "detach", "clone", "_to_copy", "lift_fresh",
}  # fmt: skip

# Not all of them carry torch's mark.
_POINTWISE = {
    "hardswish", "hardsigmoid", "hardtanh", "silu", "mish", "gelu", "leaky_relu", "elu", "softplus", "relu",
    "relu6", "_prelu_kernel", "sigmoid", "tanh", "clamp", "log_sigmoid_forward", "dropout",
}  # fmt: skip
_MOVING = (
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "alias",
    "detach", "cat", "stack", "flip", "roll", "repeat", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle",
)  # fmt: skip
_SPATIAL = (
    "avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "constant_pad_nd",
    "reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "upsample_bilinear2d",
    "upsample_bicubic2d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
    "avg_pool1d", "_adaptive_avg_pool1d",
)  # fmt: skip
# New values in a shape that is given.
_MAKING = (
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "new_zeros", "new_ones", "new_empty",
    "_local_scalar_dense",
)  # fmt: skip

_Follow = Callable[[_Trace, Any, Any, Any, Any], None]
_FOLLOWED: dict[str, _Follow] = {
    **dict.fromkeys(_MOVING, _Trace._moved),
    **dict.fromkeys(_SPATIAL, _Trace._spatial),
    **dict.fromkeys(_MAKING, _Trace._made_anew),
    **dict.fromkeys(("split", "split_with_sizes", "unbind", "select", "slice"), _Trace._cut_up),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "linalg_vector_norm"), _Trace._reduced),
    **dict.fromkeys(("clone", "_to_copy", "lift_fresh", "native_dropout"), _Trace._copied),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _Trace._batch_norm
    ),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), _Trace._normalized),
    **dict.fromkeys(("mm", "addmm"), _Trace._multiplied),
    "linear": _Trace._linear_op,
    "convolution": _Trace._convolved,
    "_softmax": _Trace._softmax,
    "copy_": _Trace._written,
}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, dicts and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from tensors_in(vars(value))


def _unique(labels: Tensor) -> Tensor:
    """The different numbers in `labels`."""
    found: Tensor = torch.unique(*_without_repeats(labels))
    return found


def _without_repeats(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors without the axes along which all of them only repeat one value."""
    for dim in range(tensors[0].dim()):
        if tensors[0].shape[dim] > 1 and not any(_varies(tensor, dim) for tensor in tensors):
            tensors = tuple(tensor.narrow(dim, 0, 1) for tensor in tensors)
    return tensors


def _varies(labels: Tensor, dim: int) -> bool:
    """Whether the numbers differ along an axis."""
    if labels.shape[dim] <= 1 or labels.stride(dim) == 0 or not labels.numel():
        return False
    return not torch.equal(
        labels.narrow(dim, 1, labels.shape[dim] - 1), labels.narrow(dim, 0, labels.shape[dim] - 1)
    )


def _line(labels: Tensor, dim: int) -> Tensor:
    """The values along one axis, at the first place of all others: (size,)."""
    for other in range(labels.dim()):
        if other != dim % labels.dim():
            labels = labels.narrow(other, 0, 1)
    return labels.flatten()


def _grown(labels: Tensor, shape: torch.Size) -> tuple[Tensor, list[int]]:
    """Labels of an operand in the shape of the result, and the axes along which it was spread."""
    aligned = labels.reshape(*(1 for _ in range(len(shape) - labels.dim())), *labels.shape)
    spread = [dim for dim in range(len(shape)) if aligned.shape[dim] == 1 and shape[dim] > 1]
    return aligned.expand(shape), spread


def _widths_fixed(tensor: Tensor, grown: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether values without channels have a width of their own along the channels of the others."""
    offset = grown.dim() - tensor.dim()
    return any(
        size > 1 and any(_varies(other, dim + offset) for other in others)
        for dim, size in enumerate(tensor.shape)
    )
