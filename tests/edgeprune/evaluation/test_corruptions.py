"""What the corruptions do to pixels, and what is counted on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune.data.dataset import InMemory
from edgeprune.evaluation import corruptions
from edgeprune.evaluation.corruptions import CORRUPTIONS, corrupt

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}


def pictures(count: int = 6, size_px: int = 64) -> Tensor:
    """Smooth blobs on a gradient, (count, 3, size, size) uint8: no corruption leaves them alone."""
    rows, columns = np.mgrid[0:size_px, 0:size_px] / size_px
    centres = np.random.default_rng(0).uniform(0.3, 0.7, (count, 3, 2))
    distances = [[np.hypot(rows - y, columns - x) for y, x in own] for own in centres]
    pixels = 200 * np.exp(-20 * np.square(distances)) + 50 * rows
    return torch.from_numpy(pixels.round().astype(np.uint8))


@pytest.mark.parametrize("name", BY_NAME)
def test_a_corruption_grows_with_its_strength_and_is_the_same_every_time(name):
    images, corruption = pictures(), BY_NAME[name]
    original = images.clone()
    distances = []
    for strength in corruption.strengths:
        worse = corrupt(images, corruption, strength)
        assert worse.shape == images.shape
        assert worse.dtype == torch.uint8
        torch.rand(1)  # what else is random has no say
        assert torch.equal(corrupt(images, corruption, strength), worse)
        distances.append(float((worse.double() - images.double()).square().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]
    assert torch.equal(images, original)


def test_noise_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    corrupt(pictures(), BY_NAME["noise"], 0.1)
    assert torch.equal(torch.rand(3), expected)


def test_the_pixels_are_what_the_units_say():
    grey = torch.full((2, 3, 40, 40), 120, dtype=torch.uint8)
    assert corrupt(grey, BY_NAME["brightness"], 0.5).unique().tolist() == [60]
    halves = torch.cat([grey[..., :20] - 80, grey[..., :20] + 80], 3)  # 40 and 200, 120 in the mean
    assert corrupt(halves, BY_NAME["contrast"], 0.25).unique().tolist() == pytest.approx([100, 140], abs=1)
    noise = corrupt(grey, BY_NAME["noise"], 0.1).double() - 120
    assert noise.std() == pytest.approx(25.5, rel=0.03)
    point = torch.zeros((1, 3, 41, 41), dtype=torch.uint8)
    point[..., 20, 20] = 255
    spread = corrupt(point, BY_NAME["blur"], 4.0)[0, 0].double()
    assert spread[20, 20] == pytest.approx(255 / (2 * np.pi * 1.64**2), abs=0.6), "4 % of 41 px are 1.64 px"


def test_half_the_images_are_turned_either_way():
    bar = torch.zeros((2, 3, 41, 41), dtype=torch.uint8)
    bar[:, :, 20, 20:] = 255  # from the middle to the right
    first, second = corrupt(bar, BY_NAME["rotation"], 15.0)[:, 0]
    right = 35
    up, down = (int(image[:, right].argmax()) for image in (first, second))
    assert (up, down) == (16, 24), "15 px to the right of the middle, 4 px up or down"


class BrightHalf(nn.Module):
    """Says 1 where the mean pixel is above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.45))

    def forward(self, images: Tensor) -> Tensor:
        above = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-above, above], 1)


def test_what_is_counted():
    """Two dark and two bright grey images: darkened to half, the bright ones are taken for dark."""
    greys = torch.tensor([30, 60, 130, 250]).view(4, 1, 1, 1)
    split = InMemory(greys.expand(4, 3, 32, 32).to(torch.uint8).contiguous(), torch.tensor([0, 0, 1, 1]))
    done = []
    found = corruptions.robustness(
        BrightHalf().eval(), split, "greys", ("dark", "bright", "none"), PLAIN, done.append
    )
    assert done == list(range(1, corruptions.steps() + 1))
    assert (found.images, found.image_source, found.top1) == (4, "greys", 1.0)
    top1 = {(c.corruption, c.strength): c.top1 for c in found.conditions}
    assert len(top1) == 18
    assert [top1["brightness", strength] for strength in (0.75, 0.5, 0.25)] == [0.75, 0.75, 0.5]
    assert [top1["contrast", strength] for strength in (0.75, 0.5, 0.25)] == [1, 1, 1]
    dark, bright = found.classes
    assert (dark.name, dark.images, dark.top1, dark.corrupted_top1) == ("dark", 2, 1.0, 1.0)
    lost = 2 * (18 - 1) - sum(4 * (value - 0.5) for value in top1.values()) + 2
    assert bright.corrupted_top1 == pytest.approx(1 - lost / 36)
