"""MIL operations as torch functions, for one image at a time (a batch is run by `torch.vmap`).

Each takes its arguments by their MIL names: tensors as torch tensors, everything that is fixed in the file
(axes, strides, shapes, modes) as plain Python values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from converters.coreml import indexing, recurrent

Ints = Sequence[int]


def _pads(pad_type: str, pad: Ints | None, size: Ints, kernel: Ints, stride: Ints) -> list[int]:
    """Padding as (before, after) for each spatial axis, in the order of the axes.

    `size` and `kernel` (dilated) are only looked at for the two "same" modes, which pad as much as gives
    ceil(size / stride) results, the odd pixel after ("same") or before ("same_lower").
    """
    if pad_type == "valid":
        return [0] * (2 * len(kernel))
    if pad_type == "custom":
        return list(pad if pad is not None else [0] * (2 * len(kernel)))
    if pad_type not in ("same", "same_lower"):
        raise ValueError(f"unknown pad_type {pad_type!r}")
    pads = []
    for length, taps, step in zip(size, kernel, stride, strict=True):
        total = max((math.ceil(length / step) - 1) * step + taps - length, 0)
        small, large = total // 2, total - total // 2
        pads += [small, large] if pad_type == "same" else [large, small]
    return pads


def _pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes: `pads` is (before, after) in their order; torch wants the last first."""
    if not any(pads):
        return x
    reversed_pairs = [amount for axis in range(len(pads) // 2 - 1, -1, -1) for amount in pads[2 * axis :][:2]]
    return F.pad(x, reversed_pairs, value=value)


def _symmetric(pads: Sequence[int]) -> list[int] | None:
    """One amount an axis, where before and after are the same; else None."""
    return list(pads[::2]) if list(pads[::2]) == list(pads[1::2]) else None


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolution of (1, c, h, w), or of (1, c, w)."""
    spatial = weight.dim() - 2
    stride, dilation = list(strides or [1] * spatial), list(dilations or [1] * spatial)
    taps = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    pads = _pads(pad_type, pad, x.shape[2:], taps, stride)
    padding = _symmetric(pads)
    if padding is None:
        x, padding = _pad(x, pads), [0] * spatial
    function = F.conv2d if spatial == 2 else F.conv1d
    return function(x, weight, bias, stride, padding, dilation, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Matrix product over the last two axes."""
    return torch.matmul(x.transpose(-1, -2) if transpose_x else x, y.transpose(-1, -2) if transpose_y else y)


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """`softmax(query @ key.T / sqrt(width) + mask) @ value` over the last two axes."""
    # Spelt out: torch's own function has no batching rule, and would run image by image.
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ value


def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest value in each window; padding never wins."""
    stride = list(strides or kernel_sizes)
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, stride)
    return F.max_pool2d(_pad(x, pads, -math.inf), list(kernel_sizes), stride, ceil_mode=ceil_mode)


def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Mean of each window, padding counted or not."""
    stride = list(strides or kernel_sizes)
    pads = _pads(pad_type, pad, x.shape[2:], kernel_sizes, stride)
    padding = _symmetric(pads)
    if padding is None:
        if exclude_padding_from_average:
            raise ValueError("uneven padding left out of the average is not supported")
        x, padding = _pad(x, pads), [0] * len(kernel_sizes)
    return F.avg_pool2d(x, list(kernel_sizes), stride, padding, ceil_mode, not exclude_padding_from_average)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise each channel (axis 1) by stored statistics."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)


def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise over `axes`, which must be the last ones."""
    chosen = sorted(axis % x.dim() for axis in (axes if axes is not None else range(x.dim())))
    if chosen != list(range(x.dim() - len(chosen), x.dim())):
        raise ValueError(
            f"layer_norm over axes {list(chosen)} of {x.dim()} is not supported: only over the last"
        )
    return F.layer_norm(x, [x.shape[axis] for axis in chosen], gamma, beta, epsilon)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """Gaussian error linear unit."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """`alpha * x + beta`, held in [0, 1]."""
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def thresholded_relu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """`x` from `alpha` on, 0 below."""
    return torch.where(x >= alpha, x, 0.0)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`x`, held in [alpha, beta]."""
    return torch.clamp(x, alpha, beta)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Exponentials over their sum."""
    return torch.softmax(x, axis)


def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Inverse square root."""
    return torch.rsqrt(x + epsilon)


def reduce_mean(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Mean over axes, or over all."""
    return x.mean(_axes(x, axes), keepdim=keep_dims)


def reduce_sum(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Sum over axes, or over all."""
    return x.sum(_axes(x, axes), keepdim=keep_dims)


def reduce_max(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Largest value over axes, or over all."""
    return x.amax(_axes(x, axes), keepdim=keep_dims)


def _axes(x: Tensor, axes: Ints | None) -> list[int]:
    return list(range(x.dim())) if axes is None else list(axes)


def reshape(x: Tensor, shape: Ints) -> Tensor:
    """Other axes, the same elements; 0 keeps an axis, -1 is what is left."""
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Axes in another order."""
    return x.permute(list(perm))


def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """New axes of 1 at the places they have in the result."""
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes of 1 taken away."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """Tensors one after the other; interleaved: the first slice of each, then the second of each, ..."""
    if interleave:
        axis %= values[0].dim()
        return torch.stack(list(values), axis + 1).flatten(axis, axis + 1)
    return torch.cat(list(values), axis)


def stack(values: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors beside each other along a new axis."""
    return torch.stack(list(values), axis)


def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """The other way round along axes, or along all."""
    return x.flip(_axes(x, axes))


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    """Parts of a tensor along an axis."""
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    if not num_splits or x.shape[axis] % num_splits:
        raise ValueError(f"cannot split {x.shape[axis]} into {num_splits}")
    return torch.split(x, x.shape[axis] // num_splits, axis)


def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Sequence[bool] | None = None,
    end_mask: Sequence[bool] | None = None,
    squeeze_mask: Sequence[bool] | None = None,
) -> Tensor:
    """`x[begin:end:stride]` on each axis; a mask ignores begin or end, or picks one and drops the axis."""
    no = [False] * x.dim()
    for axis in reversed(range(x.dim())):
        if (squeeze_mask or no)[axis]:
            x = x.select(axis, begin[axis])
            continue
        first = None if (begin_mask or no)[axis] else begin[axis]
        last = None if (end_mask or no)[axis] else end[axis]
        places = range(x.shape[axis])[slice(first, last, stride[axis] if stride is not None else 1)]
        if places.step > 0:
            before = (slice(None),) * axis
            x = x[(*before, slice(places.start, places.stop, places.step))]
        else:
            x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """`size` elements from `begin` on each axis; -1 is up to the end."""
    return x[tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begin, size, strict=True))]


def tile(x: Tensor, reps: Ints) -> Tensor:
    """Copies side by side along each axis."""
    return x.repeat(list(reps))


def pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Values around the last axes."""
    if mode == "constant":
        return _pad(x, pad, constant_val)
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]
    while pairs and pairs[0] == (0, 0):
        pairs.pop(0)
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return F.pad(x, flat, mode="reflect" if mode == "reflect" else "replicate") if flat else x


def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """Resize the last two axes by a factor, between neighbours."""
    # Whole sizes: floor, of a factor that a float16 may have brought just below the exact one.
    size = [
        math.floor(length * factor + 1e-3)
        for length, factor in zip(x.shape[-2:], (scale_factor_height, scale_factor_width), strict=True)
    ]
    if not align_corners and half_pixel_centers is False:
        raise ValueError("upsample_bilinear without half-pixel centres is not supported")
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def resize_bilinear(
    x: Tensor, target_size_height: int, target_size_width: int, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """Resize the last two axes to a size, between neighbours."""
    modes = {"STRICT_ALIGN_CORNERS": True, "ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}
    if sampling_mode not in modes:
        raise ValueError(f"resize_bilinear with sampling_mode {sampling_mode!r} is not supported")
    size = [target_size_height, target_size_width]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=modes[sampling_mode])


def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0
) -> Tensor:
    """Resize the last two axes by a factor, repeating pixels."""
    size = [round(x.shape[-2] * scale_factor_height), round(x.shape[-1] * scale_factor_width)]
    return F.interpolate(x, size=size, mode="nearest")


_CASTS = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}


def cast(x: Tensor, dtype: str) -> Tensor:
    """Another element type; both float types are computed as float32."""
    if dtype not in _CASTS:
        raise ValueError(f"cast to {dtype!r} is not supported")
    return x.to(_CASTS[dtype])


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Transposed convolution: what `pad` says is cut off the full result, what `output_shape` lacks added."""
    spatial = weight.dim() - 2
    stride, dilation = list(strides or [1] * spatial), list(dilations or [1] * spatial)
    if pad_type not in ("valid", "custom"):
        raise ValueError(f"conv_transpose with pad_type {pad_type!r} is not supported")
    function = F.conv_transpose2d if spatial == 2 else F.conv_transpose1d
    full = function(x, weight, None, stride, 0, 0, groups, dilation)
    pads = list(pad) if pad is not None and pad_type == "custom" else [0] * (2 * spatial)
    for axis in range(spatial):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        size = full.shape[2 + axis] - before - after
        if output_shape is not None:
            size = output_shape[len(output_shape) - spatial + axis]
        lacking = max(before + size - full.shape[2 + axis], 0)
        amounts = [0, 0] * (spatial - 1 - axis) + [0, lacking]
        full = F.pad(full, amounts).narrow(2 + axis, before, size)
    return full if bias is None else full + bias.reshape(1, -1, *[1] * spatial)


def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Normalise each channel of each image by its own mean and variance."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Divide by a power of the mean square over neighbouring channels."""
    return F.local_response_norm(x, size, alpha, beta, k)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide by the length over the last three axes."""
    axes = tuple(range(max(x.dim() - 3, 0), x.dim()))
    return x / torch.sqrt(x.square().sum(axes, keepdim=True) + epsilon)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha * log(1 + exp(beta * x))`, both one a channel."""
    a, b = (v.reshape(-1, *[1] * (x.dim() - 2)) for v in (alpha, beta))
    return a * F.softplus(b * x)


def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`x` above zero and `alpha * x` below, at most `beta`."""
    return torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta)


def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Values of `x` at places given as (column, row)."""
    paddings = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    if padding_mode not in paddings or (padding_mode == "constant" and padding_value != 0):
        raise ValueError(f"resample with padding {padding_mode!r}, {padding_value} is not supported")
    if coordinates_mode == "normalized_zero_to_one":
        coordinates = coordinates * 2 - 1
    elif coordinates_mode != "normalized_minus_one_to_one":
        raise ValueError(f"resample with coordinates {coordinates_mode!r} is not supported")
    return F.grid_sample(x, coordinates, sampling_mode, paddings[padding_mode], align_corners=align_corners)


def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Values of `x` at the places an affine map sends those of the result to."""
    theta = transform_matrix.reshape(-1, 2, 3)
    size = [len(x), x.shape[1], output_height, output_width]
    places = F.affine_grid(theta, size, align_corners=align_corners)
    return resample(x, places, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """Resize the last two axes to a size, repeating pixels."""
    return F.interpolate(x, size=[target_size_height, target_size_width], mode="nearest")


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Sums of products, as the equation says."""
    return torch.einsum(equation, *values)


def quantize(
    input: Tensor, scale: Any, zero_point: Any = 0, axis: int | None = None, output_dtype: str = "int8"
) -> Tensor:
    """The steps of `scale` nearest to values, as integers."""
    limits = torch.iinfo(torch.uint8 if output_dtype == "uint8" else torch.int8)
    step, offset = (_along(v, input, axis) for v in (scale, zero_point))
    return torch.clamp(torch.round(input / step) + offset, limits.min, limits.max)


def dequantize(input: Tensor, scale: Any, zero_point: Any = 0, axis: int | None = None) -> Tensor:
    """The values that integers stand for."""
    step, offset = (_along(v, input, axis) for v in (scale, zero_point))
    return (input.float() - offset) * step


def _along(value: Any, x: Tensor, axis: int | None) -> Tensor:
    """A number for all of `x`, or one for each place along an axis."""
    tensor = torch.as_tensor(value, dtype=torch.float32)
    if tensor.dim() == 0 or axis is None:
        return tensor
    return tensor.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
    def reduce(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, _axes(x, axes), keep_dims)

    return reduce


def _product(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep_dims)
    return x


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: function(x)


def _binary(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(torch.as_tensor(x), torch.as_tensor(y))


def _of_integers(x: Tensor, y: Tensor) -> Tensor:
    """`x / y`, cut to a whole number where both are such."""
    return (
        torch.div(x, y)
        if x.is_floating_point() or y.is_floating_point()
        else torch.div(x, y, rounding_mode="trunc")
    )


OPERATIONS: dict[str, Callable[..., Any]] = {
    **indexing.OPERATIONS,
    **recurrent.OPERATIONS,
    "acos": _unary(torch.acos),
    "affine": affine,
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "clamped_relu": clamped_relu,
    "conv_transpose": conv_transpose,
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "dequantize": dequantize,
    "einsum": einsum,
    "equal": _binary(torch.eq),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "floor_div": _binary(torch.floor_divide),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "instance_norm": instance_norm,
    "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
    "l2_norm": l2_norm,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "linear_activation": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "local_response_norm": local_response_norm,
    "log": lambda x, epsilon=1e-45: torch.log(x + epsilon),
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "mod": _binary(torch.remainder),
    "not_equal": _binary(torch.ne),
    "pixel_shuffle": lambda x, upscale_factor: F.pixel_shuffle(x, upscale_factor),
    "pixel_unshuffle": lambda x, downscale_factor: F.pixel_unshuffle(x, downscale_factor),
    "quantize": quantize,
    "reduce_l1_norm": _reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "reduce_min": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _reduction(_product),
    "reduce_sum_square": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "resample": resample,
    "resize_nearest_neighbor": resize_nearest_neighbor,
    "round": _unary(torch.round),
    "scaled_tanh": lambda x, alpha=1.0, beta=1.0: alpha * torch.tanh(beta * x),
    "select": lambda cond, a, b: torch.where(torch.as_tensor(cond).bool(), a, b),
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "softplus_parametric": softplus_parametric,
    "softsign": _unary(F.softsign),
    "tan": _unary(torch.tan),
    "threshold": lambda x, alpha=1.0: torch.clamp(x, min=alpha),
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "cast": cast,
    "clip": clip,
    "concat": concat,
    "conv": conv,
    "elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "expand_dims": expand_dims,
    "gelu": gelu,
    "identity": _unary(lambda x: x),
    "layer_norm": layer_norm,
    "leaky_relu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "linear": linear,
    "matmul": matmul,
    "max_pool": max_pool,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "pad": pad,
    "pow": _binary(torch.pow),
    "prelu": lambda x, alpha: F.prelu(x, alpha),
    "real_div": _binary(_of_integers),
    "reduce_max": reduce_max,
    "reduce_mean": reduce_mean,
    "reduce_sum": reduce_sum,
    "relu": _unary(torch.relu),
    "relu6": _unary(F.relu6),
    "reshape": reshape,
    "resize_bilinear": resize_bilinear,
    "reverse": reverse,
    "rsqrt": rsqrt,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": sigmoid_hard,
    "silu": _unary(F.silu),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "softmax": softmax,
    "softplus": _unary(F.softplus),
    "split": split,
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "squeeze": squeeze,
    "stack": stack,
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
    "thresholded_relu": thresholded_relu,
    "tile": tile,
    "transpose": transpose,
    "upsample_bilinear": upsample_bilinear,
    "upsample_nearest_neighbor": upsample_nearest_neighbor,
}
