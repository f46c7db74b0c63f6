"""Flowers from ImageNet weights: the smallest files with at least 90 and 92 % of the test images right.

    python benchmarks/flowers.py --images FLOWERS --weights LITE0.pth --work FOLDER [--seeds 0 1 2]

`--images` holds train/ and val/, a folder a class; `--weights` the ImageNet weights of EfficientNet-Lite0.
The dense model is fine-tuned, loses channels in four steps, learning from it after each, and is converted:

    dense -> 35 % of the weights -> 15 % -> medium, a Core ML package of 350,000 bytes
                                         -> small, a .tflite of 196,848 bytes (from medium)

400 of the training images choose everything; the test images are looked at once, through the files. The dense
model and the first two steps are made once, the others for every seed. Each epoch is kept in FOLDER: a
stopped run goes on. Writes flowers.md and .json into docs/results (--out). An hour of one core a seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litert_files import made_by, percent, provenance, table, write
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchvision.transforms.v2 import functional as pixels

from converters import coreml, litert
from converters.facts import Normalization, size_bytes
from edgeprune import pruning
from edgeprune.models.architecture import Architecture
from edgeprune.models.cost import count_parameters
from edgeprune.models.weights import load_weights
from edgeprune.training.recover import soft_divergence

MODEL = Architecture("timm/tf_efficientnet_lite0", 224)
NORMALIZATION = Normalization((127 / 255,) * 3, (128 / 255,) * 3)
VALIDATION = 400
TEST_PX = 160  # Of 144, 160 and 192 the best on the validation images.
BATCH, CALIBRATION_BATCH, CALIBRATION = 32, 16, 512
RECALIBRATION = 768
DISTILL, SMOOTHING, WEIGHT_DECAY = 0.7, 0.1, 0.05
LEAST_AREA = 0.3
MEDIUM, SMALL = ("coreml-ios18-6bit", 350_000), ("litert-arm64-int8", 196_848)
# Bytes that a weight takes in these files, to guess the next share from.
BYTES_A_WEIGHT = {MEDIUM[0]: 0.77, SMALL[0]: 1.06}
SHIPPED = {
    "dense": ("litert-arm64-int8",),
    "medium": ("coreml-ios18-6bit", "litert-arm64-int8"),
    "small": ("litert-arm64-int8", "coreml-ios18-6bit"),
}


@dataclass(frozen=True)
class Images:
    """Decoded images of any size, (3, h, w) uint8, and their labels, (n,)."""

    pictures: Sequence[Tensor]
    labels: Tensor

    def batch(self, which: Tensor, side_px: int, crop: float) -> Tensor:
        """Shorter side to side / crop, then the middle: (n, 3, side, side) as the model takes it."""
        return as_input(torch.stack([_plain(self.pictures[int(i)], side_px, crop) for i in which]))


def as_input(images: Tensor) -> Tensor:
    """uint8 to what the model takes."""
    mean, std = NORMALIZATION.mean[0], NORMALIZATION.std[0]
    return ((images.float() / 255 - mean) / std).to(memory_format=torch.channels_last)


def read(folder: Path) -> tuple[Images, list[str]]:
    """Images of a folder with one folder a class, and the classes."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    files = [
        (path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())
    ]
    pictures = [
        torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1).copy())
        for path, _ in files
    ]
    return Images(pictures, torch.tensor([label for _, label in files])), classes


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Training and validation images, each class with its share."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    own = [order[labels[order] == label] for label in range(int(labels.max()) + 1)]
    chosen = torch.cat([part[: round(VALIDATION * len(part) / len(labels))] for part in own])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero()[:, 0], chosen.sort().values


def _plain(picture: Tensor, side_px: int, crop: float) -> Tensor:
    height, width = picture.shape[1:]
    scale = round(side_px / crop) / min(height, width)
    resized = pixels.resize(picture, [round(height * scale), round(width * scale)], antialias=True)
    return pixels.center_crop(resized, [side_px, side_px])


