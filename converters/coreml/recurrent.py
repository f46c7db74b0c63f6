"""MIL's recurrent layers and lists, and non-maximum suppression, as torch functions: see `operations`.

Sequences are (steps, batch, width), states (batch, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "linear": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "tanh": torch.tanh,
}
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name.lower() not in ACTIVATIONS:
        raise ValueError(f"a recurrent layer with activation {name!r} is not supported")
    return ACTIVATIONS[name.lower()]


def _over_time(
    x: Tensor, step: Step, state: State, direction: str, output_sequence: bool
) -> tuple[Tensor, ...]:
    """Go through a sequence: what each step gives first, or the last one alone, then the state at the end."""
    if direction not in ("forward", "reverse"):
        raise ValueError(f"a recurrent layer in direction {direction!r} is not supported")
    order = range(len(x)) if direction == "forward" else range(len(x) - 1, -1, -1)
    given: dict[int, Tensor] = {}
    for place in order:
        state = step(x[place], state)
        given[place] = state[0]
    sequence = torch.stack([given[place] for place in range(len(x))]) if output_sequence else state[0][None]
    return (sequence, *state)


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, ...]:
    """`h = activation(weight_ih @ x + weight_hh @ h + bias)`."""
    function = _activation(activation)
    offset: Any = 0 if bias is None else bias

    def step(now: Tensor, state: State) -> State:
        return (function(now @ weight_ih.T + state[0] @ weight_hh.T + offset),)

    return _over_time(x, step, (initial_h,), direction, output_sequence)


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
) -> tuple[Tensor, ...]:
    """Gates in the order reset, output, update; the bias of the output gate is not under the reset gate."""
    gate, function = _activation(recurrent_activation), _activation(activation)
    biases: Sequence[Any] = [0, 0, 0] if bias is None else bias.chunk(3)

    def step(now: Tensor, state: State) -> State:
        inputs = [part + b for part, b in zip((now @ weight_ih.T).chunk(3, -1), biases, strict=True)]
        hidden = (state[0] @ weight_hh.T).chunk(3, -1)
        reset, update = gate(inputs[0] + hidden[0]), gate(inputs[2] + hidden[2])
        output = function(inputs[1] + reset * hidden[1])
        return ((1 - update) * output + update * state[0],)

    return _over_time(x, step, (initial_h,), direction, output_sequence)


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, ...]:
    """Gates in the order input, forget, output, cell; of two directions, forward comes first in the width."""
    if peephole is not None or peephole_back is not None or clip is not None:
        raise ValueError("lstm with peepholes or clipping is not supported")
    functions = [_activation(name) for name in (recurrent_activation, cell_activation, activation)]

    def one_way(way: str, weights: Sequence[Any], state: State) -> tuple[Tensor, ...]:
        if weights[0] is None or weights[1] is None:
            raise ValueError(f"lstm in direction {direction!r} lacks the weights of one direction")
        return _over_time(x, _lstm_step(*weights, *functions), state, way, output_sequence)

    forward, back = (weight_ih, weight_hh, bias), (weight_ih_back, weight_hh_back, bias_back)
    if direction != "bidirectional":
        return one_way(direction, forward, (initial_h, initial_c))
    states = list(zip(initial_h.chunk(2, -1), initial_c.chunk(2, -1), strict=True))
    both = one_way("forward", forward, states[0]), one_way("reverse", back, states[1])
    return tuple(torch.cat(pair, -1) for pair in zip(*both, strict=True))


def _lstm_step(
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    gate: Callable[[Tensor], Tensor],
    cell: Callable[[Tensor], Tensor],
    function: Callable[[Tensor], Tensor],
) -> Step:
    offset: Any = 0 if bias is None else bias

    def step(now: Tensor, state: State) -> State:
        i, f, o, z = (now @ weight_ih.T + state[0] @ weight_hh.T + offset).chunk(4, -1)
        memory = gate(f) * state[1] + gate(i) * cell(z)
        return gate(o) * function(memory), memory

    return step


def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """The boxes with the highest scores that do not overlap a better one, filled up with -1 to `max_boxes`.

    Up to iOS 16 it takes (1, boxes, 4) and a threshold of scores, and gives their number last; from iOS 17 on
    it takes (1, 4, boxes). A box is its centre, width and height.
    """
    older = score_threshold is not None
    rows, values = (boxes[0], scores[0]) if older else (boxes[0].T, scores[0].T)
    if len(boxes) != 1 or values.shape[1] != 1:
        raise ValueError("non_maximum_suppression of several images, or classes, is not supported")
    low = -torch.inf if score_threshold is None else score_threshold
    kept = _without_overlaps(rows, values[:, 0], iou_threshold, low)[:max_boxes]
    places = torch.full((max_boxes,), -1, dtype=torch.int32)
    places[: len(kept)] = torch.tensor(kept, dtype=torch.int32)
    found = [part.new_zeros(max_boxes, part.shape[1]) for part in (rows, values)]
    for result, part in zip(found, (rows, values), strict=True):
        result[: len(kept)] = part[kept]
    if not older:
        return found[0].T[None], found[1].T[None], places[None]
    return found[0][None], found[1][None], places[None], torch.tensor([len(kept)], dtype=torch.int32)


def _without_overlaps(rows: Tensor, scores: Tensor, threshold: float, low: float) -> list[int]:
    """Numbers of the boxes that stay, best first."""
    corners = torch.cat([rows[:, :2] - rows[:, 2:] / 2, rows[:, :2] + rows[:, 2:] / 2], 1)
    areas = rows[:, 2] * rows[:, 3]
    left = [int(n) for n in scores.argsort(descending=True, stable=True).tolist() if scores[n] >= low]
    kept: list[int] = []
    while left:
        best, *others = left
        kept.append(best)
        sides = torch.minimum(corners[best, 2:], corners[others, 2:]) - torch.maximum(
            corners[best, :2], corners[others, :2]
        )
        shared = sides.clamp(min=0).prod(1)
        overlap = shared / (areas[best] + areas[others] - shared)
        left = [n for n, share in zip(others, overlap.tolist(), strict=True) if not share > threshold]
    return kept


List = list[Tensor]


def make_list(
    init_length: int = 1, dynamic_length: bool = True, elem_shape: Any = (), dtype: str = "fp32"
) -> list[Any]:
    """A list of places not yet written to."""
    return [None] * int(init_length)


def list_length(ls: List) -> Tensor:
    """How many elements it has."""
    return torch.tensor(len(ls), dtype=torch.int32)


def list_read(ls: List, index: Any) -> Tensor:
    """One element."""
    return ls[int(index)]


def list_write(ls: List, index: Any, value: Tensor) -> list[Any]:
    """A list with one element replaced, or added at the end."""
    place = int(index)
    return [*ls[:place], *[None] * (place - len(ls)), value, *ls[place + 1 :]]


def list_gather(ls: List, indices: Any) -> Tensor:
    """Elements beside each other along a new first axis."""
    return torch.stack([ls[place] for place in torch.as_tensor(indices).tolist()])


def list_scatter(ls: List, indices: Any, value: Tensor) -> list[Any]:
    """A list with elements replaced by slices of `value`."""
    for number, place in enumerate(torch.as_tensor(indices).tolist()):
        ls = list_write(ls, place, value[number])
    return ls


OPERATIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        rnn, gru, lstm, non_maximum_suppression, make_list, list_length, list_read, list_write, list_gather,
        list_scatter,
    )
}  # fmt: skip
