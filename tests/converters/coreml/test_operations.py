"""Each operation that Core ML is given for the networks we convert, against torch, in batches."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters import coreml
from converters.coreml.operations import OPERATIONS, avg_pool, conv, slice_by_index, upsample_bilinear


class Pools(nn.Module):
    """Pooling with padding and a last window that reaches beyond the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), (1, 2), (0, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = F.max_pool2d(x, 3, 2, 1)
        b = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        c = F.avg_pool2d(x, 3, 2, 1, count_include_pad=True)
        d = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return torch.cat([a, b, c, d], 1)


class Activations(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 8 - 4
        parts = [
            F.hardswish(x), F.hardsigmoid(x), F.relu6(x), F.silu(x), F.gelu(x), F.gelu(x, approximate="tanh"),
            torch.sigmoid(x), torch.tanh(x), F.leaky_relu(x, 0.1), torch.softmax(x, 1), x.clamp(-1, 2),
            torch.exp(x * 0.25), torch.sqrt(x.abs() + 1), x.pow(2), torch.rsqrt(x.abs() + 1), F.elu(x),
            F.softplus(x), torch.erf(x), F.prelu(x, torch.tensor([0.1, 0.2, 0.3])),
        ]  # fmt: skip
        return torch.cat(parts, 1)


class Resize(nn.Module):
    """What a segmentation head does."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 5, 3, 2, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        bilinear = F.interpolate(low, size=x.shape[-2:], mode="bilinear", align_corners=False)
        corners = F.interpolate(low, size=x.shape[-2:], mode="bilinear", align_corners=True)
        nearest = F.interpolate(low, scale_factor=2, mode="nearest")
        return {"out": self.high(x) + bilinear * 2 + corners * 3 - nearest, "aux": low}


class Attention(nn.Module):
    """A block of a vision transformer: the batch axis moves on its way through it."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, -1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x[:, 0]


class Shapes(nn.Module):
    """Slices, shuffled channels, padding, chunks, a batch norm that nothing can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2, dilation=2)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0, 2, 1))[:, :, 1:-1, ::2]
        x = torch.cat([x, x.flip(1), x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        a, b = self.norm(x).chunk(2, 1)
        x = torch.stack([a, b], 2).flatten(1, 2)
        x = x.reshape(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        x = self.grouped(x) * torch.maximum(a, b).repeat(1, 2, 1, 1)
        return x.sum((2, 3)).unsqueeze(2).squeeze(-1)


class FusedAttention(Attention):
    """The same by torch's own function, which iOS 18 has an operation for."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("build", [Pools, Activations, Resize, Attention, FusedAttention, Shapes])
def test_operations_agree_with_torch_in_batches(build: type[nn.Module], tmp_path: Path, tools: Any) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = tools.images(5, 16)
    with torch.no_grad():
        wanted = model(torch.from_numpy(images))
    wanted = wanted["out"] if isinstance(wanted, dict) else wanted
    # iOS 18 has operations of its own
    paths = {target: tmp_path / f"{target}.mlpackage" for target in ("coreml-ios16", "coreml-ios18")}
    for converted in coreml.convert_all(model, torch.from_numpy(images[:1]), paths).values():
        package = coreml.load(converted.path)
        assert tools.relative_error(package.predict(images), wanted.numpy()) <= 2e-3


def test_every_operation_says_what_it_takes() -> None:
    for name, function in OPERATIONS.items():
        assert "kwargs" not in inspect.signature(function).parameters, name


def test_same_padding_puts_the_odd_pixel_after() -> None:
    x, weight = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 3, 3)
    after = conv(x, weight, strides=[2, 2], pad_type="same")
    before = conv(x, weight, strides=[2, 2], pad_type="same_lower")
    assert torch.equal(after, F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2))
    assert torch.equal(before, F.conv2d(F.pad(x, (1, 0, 1, 0)), weight, stride=2))


def test_uneven_custom_padding_is_top_bottom_left_right() -> None:
    x, weight = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 3, 3)
    got = conv(x, weight, pad_type="custom", pad=[2, 0, 1, 3])
    assert torch.equal(got, F.conv2d(F.pad(x, (1, 3, 2, 0)), weight))


def test_slices_with_masks() -> None:
    x = torch.arange(24).reshape(1, 4, 6)
    got = slice_by_index(x, [0, 1, 2], [0, 3, 0], [1, 1, 2], [True, False, False], [True, False, True], None)
    assert torch.equal(got, x[:, 1:3, 2::2])
    picked = slice_by_index(x, [0, 2, 0], [1, 3, 6], squeeze_mask=[False, True, False])
    assert torch.equal(picked, x[:, 2])


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (conv, {"x": torch.rand(1, 1, 4, 4), "weight": torch.rand(1, 1, 3, 3), "pad_type": "odd"}, "'odd'"),
        (
            upsample_bilinear,
            {"x": torch.rand(1, 1, 4, 4), "align_corners": False, "half_pixel_centers": False},
            "half-pixel",
        ),
        (
            avg_pool,
            {
                "x": torch.rand(1, 1, 4, 4),
                "kernel_sizes": [3, 3],
                "pad_type": "custom",
                "pad": [0, 1, 0, 1],
                "exclude_padding_from_average": True,
            },
            "uneven padding",
        ),
    ],
)
def test_what_is_not_supported_is_said(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(**arguments)
