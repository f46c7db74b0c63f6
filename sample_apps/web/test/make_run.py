"""Makes what the page's tests run on: a small network that reads digits, dense and sparse, as files.

python make_run.py FOLDER writes files/*.tflite, digits as PNG images, and expected.json: what each digit is,
and the values that each file gives for it on LiteRT here.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from converters import litert
from converters.facts import Normalization
from edgeprune import pruning

SIZE_PX = 16
HELD_OUT = (3, 17, 150, 1234)
Masks = Sequence[tuple[nn.Parameter, torch.Tensor]]
LABELS = [f"digit {number}" for number in range(10)]
HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def main() -> None:
    """Train, prune, convert, and run each file."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / "files").mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = enlarged(digits.images)
    train = torch.tensor([i for i in range(len(images)) if i not in HELD_OUT])
    labels = torch.from_numpy(digits.target).long()
    model = network()
    fit(model, images[train], labels[train], steps=300)
    write(model, folder / "files", "dense", ("litert-web",))
    pruning.prune(model, pruning.Block(out=1, in_=4), 0.8)
    masks = [(weight, weight != 0) for weight in model.parameters() if weight.ndim > 1]
    fit(model, images[train], labels[train], steps=300, masks=masks)
    write(model, folder / "files", "sparse", ("litert-web", "litert-web-int8"))
    write_told(model, folder.parent / "told.tflite")
    save(folder, images, labels)


def network() -> nn.Sequential:
    """The shape of a MobileNet: what XNNPACK's sparse kernels take."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    for width, out, stride in ((16, 64, 2), (64, 64, 1)):
        depthwise = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=width)
        layers += [depthwise, nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.Conv2d(width, out, 1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def enlarged(digits: np.ndarray) -> torch.Tensor:
    """(n, 3, SIZE_PX, SIZE_PX) float32 in [0, 255]."""
    pixels = torch.from_numpy(digits).float()[:, None] * (255 / 16)
    larger = F.interpolate(pixels, SIZE_PX, mode="bilinear", antialias=True)
    return larger.round().clamp(0, 255).repeat(1, 3, 1, 1)


def fit(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, steps: int, masks: Masks = ()) -> None:
    """Train on random batches; where a mask is given, its zeros stay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # Down to nothing, so that the batch norms' statistics catch up with the weights.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[batch] / 127.5 - 1), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        for parameter, mask in masks:
            parameter.data *= mask
    model.eval()


def write(model: nn.Module, folder: Path, variant: str, targets: Sequence[str]) -> None:
    """Convert for each target."""
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    lowered = litert.lower(model, example, HALF)
    for target in targets:
        litert.convert(
            model,
            example,
            folder / f"{variant}-{target}.tflite",
            target=target,
            labels=LABELS,
            normalization=HALF,
            lowered=lowered,
        )


def write_told(model: nn.Module, path: Path) -> None:
    """A file that leaves normalising to the app, and says how; beside the run, not of it."""
    litert.convert(
        model,
        torch.zeros(1, 3, SIZE_PX, SIZE_PX),
        path,
        target="litert-web",
        labels=LABELS,
        normalization=HALF,
        fold_normalization=False,
    )


def save(folder: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Write the held-out digits as images, and what each file makes of them."""
    expected = []
    for number in HELD_OUT:
        pixels = images[number].numpy()
        name = f"digit-{number}.png"
        Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0)).save(folder / name)
        expected.append({"image": name, "label": int(labels[number]), "values": {}})
    for path in sorted((folder / "files").glob("*.tflite")):
        model = litert.load(path, apart=False)
        for entry, number in zip(expected, HELD_OUT, strict=True):
            entry["values"][path.name] = model.predict(images[number : number + 1].numpy())[0].tolist()
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
