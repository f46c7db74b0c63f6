"""Convert models to every Core AI target, run the files by Apple's own runtime, compare with torch.

    python benchmarks/coreai_models.py               measure what has not been measured yet
    python benchmarks/coreai_models.py MODEL ...     measure these (again)
    python benchmarks/coreai_models.py --speed       time 1,000 images against torch
    python benchmarks/coreai_models.py --small       the transformer as it is, for images of 32 px
    python benchmarks/coreai_models.py --trained MODEL CHECKPOINT IMAGES   published weights, photographs
    python benchmarks/coreai_models.py --page        only write the page

Needs the extra: pip install 'edgeprune[coreai]'. Results go to docs/results/coreai_models.json, a model and
variant at a time, so that the work can be stopped and gone on with, and from there to coreai_models.md.
Weights are random and batch norms have statistics of their own; each model is converted as it is, and with
75 % of the weights of its 1x1 convolutions and linear layers zero. For each file: its bytes, the part of them
that is weights by formula, and relative errors (largest difference over the largest value) of the runtime
computing in float32, of the file as it is, and of the first to torch holding the file's own numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from coreml_models import VARIANTS, build, run
from torch import Tensor, nn

from converters import coreai
from converters.coreai.apart import tensors_of
from converters.coreai.package import read_asset
from converters.coreai.verification import decoded_weights, holding
from converters.files import write_text
from converters.format import FORMATS
from converters.layers import WeightedLayer
from converters.targets import TARGETS
from edgeprune.evaluation.exported_file import BATCH as EXPORTED_BATCH
from edgeprune.training.predict import EVALUATION_BATCH

# Image sizes in pixels, small to be quick; the transformer has one size only.
MODELS = {
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "mobilenet_v2": 64,
    "efficientnet_lite0": 64,
    "mobilenetv4_conv_small": 96,
    "resnet18": 64,
    "lraspp_mobilenet_v3_large": 96,
    "vit_tiny_patch16_224": 224,
}
NAMES = [name for name, target in TARGETS.items() if target.format == "coreai"]
IMAGES, IMAGES_AS_IT_IS = 3, 1
# In float16 the plain kernels of Linux take half a minute and more for an image of a transformer.
SLOW = ("vit_tiny_patch16_224",)
# The same transformer with 5 tokens an image instead of 197, where they can be waited for.
SMALL = ("vit_tiny_patch16_224", 32)
TRAINED_PX, TRAINED_IMAGES = 160, 8
SPEED_MODEL = ("mobilenet_v3_small", 64)
SPEED_IMAGES, SPEED_ROUNDS = 1000, 9
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "coreai_models.json"
PACKAGES = ("torch", "torchvision", "timm", "coreai-core", "coreai-torch", "numpy")

Row = dict[str, Any]


class Main(nn.Module):
    """A model that gives its main output alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """As the model."""
        given = self.model(x)
        return given["out"] if isinstance(given, dict) else given


def measure(name: str, variant: str, size: int) -> list[Row]:
    """A row for each target."""
    model = Main(build(name, VARIANTS[variant])).eval()
    torch.manual_seed(1)
    images = torch.rand(IMAGES, 3, size, size)
    wanted = run(model, images)
    start = time.perf_counter()
    prepared = coreai.prepare(model, images[:1])
    seconds = time.perf_counter() - start
    rows = []
    for target in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            file = coreai.write(prepared, target, Path(folder) / "model.aimodel")
            weights = {n: w.value for n, w in decoded_weights(file.path, model, images[:1]).items()}
            twin = holding(model, images[:1], weights, half="float32" not in target)
            stored = run(twin, images)
            got, as_it_is = answers(file.path, images.numpy(), slow=name in SLOW)
        sparse = sum(layer.encoding.startswith("sparse") for layer in file.layers)
        rows.append(
            {
                "model": name, "variant": variant, "target": target, "size_px": size, "bytes": file.bytes,
                "formula_bytes": formula(target, file.layers), "layers": len(file.layers),
                "sparse_layers": sparse,
                "zero_fraction": zeros(file.layers), "error": error(got, wanted),
                "error_as_it_is": None if as_it_is is None else error(as_it_is, wanted[:IMAGES_AS_IT_IS]),
                "error_to_stored": error(got, stored), "prepare_s": round(seconds, 1),
            }
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def as_it_is_small() -> list[Row]:
    """The transformer's float16 file as it is, for small images."""
    import timm

    name, size = SMALL
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, img_size=size).eval()
    torch.manual_seed(1)
    return [held(name, "dense", model, torch.rand(IMAGES_AS_IT_IS, 3, size, size))]


