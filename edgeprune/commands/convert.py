"""`edgeprune convert`: a torch model that someone else trained and pruned, as files for the targets."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters import arguments
from converters.facts import IMAGENET, InputSpec, Normalization
from converters.format import FORMATS, target_problems
from converters.targets import TARGETS, Storage
from edgeprune.commands.options import add_json, add_normalization, add_padding, normalization_given
from edgeprune.commands.output import DONE, deliver, json_text, progress, refuse_unwritable
from edgeprune.commands.verify import random_images
from edgeprune.errors import ToolError, UserError

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from edgeprune.progress import Progress

SCHEMA = 1
IMAGES = 4  # Run through every file and the torch model.
DEFAULT_TARGETS = ("coreml-ios16", "litert-arm64")
EXAMPLES = """\
  edgeprune convert mine.safetensors --model mobilenet_v3_small --target litert-arm64 --target coreml-ios16
  edgeprune convert mine.pt --model timm/mobilenetv3_small_100 --image-size-px 160 --labels names.txt
  edgeprune convert my_package.models:pruned --output files

A checkpoint is a state dict: of a dense model, with zeros in its weights, with
fewer channels, or with the masks of torch.nn.utils.prune. Anything else comes
from your own code: PACKAGE.MODULE:NAME, a torch module or a function that gives
one. Zeros are stored sparse where that is smaller, each file is run and compared
with the torch model, and the linter says whether sparse kernels will run.
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument(
        "source", metavar="CHECKPOINT|MODEL", help=".safetensors, .pt or .pth; or PACKAGE.MODULE:NAME"
    )
    command.add_argument(
        "--model", metavar="NAME", help="architecture of a checkpoint: torchvision's, timm/NAME"
    )
    command.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="may be repeated; coreml-ios16 and litert-arm64 if not given; edgeprune doctor lists all",
    )
    command.add_argument(
        "--output", type=Path, default=Path(), metavar="FOLDER", help="this folder if not given"
    )
    command.add_argument(
        "--image-size-px", type=int, default=224, metavar="N", help="%(default)s if not given"
    )
    add_padding(command)
    add_normalization(command)
    command.add_argument(
        "--merge-branches",
        action="store_true",
        help="merge what training alone needs: branches (MobileOne, RepVGG, RepViT, FastViT), computed "
        "weights (NFNet, BiT)",
    )
    command.add_argument("--labels", type=Path, metavar="FILE", help="a class name a line, in output order")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Convert and show."""
    refuse_unwritable(options.json)
    files = convert(
        ConvertOptions(
            options.source,
            options.output,
            model=options.model,
            targets=tuple(options.target or DEFAULT_TARGETS),
            padding=options.padding,
            image_size_px=options.image_size_px,
            labels=options.labels,
            merge_branches=options.merge_branches,
            **normalization_given(options),
        ),
        progress(),
    )
    deliver(json_text(to_plain(files)), options.json, lambda console: print_result(files, console))
    return DONE


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and to what.

    Attributes:
        source: checkpoint (.safetensors, .pt, .pth), or PACKAGE.MODULE:NAME of a module or of a function that
            gives one.
        output: folder for the files, made if it is not there.
        model: architecture of a checkpoint, by name.
        targets: names in `TARGETS`.
        padding: of a checkpoint's convolutions: "same", TensorFlow's, for a timm model; None: its own.
        image_size_px: side of the square images.
        mean: of RGB in [0, 1]; folded into the files.
        std: of RGB in [0, 1]; folded into the files.
        labels: text file with a class name a line, in output order; None: classes stay without names.
        merge_branches: of a model that has branches or computed weights, see `edgeprune.models.branches`.
    """

    source: str
    output: Path
    model: str | None = None
    targets: Sequence[str] = DEFAULT_TARGETS
    padding: str | None = None
    image_size_px: int = 224
    mean: tuple[float, ...] = IMAGENET.mean
    std: tuple[float, ...] = IMAGENET.std
    labels: Path | None = None
    merge_branches: bool = False

    def problems(self) -> list[str]:
        """Validation errors, one message each."""
        unknown = [name for name in self.targets if name not in TARGETS]
        static = [
            name for name in self.targets if name in TARGETS and TARGETS[name].storage is Storage.STATIC_INT8
        ]
        checks = [
            (not unknown, f"unknown target {', '.join(unknown)}: choose from {', '.join(TARGETS)}"),
            (
                not static,
                f"{', '.join(static)}: static int8 takes its ranges from images of yours: use a recipe with "
                "--checkpoint, or litert.convert(..., calibration=images)",
            ),
            (len(set(self.targets)) == len(self.targets) > 0, "targets: one or more, each once"),
            (self.image_size_px >= 1, f"--image-size-px {self.image_size_px}: 1 or more"),
            (all(value > 0 for value in self.std), f"--std {self.std}: each above 0"),
            (
                self.padding is None or (self.model or "").startswith("timm/"),
                "--padding is for a checkpoint of a timm model: --model timm/NAME",
            ),
            (
                self._is_checkpoint or self.model is None,
                "--model is for a checkpoint; PACKAGE.MODULE:NAME brings its own",
            ),
            (
                not self._is_checkpoint or self.model is not None,
                f"{self.source}: a checkpoint is weights alone: name its architecture with --model, e.g. "
                "--model mobilenet_v3_small or --model timm/mobilenetv3_small_100",
            ),
            (
                not self.output.exists() or self.output.is_dir(),
                f"--output {self.output} is a file: name a folder",
            ),
        ]
        known = [TARGETS[name] for name in self.targets if name in TARGETS]
        return [message for fine, message in checks if not fine] + target_problems(known)

    @property
    def _is_checkpoint(self) -> bool:
        return Path(self.source).suffix in (".safetensors", ".pt", ".pth") or ":" not in self.source

    @property
    def stem(self) -> str:
        """What the files' names begin with."""
        return Path(self.source).stem if self._is_checkpoint else self.source.rpartition(":")[2]


