"""Robustness to image corruptions: noise, blur, brightness, contrast, JPEG and small rotations.

Each corruption comes in three strengths, the same pixels every time. The corrupted images are rounded to
eight bits, as a camera would hand them on.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune.allocator import keeping_freed_memory
from edgeprune.data.dataset import InMemory, Split
from edgeprune.evaluation.records import ClassTop1, Condition, Robustness
from edgeprune.training.predict import EVALUATION_BATCH, predict

SEED = 0


@dataclass(frozen=True)
class Corruption:
    """One way an image gets worse.

    Attributes:
        name: for people.
        unit: what a strength counts.
        strengths: from mild to strong.
        apply: makes (n, 3, h, w) uint8 of (n, 3, h, w) uint8 and a strength.
    """

    name: str
    unit: str
    strengths: tuple[float, float, float]
    apply: Callable[[Tensor, float], Tensor]


@keeping_freed_memory()
@torch.no_grad()
def robustness(
    model: nn.Module,
    split: Split,
    source: str,
    classes: Sequence[str],
    normalization: Normalization,
    advance: Callable[[int], None],
) -> Robustness:
    """Run a torch model on images as they are and under every corruption.

    Args:
        model: in eval mode.
        split: images and labels.
        source: which images these are, for people.
        classes: names, in the order of the labels.
        normalization: what the model takes.
        advance: told how many of `steps()` are done.
    """
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # twice as fast on a CPU
    images, _ = split.batch(torch.arange(len(split)))
    right = _right(model, split, normalization)
    advance(1)
    conditions, corrupted_right = [], []
    for corruption in CORRUPTIONS:
        for strength in corruption.strengths:
            worse = InMemory(corrupt(images, corruption, strength), split.labels)
            corrupted_right.append(_right(model, worse, normalization))
            top1 = float(corrupted_right[-1].double().mean())
            conditions.append(Condition(corruption.name, strength, corruption.unit, top1))
            advance(1 + len(conditions))
    everywhere = torch.stack(corrupted_right).double().mean(0)  # (conditions, n) -> (n,)
    return Robustness(
        images=len(split),
        image_source=source,
        top1=float(right.double().mean()),
        conditions=tuple(conditions),
        classes=tuple(
            ClassTop1(name, int(own.sum()), float(right[own].double().mean()), float(everywhere[own].mean()))
            for name, own in ((name, split.labels == label) for label, name in enumerate(classes))
            if own.any()
        ),
    )


def steps() -> int:
    """How often `measure` runs the model on all images."""
    return 1 + sum(len(corruption.strengths) for corruption in CORRUPTIONS)


def corrupt(images: Tensor, corruption: Corruption, strength: float) -> Tensor:
    """Corrupt images (n, 3, h, w) uint8, a part at a time: blurring takes four times their memory."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        parts = [corruption.apply(part, strength) for part in torch.split(images, EVALUATION_BATCH)]
    return torch.cat(parts)


def _right(model: nn.Module, split: Split, normalization: Normalization) -> Tensor:
    """Whether the largest output is the label, (n,) bool."""
    named: Tensor = predict(model, split, normalization).argmax(1) == split.labels
    return named


def _noise(images: Tensor, deviation: float) -> Tensor:
    return _to_uint8(images + 255 * deviation * torch.randn(images.shape))


def _blur(images: Tensor, percent: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    sigma_px = percent / 100 * images.shape[-1]
    side_px = 2 * math.ceil(3 * sigma_px) + 1
    blurred: Tensor = functional.gaussian_blur(images, [side_px, side_px], [sigma_px, sigma_px])
    return blurred


def _brightness(images: Tensor, factor: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    changed: Tensor = functional.adjust_brightness(images, factor)
    return changed


def _contrast(images: Tensor, factor: float) -> Tensor:
    from torchvision.transforms.v2 import functional

    changed: Tensor = functional.adjust_contrast(images, factor)
    return changed


def _jpeg(images: Tensor, quality: float) -> Tensor:
    from PIL import Image

    decoded = []
    for image in images.permute(0, 2, 3, 1).numpy():  # (n, 3, h, w) -> n of (h, w, 3)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        decoded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def _rotation(images: Tensor, degrees: float) -> Tensor:
    """Every second image the other way round; the corners that come in are black."""
    from torchvision.transforms.v2 import InterpolationMode, functional

    turned = images.clone()
    for first, angle in ((0, degrees), (1, -degrees)):
        turned[first::2] = functional.rotate(images[first::2], angle, InterpolationMode.BILINEAR)
    return turned


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS = (
    Corruption(
        "noise", "standard deviation of Gaussian noise; black to white is 1", (0.05, 0.1, 0.2), _noise
    ),
    Corruption(
        "blur", "standard deviation of a Gaussian, in percent of the image's side", (1.0, 2.0, 4.0), _blur
    ),
    Corruption("brightness", "every pixel times this", (0.75, 0.5, 0.25), _brightness),
    Corruption(
        "contrast", "distance of every pixel from the mean grey times this", (0.75, 0.5, 0.25), _contrast
    ),
    Corruption("JPEG", "quality", (50.0, 20.0, 10.0), _jpeg),
    Corruption(
        "rotation", "degrees, half the images either way, corners black", (5.0, 10.0, 15.0), _rotation
    ),
)
