"""Convert the models that edgeprune is meant for to every Core ML target, run the files, compare with torch.

    python benchmarks/coreml_models.py               measure what has not been measured yet
    python benchmarks/coreml_models.py MODEL ...     measure these (again)
    python benchmarks/coreml_models.py --speed       time the evaluator against torch

Results go to docs/results/coreml_models.json, a model and variant at a time, so that the work can be stopped
and gone on with, and from there to docs/results/coreml_models.md (--page: only that).
Weights are random and batch norms have statistics of their own; each model is converted as it is, and with
75 % of the weights of its 1x1 convolutions and linear layers zero. For each file: its bytes, the relative
error to the float32 torch model, and the relative error to the twin: the same torch modules, run by torch,
holding the weights decoded from the file.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters import coreml
from converters.coreml.package import read_package
from converters.coreml.program import Program, Reference, read_program
from converters.facts import Converted
from converters.files import write_text
from converters.targets import TARGETS, Storage

# Image sizes in pixels, small to be quick; the transformer has one size only.
MODELS = {
    "mobilenet_v3_large": 64,
    "mobilenet_v3_small": 64,
    "mobilenet_v2": 64,
    "resnet18": 64,
    "efficientnet_b0": 64,
    "lraspp_mobilenet_v3_large": 96,
    "mobilenetv4_conv_small": 96,
    "repvit_m0_9": 96,
    "fastvit_t8": 128,
    "vit_tiny_patch16_224": 224,
}
VARIANTS = {"dense": 0.0, "zeros75": 0.75}
COREML_TARGETS = [name for name, target in TARGETS.items() if target.format == "coreml"]
IMAGES = 4
RESULTS = Path(__file__).parent.parent / "docs" / "results" / "coreml_models.json"
PACKAGES = ("torch", "torchvision", "timm", "coremltools", "numpy")
FLOAT16_ERROR, TWIN_ERROR = 2e-3, 1e-5

Row = dict[str, Any]


def build(name: str, zeros: float) -> nn.Module:
    """A model of random weights, pruned."""
    import torchvision.models as zoo

    torch.manual_seed(0)
    if name.startswith("lraspp"):
        model = zoo.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    elif hasattr(zoo, name):
        model = getattr(zoo, name)(weights=None)
    else:
        import timm

        model = timm.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if zeros and is_prunable(module):
            weight = module.weight.data
            last = weight.abs().flatten().kthvalue(max(int(zeros * weight.numel()), 1)).values
            weight[weight.abs() <= last] = 0
    return model.eval()


def is_prunable(module: nn.Module) -> bool:
    """Whether it is a 1x1 convolution or a linear layer."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def run(model: nn.Module, images: Tensor) -> np.ndarray:
    """What a torch model gives, the main output where it gives several."""
    with torch.no_grad():
        result = model(images)
    return (result["out"] if isinstance(result, dict) else result).numpy()


class FileSigmoid(nn.Module):
    """Hard sigmoid with the 1/6 that is in the file, which may be a float16."""

    def __init__(self, sixth: float) -> None:
        super().__init__()
        self.sixth = sixth

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return torch.clamp(x * self.sixth + 0.5, 0, 1)