@dataclass(frozen=True)
class ConvertedFile:
    """One file, read back and run.

    Attributes:
        target: its name in `TARGETS`.
        path: of the file.
        bytes: on disk.
        zero_fraction: of all weights of convolutions and linear layers, counted in the decoded file.
        bits_per_weight: stored bits over the number of those weights.
        sparse_runtime: whether the runtime will use sparse kernels; None when unknown.
        sparse_runtime_reason: why not, or why it is unknown.
        max_relative_error: largest |file - torch| output over the largest |torch| output, on `images` images.
        top1_agreement: share of those on which both name the same class.
        images: random ones.
    """

    target: str
    path: Path
    bytes: int
    zero_fraction: float
    bits_per_weight: float
    sparse_runtime: bool | None
    sparse_runtime_reason: str | None
    max_relative_error: float
    top1_agreement: float
    images: int


def convert(options: ConvertOptions, progress: Progress) -> tuple[ConvertedFile, ...]:
    """Load the model, write a file for each target, run each file and compare.

    Raises:
        UserError: every mistake in what was asked for; a model that is no image classifier in eval mode.
        ToolError: a converter failed, or a file does not compute what the model does.
    """
    import torch

    from edgeprune.evaluation.exported_file import mean_over_weights, sparse_runtime
    from edgeprune.models import branches

    problems = options.problems()
    if problems:
        raise UserError(problems)
    model = load(options)
    if options.merge_branches:
        model = branches.merged(model)
    elif options.model is not None and (what := branches.mergeable(model)):
        progress.say(f"the model has {what}: --merge-branches merges them")
    labels = _labels(options.labels)
    example = torch.zeros(1, 3, options.image_size_px, options.image_size_px)
    normalization = Normalization(*(_triple(values) for values in (options.mean, options.std)))
    _refuse_misfits(model, example, labels)
    metadata = _metadata(options)

    @functools.cache  # The slow half of a conversion, the same for every target of a format.
    def prepared(format: str) -> Any:
        return FORMATS[format].prepare(model, example, normalization)

    options.output.mkdir(parents=True, exist_ok=True)
    made = []
    for target in (TARGETS[name] for name in options.targets):
        format = FORMATS[target.format]
        path = options.output / f"{options.stem}-{target.name}{format.suffix}"
        with progress.track(f"writing {path.name}", 1):
            converted = format.write(prepared(target.format), target, path, labels=labels, metadata=metadata)
        sparse, reason = sparse_runtime(converted, target)
        error, agreement = _compared(path, model, normalization, options.image_size_px)
        made.append(
            ConvertedFile(
                target=target.name,
                path=path,
                bytes=converted.bytes,
                zero_fraction=mean_over_weights(converted.layers, "zero_fraction"),
                bits_per_weight=mean_over_weights(converted.layers, "bits_per_weight"),
                sparse_runtime=sparse,
                sparse_runtime_reason=reason,
                max_relative_error=error,
                top1_agreement=agreement,
                images=IMAGES,
            )
        )
    return tuple(made)