def trained(name: str, checkpoint: Path, folder: Path) -> Row:
    """Published weights on photographs, the float16 file."""
    from PIL import Image

    from edgeprune.models.build import build as built
    from edgeprune.models.weights import load_checkpoint

    model = built(f"timm/{name}", 1000, TRAINED_PX)
    load_checkpoint(model, checkpoint)
    paths = sorted(folder.iterdir())
    chosen = paths[:: max(1, len(paths) // TRAINED_IMAGES)][:TRAINED_IMAGES]
    size = (TRAINED_PX, TRAINED_PX)
    pixels = [np.asarray(Image.open(path).convert("RGB").resize(size)) for path in chosen]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return held(name, "published weights, photographs", model.eval(), images)


def held(name: str, variant: str, model: nn.Module, images: Tensor) -> Row:
    """The float16 file of a model against torch, computing in float32 and as it is."""
    wanted = run(model, images)
    with tempfile.TemporaryDirectory() as folder:
        file = coreai.convert(model, images[:1], Path(folder) / "model.aimodel")
        start = time.perf_counter()
        as_it_is = coreai.load(file.path, activations="float16").predict(images[:IMAGES_AS_IT_IS].numpy())
        seconds = time.perf_counter() - start
        got = coreai.load(file.path).predict(images.numpy())
    row = {
        "model": name, "variant": variant, "size_px": images.shape[-1], "images": len(images),
        "bytes": file.bytes, "error": error(got, wanted),
        "error_as_it_is": error(as_it_is, wanted[:IMAGES_AS_IT_IS]), "as_it_is_s": round(seconds, 1),
        "same_class": float(np.mean(got.argmax(1) == wanted.argmax(1))),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def answers(path: Path, images: np.ndarray, slow: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """What Apple's runtime gives, computing in float32, and of the file as it is; None where that is slow."""
    if not slow:
        as_it_is = coreai.load(path, activations="float16").predict(images[:IMAGES_AS_IT_IS])
        return coreai.load(path).predict(images), as_it_is
    program = read_asset(path).program
    # The last of all that a program computes is its output.
    return np.concatenate([tensors_of(path, program, image[None])[-1] for image in images]), None


def speed() -> Row:
    """Seconds for 1,000 images of 64 px, by Apple's runtime and by torch, one thread each, interleaved."""
    name, size = SPEED_MODEL
    model = Main(build(name, VARIANTS["zeros75"])).eval()
    torch.manual_seed(1)
    images = torch.rand(SPEED_IMAGES, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        file = coreai.convert(model, images[:1], Path(folder) / "model.aimodel")
        loaded = coreai.load(file.path)
    ways: dict[str, Callable[[], Any]] = {
        "core_ai": lambda: [loaded.predict(part.numpy()) for part in images.split(EXPORTED_BATCH)],
        "torch": lambda: [run(model, part) for part in images.split(EVALUATION_BATCH)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1 + SPEED_ROUNDS):
        for way, once in ways.items():
            start, start_processor = time.perf_counter(), processor_seconds()
            once()
            if number:  # the first is to warm up
                seconds[way].append(time.perf_counter() - start)
                processor[way].append(processor_seconds() - start_processor)
    ratios = np.divide(seconds["core_ai"], seconds["torch"])
    row = {
        "model": name, "size_px": size, "images": SPEED_IMAGES, "rounds": SPEED_ROUNDS,
        "core_ai_s": float(np.median(seconds["core_ai"])), "torch_s": float(np.median(seconds["torch"])),
        "ratio": float(np.median(ratios)), "lowest_ratio": float(ratios.min()),
        "highest_ratio": float(ratios.max()),
        "processor_ratio": float(np.median(np.divide(processor["core_ai"], processor["torch"]))),
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def processor_seconds() -> float:
    """Used up by this process and those it started, whatever else the machine does."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def formula(target: str, layers: Any) -> int:
    """Bytes of the weights: one bit each, the values left, scales or tables, as the size model has them."""
    total = 0.0
    for fact in layers:
        count = float(np.prod(fact.shape))
        kept = np.array([round(count * (1 - fact.zero_fraction))], float)
        layer = WeightedLayer(fact.name, fact.kind, tuple(fact.shape))
        total += float(FORMATS["coreai"].layer_bytes(TARGETS[target], layer, kept, (1, 1))[0])
    return round(total)


def zeros(layers: Any) -> float:
    """Share of zeros over all weights."""
    counts = [float(np.prod(fact.shape)) for fact in layers]
    return float(np.average([fact.zero_fraction for fact in layers], weights=counts))


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value wanted."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def page(content: dict[str, Any]) -> str:
    """The results as text."""
    versions = ", ".join(f"{name} {number}" for name, number in content["packages"].items())
    rows = content["rows"]
    base = {(r["model"], r["variant"], r["target"]): r["bytes"] - r["formula_bytes"] for r in rows}
    sizes = {(r["model"], r["variant"], r["target"]): r["bytes"] for r in rows}
    lines = [
        "# Core AI: eight models, dense and 75 % zeros, run by Apple's own runtime on Linux",
        "",
        f"Written by `python benchmarks/coreai_models.py`; {versions}. Random weights, random images.",
        "",
        "- *error*: of Apple's runtime computing in float32 with the stored weights, to the torch model.",
        "- *as it is*: of the file untouched, every operation rounded to float16 by Linux kernels, which",
        "  say nothing of a phone's; not run for the transformer, for an image of which they",
        "  take half a minute and more.",
        "- *to stored*: of the first to torch holding the file's own numbers, where only arithmetic differs.",
        "- *formula*: the weights' bytes by count (1 bit each, values left, tables, scales), and what",
        "  else there is in the dense file, against the real file.",
        "",
        "Errors are the largest difference over the largest value. Random weights are the harshest case for",
        "int8 and tables: what they round is not made up for by training.",
        "",
        "| model | variant | target | bytes | of dense | error | as it is | to stored | formula |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        dense = sizes[row["model"], "dense", row["target"]]
        as_it_is = "–" if row["error_as_it_is"] is None else f"{row['error_as_it_is']:.1e}"
        predicted = row["formula_bytes"] + base[row["model"], "dense", row["target"]]
        lines.append(
            f"| {row['model']} {row['size_px']} px | {row['variant']} | `{row['target']}` | {row['bytes']:,} "
            f"| {row['bytes'] / dense:.2f} | {row['error']:.1e} | {as_it_is} "
            f"| {row['error_to_stored']:.1e} | {predicted / row['bytes'] - 1:+.2%} |"
        )
    lines += ["", *content.get("notes", [])]
    if "further" in content:
        lines += [
            "",
            "| model | variant | images | `coreai-ios27` bytes | error | as it is | same class |",
            "|---|---|--:|--:|--:|--:|--:|",
        ]
    lines += [
        f"| {r['model']} {r['size_px']} px | {r['variant']} | {r['images']} | {r['bytes']:,} "
        f"| {r['error']:.1e} | {r['error_as_it_is']:.1e} | {r['same_class']:.0%} |"
        for r in content.get("further", [])
    ]
    if "speed" in content:
        took = content["speed"]
        lines += [
            "",
            f"{took['images']:,} images of {took['size_px']} px through {took['model']} with 75 % zeros, one",
            f"thread: Apple's runtime {took['core_ai_s']:.2f} s, torch in batches of {EVALUATION_BATCH}",
            f"{took['torch_s']:.2f} s: {took['ratio']:.2f} times as long (median of {took['rounds']}",
            f"interleaved rounds, {took['lowest_ratio']:.2f} to {took['highest_ratio']:.2f}), and",
            f"{took['processor_ratio']:.2f} times the processor time, on a machine that others used too.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--trained", nargs=3, metavar=("MODEL", "CHECKPOINT", "IMAGES"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    content["packages"] = {name: version(name) for name in PACKAGES}
    if options.speed:
        content["speed"] = speed()
    if options.small or options.trained:
        name, *places = options.trained or ("",)
        found = as_it_is_small() if options.small else [trained(name, *map(Path, places))]
        same = {(r["model"], r["variant"]) for r in found}
        others = [r for r in content.get("further", []) if (r["model"], r["variant"]) not in same]
        content["further"] = others + found
    alone = options.page or options.speed or options.small or options.trained
    for name, size in {} if alone else MODELS.items():
        for variant in VARIANTS:
            known = [r for r in content["rows"] if (r["model"], r["variant"]) == (name, variant)]
            if (options.models and name not in options.models) or (known and not options.models):
                continue
            content["rows"] = [r for r in content["rows"] if r not in known] + measure(name, variant, size)
            write_text(RESULTS, json.dumps(content, indent=1) + "\n")
    order = list(MODELS)
    content["rows"].sort(key=lambda r: (order.index(r["model"]), list(VARIANTS).index(r["variant"])))
    write_text(RESULTS, json.dumps(content, indent=1) + "\n")
    write_text(RESULTS.with_suffix(".md"), page(content))


if __name__ == "__main__":
    main()
