"""Rerun the results on real images: from an archive to `docs/results/`, a row at a time.

    python benchmarks/run_results.py --archives DATA --work WORK             # both data sets; hours on a CPU
    python benchmarks/run_results.py --archives DATA --work WORK --only cifar10 --skip-speed
    python benchmarks/run_results.py --archives DATA --work WORK --model timm/NAME   # any other classifier
    torchrun --nproc-per-node 2 benchmarks/run_results.py ... --train-only           # two cores, or two GPUs

`--archives` holds cifar10-jpeg.tar.xz and tiny-imagenet-50.tar.xz, each one folder with train/ and test/ or
val/. Whatever is finished in `--work` is kept: a killed run goes on. A GPU is used where there is one, for
training only; every file is measured on the CPU, and each row says on what its weights were trained.

Beside our files are those that one would make instead: dense float16, static int8 (litert-quantizer), 4 and
6 bit tables (coremltools), and a model pruned by coremltools, converted and compressed by coremltools.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import results_page
import torch
from coremltools_pruner import CoremltoolsPruner
from dense_model import EPOCHS, checkpoint, how_trained, train_dense
from litert_files import timed
from results_page import CHANNELS, CHANNELS_AND_BLOCKS, DENSE, FLOAT16, LEAN, Peer, Result, slug
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from converters import coreml, litert
from converters.facts import Normalization, size_bytes
from converters.files import replacing, write_text
from converters.runtimes.environments import runtime
from edgeprune import processes, pruning
from edgeprune.data import image_folder as datasets
from edgeprune.data.dataset import Data, batches
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.models import build as models
from edgeprune.models.weights import load_checkpoint
from edgeprune.pipeline import environment
from edgeprune.pipeline import steps as pipeline
from edgeprune.progress import Progress
from edgeprune.pruning import Unstructured
from edgeprune.recipe import Recipe, Variant
from edgeprune.tasks import TASKS
from edgeprune.tasks.task import score
from edgeprune.training import loop as training
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.loop import Hooks, Setting

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ARCHIVES = {"cifar10": "cifar10-jpeg.tar.xz", "tiny-imagenet-50": "tiny-imagenet-50.tar.xz"}
MOBILENET = "mobilenet_v3_large"
TRAINED_PX, TIMED_PX = 64, 224
THEIRS = "coremltools75"
THEIR_SPARSITY = 0.75  # Where Apple's advice for the Neural Engine begins.
THEIR_THRESHOLD = 1e-12
RAMP, MASK_UPDATES = 0.6, 50
L2 = "squared_magnitude"
LEARNING_RATE = 7e-4  # Twice that undoes what the dense model knows: 78 % right after two epochs, not 82.
BATCH = 100
CALIBRATION = 64
RUNTIMES = {"arm64": ("litert-arm64", "litert-arm64-int8", "litert-arm64-static-int8"),
            "browser": ("litert-web", "litert-web-int8")}  # fmt: skip
TARGET_NAMES = (
    "coreml-ios16", "coreml-ios16-6bit", "coreml-ios16-4bit", "coreml-ios18-int8", "coreml-ios18-6bit",
    "coreml-ios18-4bit", *RUNTIMES["arm64"], *RUNTIMES["browser"],
)  # fmt: skip


VARIANTS = {
    CHANNELS: Variant(macs_left=0.4),
    LEAN: Variant(after=CHANNELS, macs_left=0.66),  # For speed: more goes, in a second step.
    CHANNELS_AND_BLOCKS: Variant(macs_left=0.5, sparsity=0.75, criterion=L2),
}
LONGER = {LEAN: 2}  # Times as many epochs: what has lost most needs them.


def recipe_for(model: str, data: Path, work: Path, epochs: int, variants: Sequence[str]) -> Recipe:
    """The recipe of a model on one data set; `variants` names some of `VARIANTS`."""
    fit = TrainConfig(
        epochs=epochs,
        batch_size=128,
        learning_rate=LEARNING_RATE,
        weight_decay=0.05,
        label_smoothing=0.1,
    )
    return Recipe(
        model=model,
        data=data,
        checkpoint=checkpoint(work),
        image_size_px=TRAINED_PX,
        augment=Augment(shift_px=4),
        variants={
            name: dataclasses.replace(
                variant, fit=dataclasses.replace(fit, epochs=LONGER.get(name, 1) * epochs)
            )
            for name, variant in VARIANTS.items()
            if name in variants
        },
        targets=TARGET_NAMES,
        output=work / "run",
    )


def unpacked(archive: Path, work: Path) -> Path:
    """The image folder of an archive, unpacked once."""
    folder = work / "data" / archive.name.removesuffix(".tar.xz")
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as temporary, tarfile.open(archive) as packed:
            packed.extractall(temporary, filter="data")
    (inside,) = folder.iterdir()
    return inside


def peers(recipe: Recipe, data: Data, work: Path) -> list[Peer]:
    """Files of other tools, from the run's dense weights."""
    kept = work / "peers.json"
    if not kept.exists():
        dense = trained(recipe, data, DENSE)
        found = [float16(dense, data, work), by_coremltools(recipe, dense, data, work)]
        write_text(kept, json.dumps([dataclasses.asdict(peer) for peer in found], indent=1))
    return [Peer(**peer) for peer in json.loads(kept.read_text())]