def load(options: ConvertOptions) -> nn.Module:
    """The torch model that `options` names, in eval mode.

    Raises:
        UserError: it is not there, cannot be read safely, or is no torch module.
    """
    from torch import nn

    from edgeprune.models import weights

    if options.model is not None:
        return weights.from_checkpoint(
            options.model, Path(options.source), options.image_size_px, options.padding
        )
    module_name, _, name = options.source.rpartition(":")
    sys.path.insert(0, str(Path.cwd()))  # As `python -m` finds modules.
    try:
        found = getattr(importlib.import_module(module_name), name)
        model = found() if callable(found) and not isinstance(found, nn.Module) else found
    except Exception as error:  # Whatever the user's own code raises.
        raise UserError(f"{options.source}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{options.source} is a {type(model).__name__}: expected a torch.nn.Module, or a function "
            "that gives one"
        )
    return model.eval()


def _metadata(options: ConvertOptions) -> dict[str, str]:
    """What the files say of outputs whose meaning is the architecture's."""
    from edgeprune.models.architecture import Architecture
    from edgeprune.tasks import TASKS

    if options.model is None:
        return {}
    architecture = Architecture(options.model, options.image_size_px)
    task = next(task for task in TASKS.values() if task.takes_model(options.model))
    return task.bound(architecture).metadata()


def to_plain(files: Sequence[ConvertedFile]) -> dict[str, Any]:
    """Everything, as plain data for JSON."""
    return {
        "schema": SCHEMA,
        "files": [dataclasses.asdict(file) | {"path": str(file.path)} for file in files],
    }


def print_result(files: Sequence[ConvertedFile], console: Console) -> None:
    """Print the files, the linter's word on each, and what to do next."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("file", "bytes", "zeros", "bits/weight", "sparse kernels", "error against torch"):
        table.add_column(heading, justify="left" if heading in ("file", "sparse kernels") else "right")
    words = {True: "yes", False: "no", None: "unknown"}
    for file in files:
        table.add_row(
            str(file.path),
            f"{file.bytes:,}",
            f"{100 * file.zero_fraction:.1f} %",
            f"{file.bits_per_weight:.2f}",
            words[file.sparse_runtime],
            f"{file.max_relative_error:.1e}",
        )
    console.print(table)
    for file in files:
        if file.sparse_runtime_reason:
            console.print(f"{file.target}: {file.sparse_runtime_reason}", highlight=False, soft_wrap=True)
    console.print(
        f"Errors are the largest over {IMAGES} random images; no images were given to measure accuracy.\n"
        f"Next: edgeprune inspect {files[0].path}",
        highlight=False,
        soft_wrap=True,
    )


def _compared(
    path: Path, model: nn.Module, normalization: Normalization, size_px: int
) -> tuple[float, float]:
    """Largest relative error and agreement with the model; what cannot be rounding is refused."""
    from converters import verify

    images = random_images(InputSpec((3, size_px, size_px), (0.0, 255.0), None), IMAGES)
    result = verify.verify_here(path, images, model, normalization)
    if not result.agrees or result.model_error is None or result.model_agreement is None:
        reasons = [*result.problems, *(check.reason for check in result.checks if check.reason)]
        raise ToolError(f"{path} does not compute what the torch model does: {'; '.join(reasons)}")
    return result.model_error, result.model_agreement


def _refuse_misfits(model: nn.Module, example: torch.Tensor, labels: Sequence[str] | None) -> None:
    import torch

    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:  # Whatever the user's own code raises.
        raise UserError(
            f"the model does not take {tuple(example.shape)} images: {error}; set --image-size-px"
        ) from error
    if not isinstance(output, torch.Tensor) or output.ndim not in (2, 3, 4):
        raise UserError(
            "the model must give (n, classes), or maps (n, classes, h, w), or a detector's rows "
            "(n, boxes, 4 + classes), a single tensor: wrap it in a module that does"
        )
    if labels is not None and output.ndim != 3 and len(labels) != output.shape[1]:
        raise UserError(f"--labels has {len(labels)} names, the model gives {output.shape[1]} classes")
    if problems := arguments.label_problems(labels, output.shape):
        raise UserError(problems)


def _labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows programs write a mark at the start.
    except (OSError, ValueError) as error:
        raise UserError(
            f"--labels {path}: {error}: expected a text file with one class name a line"
        ) from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        raise UserError(
            f"--labels {path}: line {names.index('') + 1} is empty: expected one class name a line, in the "
            "order of the outputs"
        )
    return names


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue
