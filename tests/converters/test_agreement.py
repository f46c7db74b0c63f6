"""A conversion that comes out wrong is an error that says where; what can be mended is mended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters import agreement, coreml, litert, rewriting
from converters.errors import ToolError, UserError
from converters.rewriting import Rewriting, interpolate, resizing_matrix

EXAMPLE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SUFFIX = {"litert": ".tflite", "coreml": ".mlpackage"}


def convert(kind: str, model: nn.Module, folder: Path, example: Tensor = EXAMPLE) -> Path:
    path = folder / f"m{SUFFIX[kind]}"
    (litert if kind == "litert" else coreml).convert(model, example, path)
    return path


def error_of(kind: str, model: nn.Module, path: Path) -> float:
    """Of the file, on images that the conversion did not see."""
    images = np.random.default_rng(9).uniform(-1, 2, (2, *EXAMPLE.shape[1:])).astype(np.float32)
    with torch.no_grad():
        wanted = torch.cat([model(torch.from_numpy(image[None]).clone()) for image in images]).numpy()
    return agreement.difference((litert if kind == "litert" else coreml).load(path).predict(images), wanted)


WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))


class Mended(nn.Module):
    """What the converters underneath get wrong or refuse, all in one network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5  # its own input, in place
        x = self.stem(F.max_pool2d(F.interpolate(x, scale_factor=2.0), 2))
        tokens = x.flatten(2)[..., :16].unflatten(1, (4, 2)).transpose(2, 3)
        parts = [
            F.interpolate(x, size=(13, 13)),
            F.interpolate(x, scale_factor=1.3, mode="bilinear"),
            F.interpolate(x, size=(9, 11), mode="bicubic"),
            F.interpolate(x, size=(9, 11), mode="bilinear", antialias=True),
            torch.add(x, x * x, alpha=3).sub(x.sigmoid(), alpha=0.3),
            F.scaled_dot_product_attention(tokens, tokens[:, :1], tokens[:, :1]),
            F.scaled_dot_product_attention(tokens, tokens[:, :2], tokens[:, :2], enable_gqa=True),
            F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False, ceil_mode=True),
            F.max_pool2d(x, 2, 1, 0, 2),
            F.local_response_norm(x, 3, alpha=0.1),
            F.adaptive_max_pool2d(x, (3, 5)),
            F.conv_transpose2d(x[:, :6], WEIGHT, None, 2, 1, 1, 2),
            F.logsigmoid(F.celu(F.pad(x, (1, 1, 1, 1), mode="circular"))),
        ]
        return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_what_the_tools_get_wrong_is_spelt_out_another_way(kind: str, tmp_path: Path) -> None:
    model, given = Mended().eval(), EXAMPLE.clone()
    file = convert(kind, model, tmp_path, given)
    assert error_of(kind, model, file) < (1e-5 if kind == "litert" else 2e-3)
    assert torch.equal(given, EXAMPLE), "the model changes its input, its conversion may not"


class Wrong(nn.Module):
    """A network whose third step `fault` makes the traced one compute otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.scale = nn.Conv2d(3, 8, 3), Scale()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.scale(torch.relu(self.stem(x))).mean((2, 3)))


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.subtract(x, x * x, alpha=0.5)


@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_a_wrong_file_is_an_error_that_names_the_place_and_leaves_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As coremltools does by itself: `alpha` forgotten."""
    monkeypatch.setitem(rewriting.REWRITTEN, torch.subtract, lambda a, b, alpha: torch.sub(a, b))
    with pytest.raises(
        ToolError, match=r"does not compute what the model does: off by .* of the largest"
    ) as e:
        convert(kind, Wrong().eval(), tmp_path)
    assert "the first step where they part: scale (sub" in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_dropout_that_stays_on_is_off_in_the_file(tmp_path: Path) -> None:
    class Dropping(Wrong):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5))

    model = Dropping().eval()
    assert error_of("litert", Wrong().eval(), convert("litert", model, tmp_path)) < 1e-5


