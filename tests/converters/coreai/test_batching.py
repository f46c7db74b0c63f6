"""Many images at once give what each alone gives, and what torch gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.packages import NORMALIZATION, images, run

pytestmark = [pytest.mark.coreai, pytest.mark.xdist_group("coreai")]
COUNT = 16


class Maps(nn.Module):
    """What is written anew in ways of its own: kernels, strides, dilation, padding, pools, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.wide = nn.Conv2d(8, 8, (3, 5), (2, 1), (1, 2), groups=8)
        self.dilated = nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=8, bias=False)
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.dense = nn.Conv2d(16, 16, 3, 1, 1)
        self.grouped = nn.Conv2d(16, 16, 3, 1, 1, groups=4)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.flat, self.last = nn.Linear(16 * 2 * 4, 12), nn.Linear(12, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.stem(x))
        x = F.relu6(self.wide(x)) + F.silu(self.dilated(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3, (2, 1))))
        x = self.shortcut(x)
        x = torch.sigmoid(self.dense(x)) - self.grouped(x)
        x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = F.max_pool2d(x, 2)
        return self.last(F.gelu(self.flat(x.flatten(1))))


def network(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return model.eval()


def batched(model: nn.Module, given: np.ndarray) -> np.ndarray:
    """What the program written anew for as many images gives: it must be possible to write it."""
    from converters import coreai
    from converters.coreai import batching
    from converters.coreai.runtime import Executable, module_of

    program = coreai.prepare(model, torch.zeros(1, *given.shape[1:])).program
    batching.batch(module_of(program), len(given))
    executable = Executable(program)
    try:
        return executable.run_once(given)[0]
    finally:
        executable.close()


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (Maps, 32),
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)), 16),  # maps
        (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(600, 3)), 12),
    ],
)
def test_many_images_give_what_torch_gives(model, size):
    built = network(model())
    given = images(COUNT, size)
    wanted = run(built, given)
    got = batched(built, given)
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 2e-6 * max(1.0, float(np.abs(wanted).max()))


def test_what_may_mix_images_is_not_batched():
    from converters.coreai.batching import NotBatchedError

    class Flipped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1).reshape(1, 12, -1).softmax(2).mean(1)

    with pytest.raises(NotBatchedError):
        batched(network(Flipped()), images(COUNT, 12))


@pytest.mark.parametrize("count", [1, 15, 16, 70])
def test_any_number_of_images(count, files, tiny):
    from converters import coreai

    loaded = coreai.load(files["coreai-ios27-float32"].path)
    pixels = (images(count, 32) * 255).round()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (NORMALIZATION.mean, NORMALIZATION.std))
    wanted = run(tiny, (pixels / 255 - mean) / std)
    assert np.abs(loaded.predict(pixels) - wanted).max() <= 1e-5 * float(np.abs(wanted).max())