def _augmented(picture: Tensor, side_px: int, generator: torch.Generator) -> Tensor:
    """A random part of at least 30 % of the picture, mirrored half of the time."""
    height, width = picture.shape[1:]
    one = lambda: torch.rand((), generator=generator).item()  # noqa: E731
    rows = columns = min(height, width)
    for _ in range(10):
        area = height * width * (LEAST_AREA + (1 - LEAST_AREA) * one())
        ratio = math.exp((one() * 2 - 1) * math.log(4 / 3))
        tried = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if tried[0] <= height and tried[1] <= width:
            rows, columns = tried
            break
    top = int(torch.randint(0, height - rows + 1, (), generator=generator))
    left = int(torch.randint(0, width - columns + 1, (), generator=generator))
    part = pixels.resized_crop(picture, top, left, rows, columns, [side_px, side_px], antialias=True)
    return part.flip(2) if one() < 0.5 else part


def _lit(images: Tensor, generator: torch.Generator) -> Tensor:
    """Contrast and brightness, 20 % either way."""
    gain = 0.8 + 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator)
    shift = 0.4 * torch.rand(len(images), 1, 1, 1, generator=generator) - 0.2
    return (images * gain + shift).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Fit:
    """One training: epochs, sides of the first and last images, learning rate, stages left as they are."""

    epochs: int
    first_px: int
    last_px: int
    learning_rate: float
    frozen_stages: int = 0


DENSE = Fit(5, 128, 160, 1e-3)
STEPS = {
    "35%": Fit(2, 128, 128, 1.5e-3),
    "15%": Fit(3, 128, 128, 2e-3),
    "medium": Fit(8, 128, 144, 2e-3, frozen_stages=2),
    "small": Fit(14, 128, 144, 2e-3, frozen_stages=2),
}