class FileSwish(FileSigmoid):
    """Hard swish likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * super().forward(x)


def twin(model: nn.Module, converted: Converted, example: Tensor) -> nn.Module:
    """The torch model with batch norms folded where the file has them folded, and the file's numbers."""
    model = copy.deepcopy(model)
    program = read_program(read_package(converted.path))
    norms = following_norms(model, example)
    layers = [op for op in program.operations if op.type in ("conv", "linear")]
    modules = dict(model.named_modules())
    unfolded = any(op.type == "batch_norm" for op in program.operations)
    for operation, layer in zip(layers, converted.layers, strict=True):
        module = modules[layer.name]
        stored = {}
        for argument in {"weight", "bias"} & set(operation.arguments):
            reference = operation.arguments[argument][0]
            assert isinstance(reference, Reference)
            stored[argument] = torch.from_numpy(program.constants[reference.name].value.astype(np.float32))
        norm = norms.get(layer.name)
        if norm is not None and not (unfolded and nearer(module.weight, stored["weight"])):
            parent, _, child = norm.rpartition(".")
            # timm's batch norms hold the activation after them
            setattr(model.get_submodule(parent), child, getattr(modules[norm], "act", nn.Identity()))
        module.weight.data = stored["weight"]
        module.bias = nn.Parameter(stored["bias"]) if "bias" in stored else None
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if parameter.is_floating_point() and name.rpartition(".")[0] not in {
            fact.name for fact in converted.layers
        }:
            parameter.data = parameter.data.half().float()
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Hardswish, nn.Hardsigmoid)):
            parent, _, child = name.rpartition(".")
            activation = FileSwish if isinstance(module, nn.Hardswish) else FileSigmoid
            setattr(model.get_submodule(parent), child, activation(sixth(program)))
    return model


def sixth(program: Program) -> float:
    """The slope of hard sigmoids in a file."""
    operation = next(operation for operation in program.operations if operation.type == "sigmoid_hard")
    (reference,) = operation.arguments["alpha"]
    assert isinstance(reference, Reference)
    return float(program.constants[reference.name].value)


def nearer(weight: Tensor, stored: Tensor) -> bool:
    """Whether a stored weight is the layer's own, no batch norm folded in."""
    return bool((weight - stored).abs().max() <= 0.1 * weight.abs().max())