def float16(dense: nn.Module, data: Data, work: Path) -> Peer:
    """Dense weights as float16, computed in float32."""
    path = work / f"{FLOAT16}.tflite"
    write_float16(dense, TRAINED_PX, path)
    return Peer(
        "dense, litert-quantizer float16",
        "LiteRT",
        size_bytes(path),
        top1_of(litert.load(path), data),
        FLOAT16,
    )


def write_float16(dense: nn.Module, size_px: int, path: Path) -> None:
    """By litert-quantizer, from the dense float32 file."""
    from litert_quantizer import quantizer, recipe_manager
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import TFLOperationName

    plain = path.with_name("dense.tflite")
    litert.convert(dense, example(size_px), plain, target="litert-arm64", normalization=normalization())
    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(
        ".*",
        TFLOperationName.ALL_SUPPORTED,
        num_bits=16,
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    quantized = quantizer.Quantizer(str(plain), manager.get_quantization_recipe()).quantize()
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(quantized.quantized_model))


def by_coremltools(recipe: Recipe, dense: nn.Module, data: Data, work: Path) -> Peer:
    """Pruned by coremltools as long as our variants train, converted and compressed by coremltools alone."""
    import coremltools as ct
    from coremltools.optimize import coreml as compression

    fit = next(iter(recipe.variants.values())).fit
    setting = Setting(data, TASKS["classification"], normalization(), recipe.augment, recipe.seed)
    model = copy.deepcopy(dense)
    path = work / f"{THEIRS}.pt"
    if path.exists():
        load_checkpoint(model, path)
    else:
        steps = round(RAMP * fit.epochs * training.steps_per_epoch(setting, fit))
        pruner = CoremltoolsPruner(
            model, Unstructured(), THEIR_SPARSITY, steps, max(steps // MASK_UPDATES, 1)
        )
        training.train(model, setting, fit, QUIET, sparsifier=pruner)  # type: ignore[arg-type]
        # coremltools leaves notes of its own among the weights.
        weights = {key: value for key, value in model.state_dict().items() if key in dense.state_dict()}
        with replacing(path) as temporary:
            torch.save(weights, temporary)
    scaled = Scaled(model.eval())
    program = ct.convert(
        torch.jit.trace(scaled, example()),
        inputs=[ct.TensorType(name="image", shape=example().shape)],
        minimum_deployment_target=ct.target.iOS16,
    )
    pruned = compression.prune_weights(
        program,
        compression.OptimizationConfig(
            global_config=compression.OpThresholdPrunerConfig(threshold=THEIR_THRESHOLD)
        ),
    )
    package = work / f"{THEIRS}.mlpackage"
    if not package.exists():
        pruned.save(str(package))
    loaded = coreml.load(package, native=False)
    return Peer(
        f"{THEIR_SPARSITY:.0%} zeros by coremltools", "Core ML", size_bytes(package), top1_of(loaded, data)
    )


class Scaled(nn.Module):
    """Takes plain pixels, as our files do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(normalization(), name)).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classes of pixels in [0, 255]."""
        classes: torch.Tensor = self.model((pixels / 255 - self.mean) / self.std)
        return classes


def top1_of(loaded: Any, data: Data) -> float:
    """Share of all held-out images that a file has right; it takes plain pixels."""
    parts = batches(data.held_out, BATCH)
    outputs = [torch.from_numpy(np.asarray(loaded.predict(part.float().numpy()))) for part, _ in parts]
    return score(TASKS["classification"], torch.cat(outputs), data.held_out.labels)


def speeds(recipe: Recipe, data: Data, work: Path, rounds: int) -> dict[int, dict[str, dict[str, Any]]]:
    """By image size and runtime, what `edgeprune bench` says of every variant's files."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for size_px in (TRAINED_PX, TIMED_PX):
        files = files_at(recipe, data, work, size_px)
        found[size_px] = {
            where: timed(
                [path for path, target in files.items() if target in (*targets, FLOAT16)],
                where,
                rounds,
                work / f"{where}-{size_px}.json",
            )
            for where, targets in RUNTIMES.items()
        }
    return found


def refuse_unready() -> None:
    """Say which emulator or browser is missing, before hours of training and not after them."""
    problems = []
    for name in RUNTIMES:
        try:
            runtime(name).command()
        except UserError as error:
            problems += error.problems
    if problems:
        raise SystemExit("\n".join([*problems, "or leave the timings out: --skip-speed"]))


def files_at(recipe: Recipe, data: Data, work: Path, size_px: int) -> dict[Path, str]:
    """LiteRT files of every variant's weights for images of this size, and their targets."""
    wanted = [name for names in RUNTIMES.values() for name in names]
    found = {}
    for variant in (DENSE, *recipe.variants):
        paths = {work / f"{size_px}px" / f"{variant}-{target}.tflite": target for target in wanted}
        if not all(path.exists() for path in paths):
            (work / f"{size_px}px").mkdir(exist_ok=True)
            model, shape = trained(recipe, data, variant), example(size_px)
            lowered = litert.lower(model, shape, normalization())
            evenly = torch.arange(0, len(data.train), len(data.train) // CALIBRATION)
            images = F.interpolate(data.train.batch(evenly)[0].float(), size_px)
            for path, target in paths.items():
                static = target.endswith("static-int8")
                own = {"calibration": images[:CALIBRATION].numpy()} if static else {}
                litert.convert(
                    model, shape, path, target=target, normalization=normalization(), lowered=lowered, **own
                )
        found |= paths
    half = work / f"{size_px}px" / f"{FLOAT16}.tflite"
    if not half.exists():
        write_float16(trained(recipe, data, DENSE), size_px, half)
    return found | {half: FLOAT16}


def trained(recipe: Recipe, data: Data, variant: str) -> nn.Module:
    """A variant of the run, in eval mode."""
    model = models.build(recipe.model, len(data.classes), recipe.preprocessing.image_size_px)
    pruning.resize(model, load_file(recipe.output / "variants" / f"{variant}.safetensors"))
    return model.eval()


def example(size_px: int = TRAINED_PX) -> torch.Tensor:
    """For tracing."""
    return torch.zeros(1, 3, size_px, size_px)


def normalization() -> Normalization:
    """The recipe's own."""
    default = Recipe(model=MOBILENET)
    return default.preprocessing.normalization


QUIET = Hooks(load=lambda: None, save=lambda state: None, show=lambda *_, **__: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--archives", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--only", nargs="+", choices=ARCHIVES, default=list(ARCHIVES))
    parser.add_argument("--model", default=MOBILENET, help="of torchvision, or timm/NAME")
    parser.add_argument("--dense-epochs", type=int, nargs=len(EPOCHS), default=EPOCHS, help="of each cycle")
    parser.add_argument("--epochs", type=int, default=10, help="of every variant; lean, twice as many")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=10, help="of the timings")
    parser.add_argument("--train-only", action="store_true", help="write the run folder, no page")
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not (options.skip_speed or options.train_only):
        refuse_unready()
    progress = Progress(Console(quiet=not processes.is_first()))
    for name in options.only:
        own = slug(options.model, name)
        work = options.work / own
        work.mkdir(parents=True, exist_ok=True)
        folder = processes.shared(lambda name=name: unpacked(options.archives / ARCHIVES[name], options.work))
        data = datasets.load(folder, Preprocessing(TRAINED_PX), progress)
        recipe = recipe_for(options.model, folder, work, options.epochs, options.variants)
        setting = Setting(data, TASKS["classification"], normalization(), recipe.augment, recipe.seed)
        train_dense(setting, options.model, work, options.dense_epochs)
        report = pipeline.run(recipe, progress, environment.command_line())
        if report is None or options.train_only:  # One of several processes, not the first.
            continue
        found = peers(recipe, data, work)
        times = {} if options.skip_speed else speeds(recipe, data, work, options.rounds)
        results_page.write(
            Result(options.model, name, options.dense_epochs, how_trained(work), report, found, times),
            options.output,
        )


if __name__ == "__main__":
    main()