class Flowers:
    """The images, the dense model, and the road from it to the small ones."""

    def __init__(self, images: Path, weights: Path, work: Path) -> None:
        self.data, self.classes = read(images / "train")
        self.train, self.validation = split(self.data.labels)
        self.work = work
        self.dense = MODEL.build(len(self.classes))
        load_weights(self.dense, MODEL, str(weights))
        torch.manual_seed(0)
        self.fit(self.dense, DENSE, "dense", seed=0, teacher=None)
        self.whole = count_parameters(self.dense)

    def seed(self, seed: int) -> dict[str, nn.Module]:
        """The medium and the small model of a seed."""
        first = self.step("35%", 0, lambda: self.shrunk(self.dense, 0.35, 0))
        second = self.step("15%", 0, lambda: self.shrunk(first, 0.15, 0))
        medium = self.step("medium", seed, lambda: self.within(second, MEDIUM, 0.083, seed))
        small = self.step("small", seed, lambda: self.within(medium, SMALL, 0.036, seed))
        return {"medium": medium, "small": small}

    def step(self, name: str, seed: int, make: Callable[[], nn.Module]) -> nn.Module:
        """A model with fewer channels, kept once it is made, then trained."""
        start = self.work / f"{name}-{seed}.pt"
        if not start.exists():
            torch.save(make(), start)
        model: nn.Module = torch.load(start, weights_only=False)  # Our own file: widths and all.
        torch.manual_seed(seed)
        return self.fit(model, STEPS[name], f"{name}-{seed}", seed + 10, teacher=self.dense)

    def shrunk(self, model: nn.Module, share: float, seed: int) -> nn.Module:
        """With so many of the dense model's weights left."""
        small = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
        left = share * self.whole / count_parameters(small)
        example = torch.zeros(1, 3, TEST_PX, TEST_PX)
        pruning.shrink_to(small, example, left, of="parameters", calibration=list(self.calibration(seed)))
        return small

    def within(self, model: nn.Module, budget: tuple[str, int], share: float, seed: int) -> nn.Module:
        """The largest whose file has at most so many bytes; widths are rounded."""
        target, most_bytes = budget
        best: tuple[int, nn.Module] | None = None
        for _ in range(6):
            tried = self.shrunk(model, share, seed)
            size, weights = size_bytes(self.file(tried, target, "trial")), count_parameters(tried)
            if size <= most_bytes and (best is None or weights > best[0]):
                best = weights, tried
            if 0.985 * most_bytes <= size <= most_bytes:
                break
            more = (0.99 * most_bytes - size) / (BYTES_A_WEIGHT[target] * self.whole)
            share = weights / self.whole + more
        if best is None:
            raise SystemExit(f"{target}: no file of {most_bytes:,} bytes after six tries")
        return best[1]

    def calibration(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Labelled training images as they are."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        for part in torch.split(self.train[order[:CALIBRATION]], CALIBRATION_BATCH):
            yield self.data.batch(part, 128, 0.9), self.data.labels[part]

    def file(self, model: nn.Module, target: str, name: str) -> Path:
        """Converted for images of `TEST_PX`."""
        plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()
        suffix, converter = (".tflite", litert) if target.startswith("litert") else (".mlpackage", coreml)
        path = self.work / f"{name}{suffix}"
        example = torch.zeros(1, 3, TEST_PX, TEST_PX)
        converter.convert(  # type: ignore[attr-defined]
            plain, example, path, target=target, labels=self.classes, normalization=NORMALIZATION
        )
        return path

    def fit(self, model: nn.Module, fit: Fit, name: str, seed: int, teacher: nn.Module | None) -> nn.Module:
        """Train in place: AdamW, one cycle, learning from the teacher; batch norms measured anew."""
        model.to(memory_format=torch.channels_last)
        still = _frozen(model, fit.frozen_stages)
        learning = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=fit.learning_rate, fused=True)
        steps = len(self.train) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, fit.learning_rate, total_steps=steps * fit.epochs, pct_start=0.25
        )
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        kept, done = self.work / f"{name}.checkpoint", 0
        if kept.exists():
            state = torch.load(kept, weights_only=False)
            done = state["epoch"]
            for part_name, part in parts.items():
                part.load_state_dict(state[part_name])
        for epoch in range(done, fit.epochs):
            model.train()
            for module in still:
                module.eval()
            for images, labels in self.batches(fit, seed, epoch):
                _loss(model, teacher, images, labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            right = self.right(model, fit.last_px, 0.9).mean()
            print(
                f"{name}: epoch {epoch + 1} of {fit.epochs}, validation {percent(float(right))}", flush=True
            )
            state = {part_name: part.state_dict() for part_name, part in parts.items()}
            torch.save({"epoch": epoch + 1, **state}, kept)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(1))[:RECALIBRATION]
        with torch.no_grad():
            update_bn([self.data.batch(p, fit.last_px, 0.9) for p in self.train[chosen].split(64)], model)
        return model.eval()

    def batches(self, fit: Fit, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of one epoch; images grow evenly until two thirds of the epochs are over."""
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        grown = min(1.0, epoch / max(1, 2 / 3 * fit.epochs))
        side_px = fit.first_px + 16 * int((fit.last_px - fit.first_px) / 16 * grown + 1e-9)
        order = self.train[torch.randperm(len(self.train), generator=generator)]
        for part in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
            images = [_augmented(self.data.pictures[int(i)], side_px, generator) for i in part]
            yield _lit(as_input(torch.stack(images)), generator), self.data.labels[part]

    @torch.no_grad()
    def right(self, model: nn.Module, side_px: int, crop: float) -> np.ndarray:
        """Whether each validation image is right."""
        model.eval()
        parts = self.validation.split(50)
        answers = [model(self.data.batch(part, side_px, crop)).argmax(1) for part in parts]
        return (torch.cat(answers) == self.data.labels[self.validation]).float().numpy()


def _frozen(model: nn.Module, stages: int) -> list[nn.Module]:
    """The stem and the first stages, which no longer learn: their maps are most of what training costs."""
    still = [model.conv_stem, model.bn1, *model.blocks[:stages]] if stages else []
    for module in still:
        for parameter in module.parameters():
            parameter.requires_grad_(False)
    return still


def _loss(model: nn.Module, teacher: nn.Module | None, images: Tensor, labels: Tensor) -> Tensor:
    outputs = model(images)
    loss = F.cross_entropy(outputs, labels, label_smoothing=SMOOTHING)
    if teacher is None:
        return loss
    with torch.no_grad():
        taught = teacher(images)
    return torch.lerp(loss, soft_divergence(outputs, taught), DISTILL)


def tested(path: Path, test: Images) -> np.ndarray:
    """Whether each test image is right, by the file."""
    loaded = (litert if path.suffix == ".tflite" else coreml).load(path)  # type: ignore[attr-defined]
    pictures = [_plain(picture, TEST_PX, 1.0)[None].float().numpy() for picture in test.pictures]
    answers = np.concatenate([np.asarray(loaded.predict(picture)) for picture in pictures])
    return np.asarray(answers.argmax(1) == test.labels.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--beside", type=Path, help="flowers.json of other seeds, made in another folder")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    flowers = Flowers(options.images, options.weights, options.work)
    models = {seed: flowers.seed(seed) for seed in options.seeds}
    models[options.seeds[0]]["dense"] = flowers.dense
    test, _ = read(options.images / "val")
    rows = [
        row(flowers, model, name, target, seed, test)
        for seed, made in models.items()
        for name, model in made.items()
        for target in SHIPPED[name]
    ]
    if options.beside:
        rows = [*json.loads(options.beside.read_text())["files"], *rows]
    facts = provenance()
    write(options.out, "flowers", page(facts, rows), {"schema": 1, **facts, "files": rows})


def row(
    flowers: Flowers, model: nn.Module, name: str, target: str, seed: int, test: Images
) -> dict[str, Any]:
    """What a file is and how many of the test images it has right."""
    path = flowers.file(model, target, f"{name}-{seed}")
    right = tested(path, test)
    return {
        "model": name,
        "target": target,
        "seed": seed,
        "weights": count_parameters(model),
        "bytes": size_bytes(path),
        "validation_top1": float(flowers.right(model, TEST_PX, 1.0).mean()),
        "images": len(right),
        "top1": float(right.mean()),
        "right": "".join(map(str, right.astype(int))),
    }


def page(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """For people."""
    kinds = dict.fromkeys((row["model"], row["target"]) for row in rows)
    return [
        "# Flowers: small files from ImageNet weights",
        "",
        f"EfficientNet-Lite0 at {TEST_PX} px; {rows[0]['images']} test images of 5 classes through files.",
        "",
        *table(
            ["model", "file", "bytes", "test images right: mean", "range", "standard error", "seeds"],
            [_cells(name, target, rows) for name, target in kinds],
        ),
        "",
        made_by(facts),
        "",
        f"- {VALIDATION} of the training images chose everything; test images were looked at once.",
        "- Standard error: of one file, from the number of test images. Seeds of one folder share the dense",
        "  model and the first two steps; from there on order and augmentation differ.",
        *(f"- Of one folder: seeds {', '.join(map(str, own))}." for own in _folders(rows)),
        "- Published for the same pictures, on their own split: MobileNetV2 0.35 int8 86.4 % in 628,928",
        "  bytes, MobileNetV1 0.5 int8 89.5 % in 985,960, FdMobileNet 0.25 int8 86.0 % in 196,848.",
    ]


def _folders(rows: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Seeds that were made together: those up to the one that the dense model is told with."""
    first = sorted({row["seed"] for row in rows if row["model"] == "dense"})
    seeds = sorted({row["seed"] for row in rows})
    ends = [*first[1:], seeds[-1] + 1]
    return [[s for s in seeds if begin <= s < end] for begin, end in zip(first, ends, strict=True)]


def _cells(name: str, target: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    own = [row for row in rows if (row["model"], row["target"]) == (name, target)]
    top1 = np.array([row["top1"] for row in own])
    error = math.sqrt(top1.mean() * (1 - top1.mean()) / own[0]["images"])
    spread = f"{percent(float(top1.min()))} to {percent(float(top1.max()))}" if len(own) > 1 else "–"
    sizes = sorted({row["bytes"] for row in own})
    size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return [name, target, size, percent(float(top1.mean())), spread, f"{100 * error:.1f}", str(len(own))]


if __name__ == "__main__":
    main()
