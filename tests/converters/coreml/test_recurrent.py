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
from coremltools.converters.mil import Builder as mb
from torch import Tensor, nn

from converters import coreml
from converters.coreml.framework import ct, quiet
from converters.errors import UserError

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


def written(model: nn.Module, folder: Path, *, traced: bool) -> coreml.Package:
    """A package by coremltools' own interface, float32."""
    if traced:
        program = torch.jit.trace(model, IMAGE)
    else:
        program = torch.export.export(model, (IMAGE,)).run_decompositions({})
    inputs = [ct.TensorType("image", IMAGE.shape)] if traced else None
    with quiet():
        package = ct.convert(
            program, inputs=inputs, minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        )  # fmt: skip
        package.save(str(folder / "m.mlpackage"))
    return coreml.load(folder / "m.mlpackage", native=False)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("traced", [False, True], ids=["exported", "traced"])
def test_a_recurrent_layer_computes_what_torch_does(name: str, traced: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LAYERS[name]().eval()
    package = written(model, tmp_path, traced=traced)
    images = torch.cat([IMAGE, IMAGE.flip(-1)])
    with torch.no_grad():
        wanted = [torch.cat(parts, 1) if parts[0].dim() == 3 and len(parts[0]) != 1 else torch.cat(parts)
                  for parts in zip(model(images[:1]), model(images[1:]), strict=True)]  # fmt: skip
    found = package.predict_all(images.numpy())
    for got, want in zip(found.values(), wanted, strict=True):
        np.testing.assert_allclose(np.sort(got, None), np.sort(want.numpy(), None), atol=1e-5)
