"""Recurrent layers, loops, branches, lists and non-maximum suppression, as coremltools' torch frontend writes
them, against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from coremltools.converters import mil
from torch import Tensor, nn

from converters import coreml
from converters.coreml import evaluation
from converters.coreml.framework import ct, quiet
from converters.coreml.operations import OPERATIONS
from converters.errors import UserError

mb = mil.Builder
IMAGE = torch.randn(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))


class Recurrent(nn.Module):
    """A recurrent layer over the rows of an image; gives the sequence and the states."""

    def __init__(self, layer: nn.Module, states: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.states = states

    def forward(self, image: Tensor) -> Any:
        rows = image.flatten(1, 2)  # (1, 12, 6)
        start = rows.new_full((2, 1, 5), 0.3)
        given = () if not self.states else ((start,) if self.states == 1 else ((start, 0.5 * start),))
        sequence, end = self.layer(rows, *given)
        return (sequence, *end) if isinstance(end, tuple) else (sequence, end)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Recurrent(nn.LSTM(6, 5, batch_first=True)),
    "lstm both ways, with states": lambda: Recurrent(
        nn.LSTM(6, 5, batch_first=True, bidirectional=True), states=2
    ),
    "lstm of two layers without bias": lambda: Recurrent(nn.LSTM(6, 5, 2, bias=False, batch_first=True)),
    "gru": lambda: Recurrent(nn.GRU(6, 5, batch_first=True)),
    "gru both ways, with a state": lambda: Recurrent(
        nn.GRU(6, 5, batch_first=True, bidirectional=True), states=1
    ),
    "rnn": lambda: Recurrent(nn.RNN(6, 5, batch_first=True)),
    "rnn of two layers, relu, with a state": lambda: Recurrent(
        nn.RNN(6, 5, 2, nonlinearity="relu", batch_first=True), states=1
    ),
}


def saved(program: Any, folder: Path, target: str = "iOS16") -> coreml.Package:
    """A package as coremltools writes it, float32, opened to be evaluated."""
    inputs = [ct.TensorType("image", IMAGE.shape)] if isinstance(program, torch.jit.ScriptModule) else None
    with quiet():
        package = ct.convert(
            program, inputs=inputs, minimum_deployment_target=ct.target[target],
            compute_precision=ct.precision.FLOAT32, skip_model_load=True, convert_to="mlprogram",
        )  # fmt: skip
        package.save(str(folder / "m.mlpackage"))
    return coreml.load(folder / "m.mlpackage", native=False)


@pytest.mark.parametrize("name", LAYERS)
def test_a_recurrent_layer_computes_what_torch_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    package = saved(torch.jit.trace(model, IMAGE), tmp_path)
    with torch.no_grad():
        wanted = [model(image) for image in (IMAGE, IMAGE.flip(-1))]
    singly = package.predict_all(IMAGE.numpy())
    together = package.predict_all(torch.cat([IMAGE, IMAGE.flip(-1)]).numpy())
    for number, (one, two) in enumerate(zip(singly.values(), together.values(), strict=True)):
        np.testing.assert_allclose(one, wanted[0][number], atol=1e-6)
        both = torch.stack([parts[number] for parts in wanted])
        np.testing.assert_allclose(two, both.reshape(two.shape), atol=1e-6)


class Overlaps(nn.Module):
    """Boxes, the scores of which an image gives; the numbers of those that stay."""

    boxes: Tensor

    def __init__(self) -> None:
        super().__init__()
        corners = torch.rand(24, 2, generator=torch.Generator().manual_seed(3)) * 3
        self.register_buffer("boxes", torch.cat([corners, corners + 1.5], 1))

    def forward(self, image: Tensor) -> Tensor:
        return torchvision.ops.nms(self.boxes, image[0, 0].flatten(), 0.4)


@pytest.mark.parametrize("target", ["iOS16", "iOS17"])
def test_boxes_that_overlap_a_better_one_go(target: str, tmp_path: Path) -> None:
    model = Overlaps()
    package = saved(torch.jit.trace(model, IMAGE), tmp_path, target)
    for image in (IMAGE, IMAGE.flip(-1)):
        wanted = model(image).numpy()
        assert 2 < len(wanted) < 24
        np.testing.assert_array_equal(package.predict(image.numpy()), wanted)


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 6))], opset_version=ct.target.iOS16)
def branching(image: Any) -> Any:
    bright = mb.greater(x=mb.reduce_sum(x=image, axes=[0, 1, 2, 3]), y=0.0)
    doubled = mb.mul(x=image, y=2.0)
    return mb.cond(
        pred=bright, _true_fn=lambda: mb.add(x=doubled, y=image), _false_fn=lambda: mb.sub(x=image, y=1.0)
    )


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 6))], opset_version=ct.target.iOS16)
def listing(image: Any) -> Any:
    """Powers of an image, one written a round; the third of them, all of them, and how many."""
    listed = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(1, 3, 4, 6), dtype="fp32")

    def body(number: Any, power: Any, ls: Any) -> tuple[Any, ...]:
        return (
            mb.add(x=number, y=1), mb.mul(x=power, y=image), mb.list_write(ls=ls, index=number, value=power)
        )  # fmt: skip

    _, _, ls = mb.while_loop(
        _cond=lambda number, power, ls: mb.less(x=number, y=4), _body=body, loop_vars=(0, image, listed)
    )
    last = mb.list_read(ls=ls, index=3)
    count = mb.cast(x=mb.list_length(ls=ls), dtype="fp32")
    ls = mb.list_scatter(ls=ls, indices=[0], value=mb.expand_dims(x=last, axes=[0]))
    return mb.mul(x=last, y=count), mb.list_gather(ls=ls, indices=[2, 0])


def test_a_branch_is_chosen_for_each_image(tmp_path: Path) -> None:
    images = torch.cat([IMAGE.abs(), -IMAGE.abs()])
    got = saved(branching, tmp_path).predict(images.numpy())
    np.testing.assert_allclose(got, torch.cat([3 * images[:1], images[1:] - 1]), atol=1e-6)


def test_a_loop_that_writes_a_list(tmp_path: Path) -> None:
    last, some = saved(listing, tmp_path).predict_all(IMAGE.numpy()).values()
    np.testing.assert_allclose(last, 4 * IMAGE**4, rtol=1e-5)
    np.testing.assert_allclose(some, torch.stack([IMAGE**3, IMAGE**4]), rtol=1e-5)


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 3, 4, 6))], opset_version=ct.target.iOS16)
def endless(image: Any) -> Any:
    return mb.while_loop(
        _cond=lambda x: mb.greater(x=mb.reduce_max(x=x, axes=[0, 1, 2, 3]), y=-1.0),
        _body=lambda x: mb.add(x=x, y=1.0), loop_vars=(image,),
    )  # fmt: skip


def test_a_loop_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_MAX_ROUNDS", 50)
    with pytest.raises(UserError, match=r"'while_loop' at .*: it goes on after 50 rounds"):
        saved(endless, tmp_path)


def test_what_is_not_defined_is_refused_by_name() -> None:
    x, h, w = torch.randn(2, 1, 4), torch.randn(1, 3), torch.randn(3, 4)
    with pytest.raises(ValueError, match="activation 'scaled_tanh'"):
        OPERATIONS["rnn"](x, h, w, torch.randn(3, 3), activation="scaled_tanh")
    with pytest.raises(ValueError, match="several images, or classes"):
        OPERATIONS["non_maximum_suppression"](torch.rand(1, 5, 4), torch.rand(1, 5, 2), 0.5, 3, 0.0)


def test_a_gru_is_what_its_definition_says() -> None:
    """coremltools writes torch's as a loop: the reset gate takes in its bias, this one's does not."""
    torch.manual_seed(0)
    layer = nn.GRU(4, 3)
    nn.init.zeros_(layer.bias_hh_l0)
    x = torch.randn(5, 1, 4)
    order = [0, 2, 1]  # torch: reset, update, new
    ih, hh, bias = (
        torch.cat([part.chunk(3)[gate] for gate in order])
        for part in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0)
    )
    for direction, given in (("forward", x), ("reverse", x.flip(0))):
        wanted, end = layer(given)
        wanted = wanted if direction == "forward" else wanted.flip(0)
        got = OPERATIONS["gru"](
            x=x, initial_h=torch.zeros(1, 3), weight_ih=ih, weight_hh=hh, bias=bias, direction=direction,
            output_sequence=True,
        )  # fmt: skip
        torch.testing.assert_close(got[0], wanted)
        torch.testing.assert_close(got[1], end[0])
