"""The evaluator against torch for what coremltools' torch frontend can emit, and how much of that it knows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from converters.coreml import constexpr
from converters.coreml.evaluation import CONTROL
from converters.coreml.framework import ct
from converters.coreml.operations import OPERATIONS

GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(1, 8, 6, 9, generator=GENERATOR)
B = torch.randn(1, 8, 6, 9, generator=GENERATOR)
VECTOR = torch.randn(1, 5, generator=GENERATOR)
ODD = torch.randn(1, 4, 3, 7, generator=GENERATOR)
CHANNELS = torch.rand(8, generator=GENERATOR) + 0.5
PLACES = torch.tensor([2, 0, 3])
GRID = torch.rand(1, 4, 5, 2, generator=GENERATOR) * 2 - 1
# Named by name: it is neither a constant nor a value that the program determines.
NOT_EVALUATED = {
    "read_state": "a state kept between runs",
    "random_categorical": "random",
    "random_normal": "random",
    "random_uniform": "random",
}


def emitted() -> set[str]:
    """The MIL operations that the frontend, and the passes after it, name in their code."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    root = Path(ct.__file__).parent / "converters" / "mil"
    files = [*(root / "frontend" / "torch").glob("*.py"), root / "frontend" / "_utils.py"]
    files += list((root / "mil" / "passes" / "defs").rglob("*.py"))
    names = {name for file in files for name in re.findall(r"\bmb\.([a-z_0-9]+)\b", file.read_text())}
    return names & set(SSAOpRegistry.core_ops)


def test_nearly_all_that_the_frontend_can_emit_is_known() -> None:
    known = set(OPERATIONS) | set(CONTROL) | set(constexpr.DECODERS) | {"const"}
    every = emitted()
    assert every - known == set(NOT_EVALUATED)
    page = Path(__file__).parents[3] / "docs" / "formats" / "coreml.md"
    assert f"{len(every & known)} of the {len(every)} operations" in page.read_text()


