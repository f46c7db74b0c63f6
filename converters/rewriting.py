"""Operations that the converters get wrong or refuse, spelt out in ones they get right.

While `Rewriting` is active, calls of these functions are answered by other ones of the same result: in a
plain run as well as in a trace by `torch.export`, so that nothing downstream, of Core ML or of LiteRT, ever
sees the original. Each rewriting is for something that was seen to come out wrong; all else is left as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Catmull-Rom with the constants torch uses, and with those it uses for smoothing.
CUBIC, CUBIC_SMOOTHED = -0.75, -0.5
LOWEST = float(np.finfo(np.float32).min)


class Rewriting(TorchFunctionMode):
    """A block in which the functions of `REWRITTEN` are computed another way."""

    def __init__(self, functions: Mapping[Any, Callable[..., Any]] | None = None) -> None:
        """Compute these functions by those, else those of `REWRITTEN`."""
        super().__init__()
        self._functions = REWRITTEN if functions is None else functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute `func` another way where there is one."""
        return self._functions.get(func, func)(*args, **(kwargs or {}))


# --- Resizing ----------------------------------------------------------------------------------------------


def interpolate(
    input: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """`F.interpolate` of maps (n, c, h, w).

    Nearest resizing to what is no multiple picks rows and columns. What LiteRT and Core ML have no exact
    operation for (a factor that does not lead to the size it gives, smoothing, cubic) is two matrix
    products.
    """
    given = (input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    if input.ndim != 4 or mode not in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        return F.interpolate(*given)
    lengths, steps = _sizes_and_steps(input.shape[2:], size, scale_factor, recompute_scale_factor)
    exact = all(
        math.isclose(step * out, before, rel_tol=1e-9)
        for step, out, before in zip(steps, lengths, input.shape[2:], strict=True)
    )
    if mode.startswith("nearest"):
        if (
            mode == "nearest"
            and exact
            and all(o % i == 0 for o, i in zip(lengths, input.shape[2:], strict=True))
        ):
            return F.interpolate(*given)
        half = 0.5 if mode == "nearest-exact" else 0.0
        for axis, (out, step) in enumerate(zip(lengths, steps, strict=True)):
            input = _picked(input, axis + 2, nearest_places(input.shape[axis + 2], out, step, half))
        return input
    if mode == "bilinear" and exact and not antialias:
        return F.interpolate(*given)
    rows, columns = (
        _constant(resizing_matrix(before, out, step, mode, bool(align_corners), antialias), input)
        for before, out, step in zip(input.shape[2:], lengths, steps, strict=True)
    )
    return rows @ input @ columns.mT


def _sizes_and_steps(
    before: Sequence[int], size: Any, scale_factor: Any, recompute: bool | None
) -> tuple[list[int], list[float]]:
    """The sizes of the result, and how many pixels one of its pixels is wide, along height and width."""
    if size is not None:
        sizes = [int(size)] * 2 if isinstance(size, int) else [int(side) for side in size]
        return sizes, [old / new for old, new in zip(before, sizes, strict=True)]
    factors = [
        float(f) for f in (scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * 2)
    ]
    sizes = [math.floor(old * factor) for old, factor in zip(before, factors, strict=True)]
    if recompute:
        return sizes, [old / new for old, new in zip(before, sizes, strict=True)]
    return sizes, [1 / factor for factor in factors]


def nearest_places(before: int, out: int, step: float, half: float = 0.0) -> list[int]:
    """Which of `before` places each of `out` results is taken from, as torch computes it, in float32.

    >>> nearest_places(4, 6, 4 / 6)
    [0, 0, 1, 2, 2, 3]
    """
    scaled = (np.arange(out, dtype=np.float32) + np.float32(half)) * np.float32(step)
    return [int(place) for place in np.minimum(np.floor(scaled), before - 1)]


def _picked(x: Tensor, axis: int, places: list[int]) -> Tensor:
    if places == list(range(x.shape[axis])):
        return x
    step = places[1] - places[0] if len(places) > 1 else x.shape[axis]
    if step > 0 and places == list(range(0, step * len(places), step)):
        return x[(slice(None),) * axis + (slice(0, places[-1] + 1, step),)]
    return x.index_select(axis, torch.tensor(places, device=x.device))


def resizing_matrix(
    before: int, out: int, step: float, mode: str, align_corners: bool, antialias: bool
) -> np.ndarray:
    """What each of `out` results takes of `before` values, (out, before), as `F.interpolate` does.

    >>> resizing_matrix(2, 4, 0.5, "bilinear", False, False).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    places = np.arange(out)
    if align_corners:
        step = (before - 1) / (out - 1) if out > 1 else 0.0
        centres = places * step
    else:
        centres = (places + 0.5) * step - 0.5
    matrix = np.zeros((out, before))
    widened = max(step, 1.0) if antialias else 1.0
    cubic = mode == "bicubic"
    reach = (2.0 if cubic else 1.0) * widened
    for row, centre in enumerate(centres):
        if not cubic and not align_corners and not antialias:
            centre = max(centre, 0.0)
        taps = np.arange(math.floor(centre - reach), math.ceil(centre + reach) + 1)
        if antialias:  # Taps that lie outside are left out, and the rest share their weight.
            taps = taps[(taps >= 0) & (taps < before)]
        distances = np.abs(taps - centre) / widened
        weights = (
            _cubic(distances, CUBIC_SMOOTHED if antialias else CUBIC)
            if cubic
            else np.maximum(1 - distances, 0)
        )
        np.add.at(matrix[row], np.clip(taps, 0, before - 1), weights / weights.sum())
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Weight of a value at a distance, for cubic interpolation (Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    result: np.ndarray = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    return result


def _constant(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.tensor(values.tolist(), dtype=like.dtype, device=like.device)


# --- Pooling -----------------------------------------------------------------------------------------------


def avg_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """`F.avg_pool2d` as padding, a plain average pool and a factor for each place.

    LiteRT gets files nothing can load for all but plain pools, and Core ML divides windows that reach beyond
    the image (`ceil_mode`) by the whole window.
    """
    kernel, steps, pads = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    plain = not any(pads) and not ceil_mode and divisor_override is None
    if plain or input.ndim != 4:
        return F.avg_pool2d(input, kernel, steps, pads, ceil_mode, count_include_pad, divisor_override)
    outs = [
        pooled_size(*sizes, ceil_mode) for sizes in zip(input.shape[2:], kernel, steps, pads, strict=True)
    ]
    counts = [
        _counted(*sizes, count_include_pad)
        for sizes in zip(input.shape[2:], outs, kernel, steps, pads, strict=True)
    ]
    divisors = np.outer(*counts) if divisor_override is None else np.full(outs, divisor_override)
    factors = kernel[0] * kernel[1] / divisors
    result = F.avg_pool2d(_padded(input, outs, kernel, steps, pads, 0.0), kernel, steps)
    return result if (factors == 1).all() else result * _constant(factors, input)


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`F.max_pool2d`; a dilated one as the largest of as many slices as its window has places."""
    kernel, steps, pads, spread = map(_pair, (kernel_size, stride or kernel_size, padding, dilation))
    if spread == [1, 1] or input.ndim != 4 or return_indices:
        # The stride is always said: coremltools does not know the default.
        options: dict[str, Any] = {"ceil_mode": ceil_mode, "return_indices": return_indices}
        return F.max_pool2d(input, kernel, steps, pads, spread, **options)
    taps = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    outs = [pooled_size(*sizes, ceil_mode) for sizes in zip(input.shape[2:], taps, steps, pads, strict=True)]
    padded = _padded(input, outs, taps, steps, pads, LOWEST)
    slices = [
        padded[
            :, :,
            row * spread[0] : row * spread[0] + (outs[0] - 1) * steps[0] + 1 : steps[0],
            column * spread[1] : column * spread[1] + (outs[1] - 1) * steps[1] + 1 : steps[1],
        ]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]  # fmt: skip
    largest = slices[0]
    for part in slices[1:]:
        largest = torch.maximum(largest, part)
    return largest


def adaptive_max_pool2d(
    input: Tensor,
    output_size: Any,
    return_indices: bool = False,
) -> Any:
    """`F.adaptive_max_pool2d`, which LiteRT has no operation for, as a pool or the largest of each window."""
    sizes = [out or side for out, side in zip(_sides(output_size), input.shape[-2:], strict=True)]
    if return_indices or input.ndim != 4:
        options: dict[str, Any] = {"return_indices": return_indices}
        return F.adaptive_max_pool2d(input, output_size, **options)
    if all(side % out == 0 for side, out in zip(input.shape[2:], sizes, strict=True)):
        kernel = [side // out for side, out in zip(input.shape[2:], sizes, strict=True)]
        return F.max_pool2d(input, kernel, kernel)
    for axis, out in enumerate(sizes, 2):
        side = input.shape[axis]
        windows = [
            input.narrow(axis, place * side // out, -(-(place + 1) * side // out) - place * side // out)
            for place in range(out)
        ]
        input = torch.cat([window.amax(axis, keepdim=True) for window in windows], axis)
    return input


def _sides(output_size: Any) -> list[int | None]:
    return list(output_size) if isinstance(output_size, (tuple, list)) else [output_size] * 2


def pooled_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Length of what a pool gives; the last window of `ceil_mode` begins inside the image or its padding.

    >>> pooled_size(6, 3, 2, 0, True), pooled_size(6, 3, 2, 0, False), pooled_size(5, 1, 3, 1, True)
    (3, 2, 2)
    """
    space = size + 2 * padding - kernel
    out = (math.ceil(space / stride) if ceil_mode else space // stride) + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _counted(size: int, out: int, kernel: int, stride: int, padding: int, with_padding: bool) -> np.ndarray:
    """How many places of each window count, (out,)."""
    first = np.arange(out) * stride - padding
    last = np.minimum(first + kernel, size + padding)
    if not with_padding:
        first, last = np.maximum(first, 0), np.minimum(last, size)
    counts: np.ndarray = last - first
    return counts


def _padded(
    x: Tensor,
    outs: Sequence[int],
    taps: Sequence[int],
    steps: Sequence[int],
    pads: Sequence[int],
    value: float,
) -> Tensor:
    """`x` padded as much as the windows read of it."""
    after = [
        max(pad, (out - 1) * step + tap - size - pad)
        for out, step, tap, size, pad in zip(outs, steps, taps, x.shape[2:], pads, strict=True)
    ]
    amounts = [pads[1], after[1], pads[0], after[0]]
    return F.pad(x, amounts, value=value) if any(amounts) else x


def local_response_norm(
    input: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> Tensor:
    """`F.local_response_norm` of maps, by sums over neighbouring channels instead of a pool in 3-D."""
    if input.ndim != 4:
        return F.local_response_norm(input, size, alpha, beta, k)
    channels = input.shape[1]
    squares = F.pad(input * input, (0, 0, 0, 0, size // 2, (size - 1) // 2))
    total = squares[:, :channels]
    for shift in range(1, size):
        total = total + squares[:, shift : shift + channels]
    return input / (total * (alpha / size) + k) ** beta


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """`F.conv_transpose2d`; LiteRT refuses groups: pixels spread among zeros, then a plain convolution."""
    steps, pads, extra, spread = map(_pair, (stride, padding, output_padding, dilation))
    if groups == 1 or input.ndim != 4:
        return F.conv_transpose2d(input, weight, bias, steps, pads, extra, groups, spread)
    n, channels, height, width = input.shape
    x = input.reshape(n * channels, height, 1, width, 1)
    x = F.pad(x, (0, steps[1] - 1, 0, 0, 0, steps[0] - 1)).reshape(
        n, channels, height * steps[0], width * steps[1]
    )
    reach = [d * (k - 1) - p for d, k, p in zip(spread, weight.shape[2:], pads, strict=True)]
    after = [r - (s - 1) + e for r, s, e in zip(reach, steps, extra, strict=True)]
    x = F.pad(x, (reach[1], after[1], reach[0], after[0]))
    grouped = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    turned = grouped.flatten(0, 1).flip((2, 3))
    return F.conv2d(x, turned, bias, 1, 0, spread, groups)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """`F.celu`, which coremltools does not know."""
    return torch.relu(input) - torch.relu(alpha * (1 - torch.exp(-torch.relu(-input) / alpha)))


def logsigmoid(input: Tensor) -> Tensor:
    """`F.logsigmoid`, which coremltools does not know."""
    return -F.softplus(-input)


def padded(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Tensor:
    """`F.pad`; a circular one, which coremltools does not know, from slices."""
    if mode != "circular":
        return F.pad(input, pad, mode, value)
    for place in range(len(pad) // 2):
        axis, before, after = input.ndim - 1 - place, int(pad[2 * place]), int(pad[2 * place + 1])
        size = input.shape[axis]
        parts = [input.narrow(axis, size - before, before), input, input.narrow(axis, 0, after)]
        input = torch.cat([part for part in parts if part.shape[axis]], axis)
    return input


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * 2 if len(values) == 1 else values)]


# --- Attention, arithmetic, dropout ------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, spelt out where queries have more heads than keys and values."""
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    if same:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, scale=scale)
    if enable_gqa:
        key, value = (_heads_like(query, shared) for shared in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value


def _heads_like(query: Tensor, shared: Tensor) -> Tensor:
    """Keys or values with a head for each of the queries', each repeated for its group."""
    heads, groups = query.shape[-3], shared.shape[-3]
    if groups in (1, heads):
        return shared
    return torch.cat([shared[..., head * groups // heads, :, :].unsqueeze(-3) for head in range(heads)], -3)


def add(input: Any, other: Any, *, alpha: float = 1, out: Any = None) -> Any:
    """`torch.add`; coremltools forgets `alpha`, and LiteRT refuses it."""
    if alpha == 1:
        return torch.add(input, other, out=out)
    return torch.add(input, other * alpha, out=out)


def sub(input: Any, other: Any, *, alpha: float = 1, out: Any = None) -> Any:
    """`torch.sub`; as `add`."""
    if alpha == 1:
        return torch.sub(input, other, out=out)
    return torch.sub(input, other * alpha, out=out)


def rsub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """`torch.rsub`: `other - alpha * input`."""
    return sub(other, input, alpha=alpha) if isinstance(other, Tensor) else other - input * alpha


def add_(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """`Tensor.add_`; as `add`."""
    return input.add_(other if alpha == 1 else other * alpha)


def sub_(input: Tensor, other: Any, *, alpha: float = 1) -> Tensor:
    """`Tensor.sub_`; as `add`."""
    return input.sub_(other if alpha == 1 else other * alpha)


def addcmul(input: Tensor, first: Tensor, second: Tensor, *, value: float = 1, out: Any = None) -> Tensor:
    """`torch.addcmul`, which coremltools does not know."""
    product = first * second
    return torch.add(input, product if value == 1 else product * value, out=out)


def expand_as(input: Tensor, other: Tensor) -> Tensor:
    """`Tensor.expand_as` of numbers, as a product with ones: litert-torch loses an expanded map's layout."""
    if not input.is_floating_point() or input.shape == other.shape:
        return input.expand_as(other)
    aligned = input.reshape((1,) * (other.dim() - input.dim()) + tuple(input.shape))
    sizes = [1 if size == to else to for size, to in zip(aligned.shape, other.shape, strict=True)]
    return aligned * torch.ones(sizes, dtype=input.dtype, device=input.device)


def kept(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Dropout in a file: none, whatever the model's code asks for."""
    return input


# What stays on in some models' code though it serves training only: neither the file nor what it is held
# against has it.
TRAINING_ONLY: dict[Any, Callable[..., Any]] = dict.fromkeys(
    (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
     torch.dropout, torch.feature_dropout, torch.alpha_dropout), kept
)  # fmt: skip

REWRITTEN: dict[Any, Callable[..., Any]] = {
    **TRAINING_ONLY,
    F.interpolate: interpolate,
    F.avg_pool2d: avg_pool2d,
    F.max_pool2d: max_pool2d,
    torch.max_pool2d: max_pool2d,
    F.adaptive_max_pool2d: adaptive_max_pool2d,
    F.conv_transpose2d: conv_transpose2d,
    F.celu: celu,
    F.logsigmoid: logsigmoid,
    F.pad: padded,
    F.local_response_norm: local_response_norm,
    F.scaled_dot_product_attention: scaled_dot_product_attention,
    **dict.fromkeys((torch.add, Tensor.add), add),
    **dict.fromkeys((torch.sub, Tensor.sub, torch.subtract, Tensor.subtract), sub),
    torch.rsub: rsub,
    Tensor.add_: add_,
    **dict.fromkeys((torch.addcmul, Tensor.addcmul), addcmul),
    Tensor.expand_as: expand_as,
    **dict.fromkeys((Tensor.sub_, Tensor.subtract_), sub_),
}
