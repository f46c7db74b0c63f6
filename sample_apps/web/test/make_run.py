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
from edgeprune.data.boxes import Boxes
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.models.architecture import Architecture
from edgeprune.models.build import anchors_of
from edgeprune.tasks import TASKS
from edgeprune.tasks.detection.suppression import find

SIZE_PX = 16
HELD_OUT = (3, 17, 150, 1234)
Masks = Sequence[tuple[nn.Parameter, torch.Tensor]]
DETECTOR_PX, DETECTOR_STEPS = 64, 300
SHADES = ("bright", "dark")
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
    write_detector(folder.parent)


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


def write_detector(folder: Path) -> None:
    """A detector that knows squares by their brightness, an image with some, and what is to be found."""
    architecture = Architecture("ssdlite/timm/lcnet_035", DETECTOR_PX)
    task = TASKS["detection"].bound(architecture)
    model = architecture.build(len(SHADES))
    images, labels = squares(200)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=DETECTOR_STEPS)
    for _ in range(DETECTOR_STEPS):
        batch = torch.randint(len(images), (16,))
        loss = task.loss(model(images[batch] / 127.5 - 1), [labels[i] for i in batch], 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path = folder / "detector.tflite"
    prepare = Preprocessing(DETECTOR_PX, whole_image=True)
    litert.convert(
        model.eval(),
        torch.zeros(1, 3, DETECTOR_PX, DETECTOR_PX),
        path,
        target="litert-web",
        labels=list(SHADES),
        normalization=HALF,
        metadata={**task.metadata(), **prepare.to_metadata()},
    )
    with torch.no_grad():
        scores = model(images[:50] / 127.5 - 1)[..., 4:].softmax(2)[..., 1:].amax(1)
    shown = images[scores.amin(1).argmax()][None]  # Where it is surest of both squares.
    # Wider than high, so that squeezing it is seen to be right.
    picture = Image.fromarray(shown[0].numpy().astype(np.uint8).transpose(1, 2, 0))
    picture.resize((2 * DETECTOR_PX, DETECTOR_PX), Image.Resampling.NEAREST).save(folder / "squares.png")
    rows = litert.load(path, apart=False).predict(
        prepare.read(folder / "squares.png").transpose(2, 0, 1)[None]
    )
    found = find(
        rows[0],
        anchors_of(architecture.name, DETECTOR_PX),
        DETECTOR_PX,
        json.loads(task.metadata()["boxes"])["least_score"],
    )
    expected = {
        "rows": rows[0].ravel().tolist(),
        "labels": list(SHADES),
        "metadata": task.metadata()["boxes"],
        "found": [
            {"label": int(label), "score": float(score), "box": box.tolist()}
            for box, label, score in zip(found.corners, found.classes, found.scores, strict=True)
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(expected))


def squares(count: int) -> tuple[torch.Tensor, list[Boxes]]:
    """Noisy grey images with one bright and one dark square each, and their boxes."""
    generator = np.random.default_rng(0)
    images = generator.normal(128, 12, (count, 3, DETECTOR_PX, DETECTOR_PX))
    labels = []
    for image in images:
        side = int(generator.integers(18, 28))
        top, left = (int(place) for place in generator.integers(0, DETECTOR_PX - side, 2))
        left //= 2
        other = left + DETECTOR_PX // 2 if left + side <= DETECTOR_PX // 2 else 0
        boxes = [(left, top, 0)] + ([(other, top, 1)] if other else [])
        for x, y, label in boxes:
            image[:, y : y + side, x : x + side] = 230 if label == 0 else 20
        labels.append(
            Boxes(
                torch.tensor([[x, y, min(x + side, DETECTOR_PX), y + side] for x, y, _ in boxes]).float(),
                torch.tensor([label for *_, label in boxes]),
                torch.zeros(len(boxes), dtype=torch.bool),
                DETECTOR_PX,
            )
        )
    return torch.from_numpy(images.clip(0, 255).round()).float(), labels


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