Case = tuple[str, dict[str, object], Callable[[], Tensor]]
CASES: list[Case] = [
    *(
        (name, {"x": given}, lambda f=function, given=given: f(given))
        for name, function in {
            "acos": torch.acos, "asin": torch.asin, "atan": torch.atan, "ceil": torch.ceil, "cos": torch.cos,
            "cosh": torch.cosh, "exp2": torch.exp2, "floor": torch.floor, "round": torch.round,
            "sign": torch.sign, "sin": torch.sin, "sinh": torch.sinh, "softsign": F.softsign, "tan": torch.tan,
            "atanh": torch.atanh,
        }.items()
        for given in (A.clamp(-0.9, 0.9), VECTOR.clamp(-0.9, 0.9))
    ),
    *(
        (name, {"x": a, "y": b}, lambda f=function, a=a, b=b: f(a, torch.as_tensor(b)))
        for name, function in {
            "equal": torch.eq, "not_equal": torch.ne, "greater": torch.gt, "greater_equal": torch.ge,
            "less": torch.lt, "less_equal": torch.le, "floor_div": torch.floor_divide, "mod": torch.remainder,
            "maximum": torch.maximum, "minimum": torch.minimum,
        }.items()
        for a, b in ((A, B), (VECTOR, 0.3), (A, A[:, :1]))
    ),
    *(
        (name, {"x": A > 0, "y": B > 0}, lambda f=function: f(A > 0, B > 0))
        for name, function in {
            "logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor,
        }.items()
    ),
    ("logical_not", {"x": A > 0}, lambda: A <= 0),
    ("real_div", {"x": torch.tensor([7, -7]), "y": 2}, lambda: torch.tensor([3, -3])),
    ("real_div", {"x": A, "y": 3.0}, lambda: A / 3),
    ("log", {"x": A.abs() + 1}, lambda: torch.log(A.abs() + 1)),
    ("inverse", {"x": A.abs() + 1, "epsilon": 0.0}, lambda: 1 / (A.abs() + 1)),
    ("threshold", {"x": A, "alpha": 0.2}, lambda: F.threshold(A, 0.2, 0.2)),
    ("linear_activation", {"x": A, "alpha": 2.0, "beta": 3.0}, lambda: 2 * A + 3),
    ("softplus_parametric", {"x": A, "alpha": 1 / CHANNELS, "beta": CHANNELS},
     lambda: torch.cat([F.softplus(A[:, c : c + 1], float(CHANNELS[c])) for c in range(8)], 1)),
    ("select", {"cond": A > 0, "a": A, "b": B}, lambda: torch.where(A > 0, A, B)),
    ("select", {"cond": A > 0, "a": A, "b": -1.0}, lambda: A.masked_fill(A <= 0, -1.0)),
    *((f"reduce_{name}", {"x": x, "axes": axes, "keep_dims": keep},
       lambda f=function, x=x, axes=axes, keep=keep: f(x, axes, keep))
      for name, function in {
          "min": torch.amin, "max": torch.amax, "l2_norm": lambda x, a, k: torch.linalg.vector_norm(x, 2, a, k),
          "l1_norm": lambda x, a, k: torch.linalg.vector_norm(x, 1, a, k),
          "sum_square": lambda x, a, k: (x * x).sum(a, k), "log_sum_exp": torch.logsumexp,
          "prod": lambda x, a, k: x.exp().log().prod(a[0], k) if len(a) == 1 else x.prod(a[1], True).prod(a[0], k),
      }.items()
      for x, axes, keep in ((A, [1], True), (ODD, [2], False), (ODD, [2, 3], True))),
    ("reduce_argmax", {"x": A, "axis": 1, "keep_dims": True}, lambda: A.argmax(1, True)),
    ("reduce_argmin", {"x": VECTOR}, lambda: VECTOR.argmin(-1)),
    ("topk", {"x": VECTOR, "k": 3}, lambda: torch.topk(VECTOR, 3)[0]),
    ("topk", {"x": A, "k": 2, "axis": 1, "ascending": True}, lambda: torch.topk(A, 2, 1, largest=False)[0]),
    ("argsort", {"x": A, "axis": 2}, lambda: torch.argsort(A, 2, descending=True)),
    ("argsort", {"x": VECTOR, "ascending": True}, lambda: torch.argsort(VECTOR)),
    ("cumsum", {"x": A, "axis": 2}, lambda: A.cumsum(2)),
    ("cumsum", {"x": VECTOR, "axis": 1, "exclusive": True, "reverse": True},
     lambda: VECTOR.flip(1).cumsum(1).flip(1) - VECTOR),
    ("band_part", {"x": A[0, 0], "lower": 1, "upper": 2}, lambda: A[0, 0].triu(-1).tril(2)),
    ("band_part", {"x": A, "lower": -1, "upper": 0}, lambda: A.tril()),
    ("one_hot", {"indices": PLACES, "one_hot_vector_size": 4, "on_value": 2.0, "off_value": 0.0},
     lambda: F.one_hot(PLACES, 4) * 2.0),
    ("fill", {"shape": [2, 3], "value": 4.0}, lambda: torch.full((2, 3), 4.0)),
    ("fill_like", {"ref_tensor": A, "value": 4.0}, lambda: torch.full_like(A, 4.0)),
    ("range_1d", {"end": 7, "start": 1, "step": 2}, lambda: torch.arange(1, 7, 2)),
    ("shape", {"x": A}, lambda: torch.tensor([1, 8, 6, 9])),
    ("non_zero", {"x": (VECTOR > 0).int()}, lambda: torch.nonzero(VECTOR > 0)),
    ("crop", {"x": A, "crop_height": [1, 2], "crop_width": [0, 3]}, lambda: A[:, :, 1:4, :6]),
    ("gather", {"x": A, "indices": PLACES, "axis": 1}, lambda: A[:, PLACES]),
    ("gather", {"x": A, "indices": [[1, -1]], "axis": 2}, lambda: A[:, :, [[1, -1]]]),
    ("gather", {"x": A[0], "indices": torch.tensor([[1, 0]] * 8), "axis": 1, "batch_dims": 1}, lambda: A[0][:, [1, 0]]),
    ("gather_along_axis", {"x": A, "indices": A.argsort(2), "axis": 2}, lambda: A.sort(2)[0]),
    ("gather_nd", {"x": ODD[0], "indices": [[1, 2], [0, 0]]}, lambda: torch.stack([ODD[0, 1, 2], ODD[0, 0, 0]])),
    ("scatter", {"data": ODD[0], "indices": [1, 1], "updates": ODD[0, :2], "axis": 0, "mode": "add"},
     lambda: ODD[0].index_add(0, torch.tensor([1, 1]), ODD[0, :2])),
    ("scatter", {"data": ODD[0], "indices": [3], "updates": ODD[0, :, :, :1] * 9, "axis": 2, "mode": "update"},
     lambda: ODD[0].index_copy(2, torch.tensor([3]), ODD[0, :, :, :1] * 9)),
    ("scatter_along_axis", {"data": ODD, "indices": ODD.argsort(3), "updates": ODD, "axis": 3, "mode": "add"},
     lambda: ODD.scatter_add(3, ODD.argsort(3), ODD)),
    ("scatter_along_axis", {"data": ODD, "indices": ODD.argsort(3), "updates": ODD, "axis": 3, "mode": "update"},
     lambda: ODD.scatter(3, ODD.argsort(3), ODD)),
    ("scatter_nd", {"data": ODD[0, 0], "indices": [[1, 2], [1, 2]], "updates": torch.tensor([5.0, 6.0])},
     lambda: ODD[0, 0].index_put((torch.tensor([1, 1]), torch.tensor([2, 2])), torch.tensor([5.0, 6.0]), True)),
    ("slice_update", {"x": A, "update": B[:, 2:4, ::2], "begin": [0, 2, 0, 0], "end": [1, 4, 6, 9],
                      "stride": [1, 1, 2, 1]},
     lambda: torch.slice_scatter(A, torch.slice_scatter(A[:, 2:4], B[:, 2:4, ::2], 2, 0, 6, 2), 1, 2, 4)),
    ("slice_by_index", {"x": A, "begin": [0, -1, 4, 0], "end": [0, -4, 0, 0], "stride": [1, -2, -1, 1],
                        "begin_mask": [True, False, False, True], "end_mask": [True, False, True, True]},
     lambda: A[:, [7, 5]][:, :, [4, 3, 2, 1, 0]]),
    ("pixel_shuffle", {"x": A, "upscale_factor": 2}, lambda: F.pixel_shuffle(A, 2)),
    ("pixel_unshuffle", {"x": A, "downscale_factor": 3}, lambda: F.pixel_unshuffle(A, 3)),
    ("instance_norm", {"x": A, "gamma": CHANNELS, "beta": CHANNELS, "epsilon": 1e-3},
     lambda: F.instance_norm(A, weight=CHANNELS, bias=CHANNELS, eps=1e-3)),
    ("local_response_norm", {"x": A, "size": 3, "alpha": 0.1}, lambda: F.local_response_norm(A, 3, 0.1)),
    ("einsum", {"values": [A, B], "equation": "nchw,nkhw->nck"}, lambda: torch.einsum("nchw,nkhw->nck", A, B)),
    *(("resample", {"x": A, "coordinates": GRID, "sampling_mode": mode, "padding_mode": theirs,
                    "padding_value": 0.0, "coordinates_mode": "normalized_minus_one_to_one",
                    "align_corners": corners},
       lambda mode=mode, ours=ours, corners=corners: F.grid_sample(A, GRID * 1.0, mode, ours, corners))
      for mode in ("bilinear", "nearest")
      for theirs, ours in (("constant", "zeros"), ("border", "border"), ("reflection", "reflection"))
      for corners in (False, True)),
    ("affine", {"x": A, "transform_matrix": torch.tensor([[0.5, 0.1, 0.0, 0.0, 0.8, 0.2]]), "output_height": 4,
                "output_width": 5, "sampling_mode": "bilinear", "padding_mode": "constant",
                "padding_value": 0.0, "coordinates_mode": "normalized_minus_one_to_one", "align_corners": False},
     lambda: F.grid_sample(A, F.affine_grid(torch.tensor([[[0.5, 0.1, 0.0], [0.0, 0.8, 0.2]]]), [1, 8, 4, 5],
                                            align_corners=False), align_corners=False)),
    ("quantize", {"input": A, "scale": 0.1, "zero_point": 3},
     lambda: torch.quantize_per_tensor(A, 0.1, 3, torch.qint8).int_repr()),
    ("dequantize", {"input": torch.tensor([[3, -4], [5, 6]]), "scale": CHANNELS[:2], "axis": 0},
     lambda: torch.tensor([[3, -4], [5, 6]]) * CHANNELS[:2, None]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_an_operation_is_what_torch_computes(
    name: str, arguments: dict[str, object], wanted: Callable[[], Tensor]
) -> None:
    got = OPERATIONS[name](**arguments)
    got = got[0] if isinstance(got, tuple) else got
    expected = wanted()
    assert got.shape == expected.shape
    np.testing.assert_allclose(got.double(), expected.double(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "extra", "groups", "dilation"),
    [(3, 2, 1, 1, 1, 1), (2, 2, 0, 0, 8, 1), (4, 3, 1, 2, 2, 1), (3, 1, 2, 0, 1, 2), (3, 2, 0, 1, 4, 1)],
)
def test_a_transposed_convolution_is_what_torch_computes(
    kernel: int, stride: int, padding: int, extra: int, groups: int, dilation: int
) -> None:
    weight, bias = torch.randn(8, 8 // groups, kernel, kernel), torch.randn(8)
    wanted = F.conv_transpose2d(A, weight, bias, stride, padding, extra, groups, dilation)
    got = OPERATIONS["conv_transpose"](
        x=A, weight=weight, bias=bias, strides=[stride] * 2, pad_type="custom", pad=[padding] * 4,
        output_shape=list(wanted.shape), groups=groups, dilations=[dilation] * 2,
    )  # fmt: skip
    torch.testing.assert_close(got, wanted)