def following_norms(model: nn.Module, example: Tensor) -> dict[str, str]:
    """Name of each convolution -> name of the batch norm that takes its result."""
    makers: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept: list[Tensor] = []  # so that no two results share an address
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):

            def made(_: nn.Module, __: object, result: Tensor, name: str = name) -> None:
                kept.append(result)
                makers[id(result)] = name

            handles.append(module.register_forward_hook(made))
        elif isinstance(module, nn.BatchNorm2d):

            def taken(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                if id(given[0]) in makers:
                    pairs[makers[id(given[0])]] = name

            handles.append(module.register_forward_pre_hook(taken))
    run(model, example)
    for handle in handles:
        handle.remove()
    return pairs


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def measure(name: str, variant: str, targets: list[str]) -> dict[str, Row]:
    """Convert, run and compare a model; a row for each target."""
    model, size_px = build(name, VARIANTS[variant]), MODELS[name]
    images = torch.rand(IMAGES, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    wanted = run(model, images)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {target: Path(folder) / f"{target}.mlpackage" for target in targets}
        start = time.perf_counter()
        files = coreml.convert_all(model, images[:1], paths)
        print(f"{name} {variant}: converted in {time.perf_counter() - start:.0f} s", flush=True)
        for target, converted in files.items():
            got = coreml.load(converted.path).predict(images.numpy())
            rows[target] = {
                "bytes": converted.bytes,
                "error": relative_error(got, wanted),
                "twin_error": relative_error(got, run(twin(model, converted, images[:1]), images)),
                **stored(converted),
            }
            print(f"  {target}: {rows[target]}", flush=True)
    return rows


def stored(converted: Converted) -> Row:
    """Weights, zeros and bits of the layers of a file, and the bytes that the formula gives for them.

    The formula: a sparse weight takes 1 bit, and the bits of a value if it is not zero.
    """
    weights = zeros = bits = formula_bits = 0.0
    for layer in converted.layers:
        count = float(np.prod(layer.shape))
        weights += count
        zeros += count * layer.zero_fraction
        bits += count * layer.bits_per_weight
        sparse = layer.encoding.startswith("sparse")
        kept = count * (1 - layer.zero_fraction)
        formula_bits += count + kept * value_bits(layer.encoding) if sparse else count * layer.bits_per_weight
    return {
        "weights": int(weights),
        "zero_fraction": zeros / weights,
        "layer_bytes": round(bits / 8),
        "formula_bytes": round(formula_bits / 8),
        "encodings": sorted({layer.encoding for layer in converted.layers}),
    }


def value_bits(encoding: str) -> int:
    """Bits of a value: "sparse 4-bit table" -> 4."""
    return next(bits for text, bits in VALUE_BITS.items() if text in encoding)


VALUE_BITS = {"float16": 16, "int8": 8, "6-bit": 6, "4-bit": 4}


def problems(rows: dict[str, Row]) -> list[str]:
    """What is not as it must be, a line each."""
    found = []
    for target, row in rows.items():
        if TARGETS[target].storage is Storage.FLOAT16 and row["error"] > FLOAT16_ERROR:
            found.append(f"{target}: error {row['error']:.1e} to torch")
        if row["twin_error"] > TWIN_ERROR:
            found.append(f"{target}: error {row['twin_error']:.1e} to torch with the decoded weights")
    return found


def load_results() -> dict[str, Any]:
    """What was measured before."""
    if not RESULTS.exists():
        return {"models": {}}
    content: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return content


def save_rows(name: str, variant: str, rows: dict[str, Row]) -> None:
    """Put the rows of a model in the place of any that were there."""
    content = load_results()
    content["models"].setdefault(name, {"px": MODELS[name]})[variant] = rows
    save(content)


def save(content: dict[str, Any]) -> None:
    """Write the results down, with the versions that made them."""
    content["versions"] = {package: version(package) for package in PACKAGES}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    write_text(RESULTS, json.dumps(content, indent=1) + "\n")


SPEED_MODEL, SPEED_IMAGES, SPEED_ROUNDS, SPEED_BATCH = "mobilenet_v3_small", 1000, 7, 128


def measure_speed() -> Row:
    """Run 1,000 images of 64x64 through a package of MobileNetV3-Small and its torch model, taking turns."""
    model = build(SPEED_MODEL, 0.75)
    images = torch.rand(SPEED_IMAGES, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        package = coreml.load(coreml.convert(model, images[:1], Path(folder) / "model.mlpackage").path)
    takes: dict[str, list[float]] = {"evaluator": [], "torch": []}
    for _ in range(SPEED_ROUNDS + 1):  # the first warms up
        start = time.perf_counter()
        package.predict(images.numpy())
        middle = time.perf_counter()
        for batch in torch.split(images, SPEED_BATCH):
            run(model, batch)
        takes["evaluator"].append(middle - start)
        takes["torch"].append(time.perf_counter() - middle)
    medians = {name: float(np.median(seconds[1:])) for name, seconds in takes.items()}
    ratios = np.array(takes["evaluator"][1:]) / np.array(takes["torch"][1:])
    return {
        "model": SPEED_MODEL,
        "images": SPEED_IMAGES,
        "rounds": SPEED_ROUNDS,
        "threads": torch.get_num_threads(),
        "seconds": medians,
        "ratio_of_medians": medians["evaluator"] / medians["torch"],
        "ratio_lowest": float(ratios.min()),
        "ratio_highest": float(ratios.max()),
    }


INTRO = """\
# Core ML: ten models, every target, run without a Mac

Written by `python benchmarks/coreml_models.py`. Weights are random, batch norms have statistics of
their own. Each model is converted as it is (dense), and with 75 % of the weights of its 1x1
convolutions and linear layers zero. Every file is read back and run by our evaluator, in float32, on
{images} images, of a small size to be quick. Nothing here was run by Core ML itself. {versions}.

## Errors

Largest difference over largest value. *float16*: the targets that store float16, sparse where that is
smaller, against the float32 torch model; at most {float16_error:.0e} is asked for. *decoded weights*:
the worst of all targets, against torch running the same modules with the weights decoded from the file
(batch norms folded as in the file); at most {twin_error:.0e}."""

SIZES = """\
## What sparse weights cost: MobileNetV3-Large, 75 % zeros

Formula: 1 bit for every weight of a sparse layer, and the bits of a value for each that is not zero;
dense layers as they are. What layers take beyond it are scales and tables; the rest is biases, padding,
program and manifest."""

SPEED = """\
## Time

{images:,} images of 64x64 through a sparse package of {model}, in batches of 128, taking turns with the
torch model, {rounds} rounds, {threads} thread(s): {evaluator:.2f} s against {torch:.2f} s (medians),
{ratio_of_medians:.2f} times; {ratio_lowest:.2f} to {ratio_highest:.2f} times in single rounds."""


def page(content: dict[str, Any]) -> str:
    """The results as Markdown."""
    models = {name: content["models"][name] for name in MODELS if name in content["models"]}
    versions = ", ".join(f"{package} {number}" for package, number in content["versions"].items())
    parts = [
        INTRO.format(images=IMAGES, versions=versions, float16_error=FLOAT16_ERROR, twin_error=TWIN_ERROR),
        table(["model", "px", *ERROR_COLUMNS], [error_row(name, model) for name, model in models.items()]),
    ]
    for variant, title in TITLES.items():
        measured = {name: model[variant] for name, model in models.items() if variant in model}
        parts += [
            f"## {title}",
            "Bytes of the package:",
            table(
                ["model", *SHORT], [[name, *cells(rows, "bytes", ",d")] for name, rows in measured.items()]
            ),
            "Error to the float32 torch model, all that was lost by storing the weights so:",
            table(
                ["model", *SHORT], [[name, *cells(rows, "error", ".1e")] for name, rows in measured.items()]
            ),
        ]
    large = models.get("mobilenet_v3_large", {}).get("zeros75")
    if large:
        parts += [SIZES, size_table(large)]
    if "speed" in content:
        parts.append(SPEED.format(**content["speed"], **content["speed"]["seconds"]))
    return "\n\n".join(parts) + "\n"


TITLES = {"dense": "Dense", "zeros75": "With 75 % zeros"}
SHORT = [name.removeprefix("coreml-") for name in COREML_TARGETS]
ERROR_COLUMNS = [f"{what}, {variant}" for variant in TITLES for what in ("float16", "decoded weights")]
# Bytes at most that MobileNetV3-Large with 75 % zeros may take.
LIMITS = {"coreml-ios16": 3_750_000, "coreml-ios18-int8": 2_400_000, "coreml-ios18-4bit": 1_750_000}


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, all but the first column to the right."""
    lines = [headings, ["---", *["--:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(rows: dict[str, Row], field: str, form: str) -> list[str]:
    """A field of every target."""
    return [format(rows[target][field], form) for target in COREML_TARGETS]


def error_row(name: str, model: Row) -> list[str]:
    """The largest errors of a model, of each variant."""
    row = [name, str(model["px"])]
    for variant in TITLES:
        if variant not in model:
            row += ["not measured"] * 2
            continue
        float16 = [r["error"] for t, r in model[variant].items() if TARGETS[t].storage is Storage.FLOAT16]
        row += [f"{max(float16):.1e}", f"{max(r['twin_error'] for r in model[variant].values()):.1e}"]
    return row


def size_table(rows: dict[str, Row]) -> str:
    """Bytes against their limits and the formula."""
    lines = []
    for target, limit in LIMITS.items():
        row = rows[target]
        excess = row["layer_bytes"] / row["formula_bytes"] - 1
        rest = row["bytes"] - row["layer_bytes"]
        counts = [f"{count:,}" for count in (row["bytes"], limit, row["formula_bytes"])]
        lines.append([target, *counts, f"{excess:+.1%}", f"{rest:,}"])
    headings = ["target", "bytes", "asked for at most", "layers by the formula", "layers as stored", "rest"]
    return table(headings, lines)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--speed", action="store_true", help="only time the evaluator")
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.speed:
        speed = measure_speed()
        print(speed)
        save({**load_results(), "speed": speed})
    elif not arguments.page:
        before = {} if arguments.models else load_results()["models"]
        for variant in arguments.variants:
            for name in arguments.models or MODELS:
                if variant in before.get(name, {}):
                    continue
                rows = measure(name, variant, COREML_TARGETS)
                save_rows(name, variant, rows)
                for line in problems(rows):
                    print(f"PROBLEM {name} {variant} {line}", flush=True)
    write_text(RESULTS.with_suffix(".md"), page(load_results()))


if __name__ == "__main__":
    main()