@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_a_model_that_is_random_is_refused(kind: str, tmp_path: Path) -> None:
    class Random(Wrong):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    with pytest.raises(UserError, match="different answers for one and the same image"):
        convert(kind, Random().eval(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_activations_that_float16_cannot_hold_are_said(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        model[0].weight.fill_(500.0)
        model[1].weight.fill_(100.0)
    with pytest.raises(UserError, match=r"its activations reach [\d,]+ at .* float16.* ends at 65,504"):
        convert("coreml", model, tmp_path)
    assert list(tmp_path.iterdir()) == []


CASES: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    (f"{mode} {corners} {smooth} {options}",
     lambda x, mode=mode, corners=corners, smooth=smooth, options=options: F.interpolate(
         x, mode=mode, align_corners=corners, antialias=smooth, **options))
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")
    for corners in ((None,) if mode.startswith("nearest") else (False, True))
    for smooth in ((False, True) if corners is False else (False,))
    for options in ({"size": (13, 5)}, {"scale_factor": 1.3}, {"scale_factor": 0.45},
                    {"scale_factor": (1.7, 0.8), "recompute_scale_factor": True})
]  # fmt: skip


@pytest.mark.parametrize(("name", "function"), CASES, ids=[name for name, _ in CASES])
def test_resizing_spelt_out_is_torchs(name: str, function: Callable[[Tensor], Tensor]) -> None:
    for shape in ((1, 3, 7, 9), (1, 2, 32, 13)):
        x = torch.randn(shape)
        with Rewriting():
            got = function(x)
        torch.testing.assert_close(got, function(x), atol=2e-5, rtol=0)


@pytest.mark.parametrize("seed", range(40))
def test_pooling_spelt_out_is_torchs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = torch.randn(1, 3, *(int(v) for v in draw.integers(5, 15, 2)))
    kernel, stride, dilation = (int(v) for v in draw.integers(1, (5, 5, 3)))
    padding, ceil, counted = (
        int(draw.integers(0, kernel // 2 + 1)),
        bool(draw.integers(2)),
        bool(draw.integers(2)),
    )
    options: dict[str, Any] = {"divisor_override": [None, 3][int(draw.integers(2))]}
    wanted = F.avg_pool2d(x, kernel, stride, padding, ceil, counted, **options)
    with Rewriting():
        got = F.avg_pool2d(x, kernel, stride, padding, ceil, counted, **options)
    torch.testing.assert_close(got, wanted)
    if (kernel - 1) * dilation + 1 <= min(x.shape[2:]):
        with Rewriting():
            got = F.max_pool2d(x, kernel, stride, padding, dilation, ceil)
        torch.testing.assert_close(got, F.max_pool2d(x, kernel, stride, padding, dilation, ceil))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.adaptive_max_pool2d(x, (3, 5)),
        lambda x: F.adaptive_max_pool2d(x, 4),
        lambda x: F.adaptive_max_pool2d(x, (None, 2)),
        lambda x: F.celu(x, 0.7),
        F.logsigmoid,
        lambda x: torch.addcmul(x, x + 1, x - 2, value=0.5),
        lambda x: x.addcmul(x, x),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        lambda x: x[0, 0, 0].expand_as(x),
        lambda x: F.pad(x, (1, 2, 0, 3), mode="circular"),
        lambda x: F.conv_transpose2d(x, WEIGHT[:, :1], None, 2, 1, 1, 6),
        lambda x: F.conv_transpose2d(x, WEIGHT, torch.arange(8.0), (2, 3), (1, 0), (1, 2), 2),
        lambda x: F.conv_transpose2d(x, WEIGHT, None, 1, 2, 0, 3, 2),
        lambda x: F.conv_transpose2d(x, WEIGHT[..., :1, :1], None, 4, 0, 0, 2),
    ],
)
def test_what_one_of_the_tools_does_not_know_is_torchs(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(1, 6, 8, 10)
    with Rewriting():
        got = function(x)
    torch.testing.assert_close(got, function(x))


def test_what_the_tools_do_right_is_left_alone() -> None:
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(
        interpolate(x, size=(16, 16), mode="bilinear"), F.interpolate(x, size=(16, 16), mode="bilinear")
    )
    assert resizing_matrix(4, 4, 1.0, "bilinear", False, False).tolist() == np.eye(4).tolist()


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (Wrong().eval().half(), EXAMPLE, r"stem.weight is torch.float16: call model.float\(\)"),
        (
            torch.export.export(Wrong().eval(), (EXAMPLE,)),
            EXAMPLE,
            "is an exported program: give the torch.nn.Module",
        ),
        (Wrong().eval(), EXAMPLE.numpy(), r"NumPy array: give torch.from_numpy\(example\)"),
        (Wrong().eval(), EXAMPLE[:, :, :1, :1], r"does not take \(1, 3, 1, 1\) images"),
        (lambda x: x, EXAMPLE, "model is a function: expected a torch.nn.Module"),
    ],
)
@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_what_is_no_model_or_no_example_is_one_message(
    kind: str, model: Any, example: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        convert(kind, model, tmp_path, example)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [1, 2, 3, 4]}, "labels hold 1: expected a list of class names"),
        ({"labels": ["a", "b", "b", "c"]}, "labels that appear twice, which apps cannot tell apart: b"),
        ({"labels": ["a", "b", " ", "c"]}, "label 2 is empty"),
        (
            {"normalization": agreement.Normalization((123.0, 117, 104), (58.0, 57, 57))},
            r"those for \[0, 255\] by 255",
        ),
        (
            {"normalization": agreement.Normalization((float("nan"), 0, 0), (1.0, 1, 1))},
            "every value must be finite",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_a_wrong_argument_is_one_message(kind: str, arguments: Any, message: str, tmp_path: Path) -> None:
    module = litert if kind == "litert" else coreml
    with pytest.raises(UserError, match=message) as caught:
        module.convert(Wrong().eval(), EXAMPLE, tmp_path / f"m{SUFFIX[kind]}", **arguments)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((8, 3, 16, 16), np.uint8), r"are uint8: give images.astype\(numpy.float32\)"),
        (
            np.random.default_rng(0).random((8, 3, 16, 16), np.float32),
            r"go up to 0.9.*plain pixels in \[0, 255\]",
        ),
        (np.full((8, 3, 16, 16), np.nan, np.float32), "not finite"),
    ],
)
def test_calibration_images_of_another_kind_are_refused(
    images: np.ndarray, message: str, tmp_path: Path
) -> None:
    normalization = agreement.Normalization((0.5,) * 3, (0.2,) * 3)
    with pytest.raises(UserError, match=message):
        litert.convert(
            Wrong().eval(), EXAMPLE, tmp_path / "m.tflite", target="litert-arm64-static-int8",
            normalization=normalization, calibration=images,
        )  # fmt: skip


class Swapped(nn.Module):
    """Layers of one shape in an order that only values tell; a transposed convolution like one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.first, self.second = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)
        self.like = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        with torch.no_grad():
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(-2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.stem(x))
        a, b = self.first(x), self.second(x)
        return self.like(self.norm(b).relu() * a).mean((2, 3))


@pytest.mark.parametrize("kind", ["litert", "coreml"])
def test_layers_are_known_by_their_values(kind: str, tmp_path: Path) -> None:
    model = Swapped().eval()
    with torch.no_grad():
        model.second.weight[:6] = 0
    path = tmp_path / f"m{SUFFIX[kind]}"
    made = (litert if kind == "litert" else coreml).convert(model, EXAMPLE, path)
    zeros = {layer.name: layer.zero_fraction for layer in made.layers}
    assert zeros["second"] == 0.75
    assert zeros["first"] == zeros["like"] == 0
    assert "up" not in zeros
