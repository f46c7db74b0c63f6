"""A recipe: everything that decides a run, as frozen data that refuses invalid values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

from converters.runtimes.latency import timed_runtimes
from converters.targets import BLOCK, TARGETS, Storage
from edgeprune import budget as budgets
from edgeprune import parsing
from edgeprune.budget import BENCHED, DROP, Budget, Limits
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.models.architecture import Architecture, backbone_of
from edgeprune.tasks import DEFAULT as DEFAULT_TASK
from edgeprune.tasks import TASKS, metrics
from edgeprune.tasks.task import Task
from edgeprune.training.config import AUTO, PRESETS, SMALLEST_PX, Augment, TrainConfig

# Those of edgeprune.pruning that need neither calibration images nor whole channels.
CRITERIA = ("magnitude", "squared_magnitude", "taylor", "snip", "movement", "random")
SCHEDULES = ("cubic", "stepwise", "one-shot")
HEADS = ("auto", "keep", "new")
UNIFORM, ERDOS_RENYI = "uniform", "erdos-renyi"
ALLOCATIONS = (
    AUTO, UNIFORM, ERDOS_RENYI, "multiplications", "global", "sensitivity", "budget", "time", "macs",
)  # fmt: skip
FINDS_SPARSITY = ("budget", "time", "macs")


@dataclass(frozen=True)
class Variant:
    """What is done to the weights of the dense model: channels removed first, then zeros grown."""

    channels: float = 0.0
    """Fraction of the channels removed from every layer that can lose some, from 0 to below 1: 0.5 removes
    half of them, 0 none."""
    macs_left: float = 0.0
    """Fraction of the multiplications (MACs) that stays, from 0 to below 1, instead of channels: 0.5 leaves
    half, 0 removes nothing. Channels are removed wherever they matter least on training images for what they
    cost, which suits a limit on latency."""
    parameters_left: float = 0.0
    """Fraction of the weights that stays, from 0 to below 1, instead of channels: as macs_left, but channels
    are weighed by their weights, which suits a limit on bytes. 0 removes nothing."""
    after: str = ""
    """Name of an earlier variant with removed channels, whose trained weights this one starts from; its
    fractions are then those of that variant. Empty: start from the dense model."""
    round_to: int = 8
    """Remaining channels of a layer are rounded to a multiple of this number, 1 or more; kernels are fastest
    at multiples of 8."""
    sparsity: float = 0.0
    """Fraction of zeros in 1x1 convolutions and fully connected layers, from 0 to below 1: 0.8 means 80 %
    zeros, 0 none."""
    block: tuple[int, int] = BLOCK
    """Shape of the blocks that become zero together, in output by input channels, each 1 or more; 1 1 prunes
    single weights."""
    layers: dict[str, float] = field(default_factory=dict)
    """Other sparsities for some layers, from 0 to below 1, by glob over layer names, e.g. 'classifier.*=0.5'.
    Empty: sparsity holds for all prunable layers."""
    criterion: str = "magnitude"
    """Pruning criterion: which weights become zero first, one of magnitude, squared_magnitude, taylor, snip,
    movement and random."""
    regrow: bool = True
    """Keep training pruned weights aside, so that they may come back while zeros grow (dynamic pruning with
    feedback, Lin et al. 2020)."""
    schedule: str = "cubic"
    """Pruning schedule: how zeros grow during fine-tuning, one of cubic (most of them early), stepwise (five
    rounds with training in between) and one-shot."""
    allocation: str = AUTO
    """How zeros are shared among layers. At a given sparsity: uniform, erdos-renyi, multiplications (for
    speed), global (LAMP scores), sensitivity (measured), or auto: erdos-renyi where classification starts
    from pretrained weights, which lose more with the same zeros in every layer, else uniform. To meet a
    limit: budget (bytes), time (time_left) or macs (sparse_macs_left), which find the sparsity themselves."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Size of the file in bytes by target, above 0, e.g. 'litert-arm64-int8=1000000'; for allocation budget,
    or in addition to time_left. Empty: no limit."""
    time_left: dict[str, float] = field(default_factory=dict)
    """Fraction of the dense file's predicted time that stays, above 0 and below 1, by runtime, e.g.
    'arm64=0.4'; for allocation time. Empty: no limit."""
    sparse_macs_left: float = 0.0
    """Fraction of the multiplications that stays when zeros are skipped, above 0 and below 1; for allocation
    macs. 0: no limit."""
    ramp: float = 0.6
    """Fraction of the fine-tuning during which zeros grow, above 0 to 1; the rest of it recovers accuracy."""
    distill: float = 0.7
    """Weight of distillation from the dense model in the loss, from 0 to 1; the labels have the rest. 0:
    labels only."""
    fit: TrainConfig = field(default_factory=TrainConfig)
    """Fine-tuning of this variant."""

    def problems(self, where: str) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (0 <= self.channels < 1, f"channels {self.channels:g}: not in [0, 1); 0.5 removes half of them"),
            (0 <= self.sparsity < 1, f"sparsity {self.sparsity:g}: not in [0, 1); 0.8 means 80 % zeros"),
            *(
                (0 <= value < 1, f"{name} {value:g}: not in [0, 1); 0.5 leaves half of them")
                for name, value in (("macs_left", self.macs_left), ("parameters_left", self.parameters_left))
            ),
            (
                sum(map(bool, (self.channels, self.macs_left, self.parameters_left))) < 2,
                "channels, macs_left and parameters_left: choose one of them",
            ),
            (
                self.shrinks or self.prunes,
                "channels, macs_left, parameters_left and sparsity are all 0: nothing would be done",
            ),
            (self.round_to >= 1, f"round_to {self.round_to}: 1 or more"),
            (len(self.block) == 2 and min(self.block) >= 1, f"block {self.block}: two sides, each 1 or more"),
            *(
                (value in known, f"{name} {value!r}: choose from {', '.join(known)}")
                for name, value, known in (
                    ("criterion", self.criterion, CRITERIA),
                    ("schedule", self.schedule, SCHEDULES),
                )
            ),
            (
                self.allocation in ALLOCATIONS,
                f"allocation {self.allocation!r}: choose from {', '.join(ALLOCATIONS)}",
            ),
            (
                bool(self.bytes) == (self.allocation == "budget") or self.allocation == "time",
                "bytes and allocation 'budget' go together: one without the other means nothing",
            ),
            (
                bool(self.time_left) == (self.allocation == "time"),
                "time_left and allocation 'time' go together: one without the other means nothing",
            ),
            (
                bool(self.sparse_macs_left) == (self.allocation == "macs"),
                "sparse_macs_left and allocation 'macs' go together: one without the other means nothing",
            ),
            (
                self.allocation not in FINDS_SPARSITY or not self.sparsity,
                f"allocation {self.allocation!r} finds the sparsity: leave it 0",
            ),
            (
                0 <= self.sparse_macs_left < 1,
                f"sparse_macs_left {self.sparse_macs_left:g}: above 0 and below 1; 0.3 leaves 30 %",
            ),
            *(
                (
                    0 < left < 1,
                    f"time_left {name!r}={left:g}: above 0 and below 1; 0.4 leaves 40 % of the time",
                )
                for name, left in self.time_left.items()
            ),
            *(
                (
                    name in timed_runtimes(),
                    f"time_left {name!r}: no times were fitted for it; choose from "
                    f"{', '.join(timed_runtimes())}",
                )
                for name in self.time_left
            ),
            (
                self.allocation in (AUTO, UNIFORM, *FINDS_SPARSITY) or self.sparsity > 0,
                f"allocation {self.allocation!r}: sparsity says how many zeros there are to share out",
            ),
            (
                self.allocation in (AUTO, UNIFORM) or not self.layers,
                "layers and an allocation that is not uniform: choose one of them",
            ),
            *(
                (
                    name in TARGETS and TARGETS[name].storage is not Storage.STATIC_INT8 and count > 0,
                    f"bytes {name!r}={count}: a target that stores zeros, and more than 0 bytes",
                )
                for name, count in self.bytes.items()
            ),
            (0 < self.ramp <= 1, f"ramp {self.ramp:g}: above 0 to 1"),
            (0 <= self.distill <= 1, f"distill {self.distill:g}: 0 to 1"),
            *(
                (0 <= sparsity < 1, f"layers {name!r}: sparsity {sparsity:g} is not in [0, 1)")
                for name, sparsity in self.layers.items()
            ),
        ]
        return [f"{where}.{message}" for fine, message in checks if not fine] + self.fit.problems(
            f"{where}.fit"
        )

    @property
    def shrinks(self) -> bool:
        """Whether channels are removed."""
        return bool(self.channels or self.macs_left or self.parameters_left)

    @property
    def prunes(self) -> bool:
        """Whether weights become zero."""
        found = self.allocation in FINDS_SPARSITY
        return found or self.sparsity > 0 or any(sparsity > 0 for sparsity in self.layers.values())


@dataclass(frozen=True)
class Recipe:
    """One model, from images to files that meet a budget."""

    model: str
    """Architecture: a torchvision model by name, e.g. mobilenet_v3_small, or timm/NAME for one of timm's."""
    task: str = DEFAULT_TASK
    """What the model predicts, one of classification, segmentation and detection."""
    data: Path | None = None
    """Folder of images with train/ and val/ (or test/), each with one folder of images a class; segmentation
    and detection have layouts of their own. None: the embedded handwritten digits, or scenes made of them."""
    padding: str | None = None
    """Padding of a timm model's convolutions: same, which is TensorFlow's, for weights that come from there.
    None: the model's own."""
    merge_branches: bool = False
    """Merge the parallel branches of timm's MobileOne, RepVGG, FastViT, RepViT and similar models into one
    convolution a block after the dense training, before variants start; and make weights plain that are
    computed whenever a model runs, as those of NFNet, NF-RegNet and BiT are. Without it the files keep the
    branches, and computed weights cannot be pruned."""
    weights: str | None = None
    """Pretrained weights to start training from: default (those that torchvision or timm publish), the name
    of other published weights, or a file of weights, whichever tool wrote it. None: random initialisation."""
    head: str = "auto"
    """What happens to the last layer of pretrained weights: auto replaces it where the number of classes
    differs, keep refuses that, new always replaces it."""
    freeze_epochs: int = 1
    """Epochs at the beginning of the dense training in which only a new head learns, from 0 to below
    dense.epochs; used with pretrained weights only."""
    body_learning_rate: float = 0.1
    """Learning rate of everything but a new head, as a fraction of the head's, above 0 to 1; used with
    pretrained weights only."""
    image_size_px: int | None = None
    """Side of the square input in pixels, 32 or more; images are resized and cropped to it. None: as the
    pretrained weights were trained; without any, 64."""
    resize_px: int | None = None
    """Shorter side of an image in pixels before its centre is cropped, image_size_px or more. None: as the
    pretrained weights were trained; without any, the largest centred square is cropped first and then
    resized."""
    interpolation: str | None = None
    """Interpolation by which images are resized, one of nearest, bilinear, bicubic and lanczos. None: as the
    pretrained weights were trained; without any, bilinear."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue for normalization, for pixels from 0 to 1; folded into the files. None:
    that of the pretrained weights; without any, ImageNet's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of red, green and blue for normalization, each above 0, for pixels from 0 to 1;
    folded into the files. None: that of the pretrained weights; without any, ImageNet's."""
    whole_image: bool | None = None
    """Resize the whole image to the square without keeping its aspect ratio, so that nothing is cropped.
    None: yes for detection, no for other tasks."""
    check_images: bool | None = None
    """Decode every image once before training where images are not kept in memory. None: yes for up to 20,000
    images; of more, unreadable ones are skipped and counted during training, up to 1 %."""
    save_minutes: float = 10.0
    """Minutes between checkpoints within an epoch, above 0; one is also written at the end of every epoch."""
    tensorboard: bool = False
    """Write the training metrics of each epoch to OUTPUT/tensorboard for TensorBoard. Needs a package: pip
    install 'edgeprune[tensorboard]'."""
    checkpoint: Path | None = None
    """File with the finished weights of the dense model, for the classes of these images; the dense training
    is then skipped. None: train it."""
    augment: Augment = field(default_factory=Augment)
    """Data augmentation of the training images."""
    dense: TrainConfig = field(default_factory=TrainConfig)
    """Training of the dense model."""
    variants: dict[str, Variant] = field(default_factory=dict)
    """Variants by name: what is made of the dense model."""
    targets: tuple[str, ...] = (
        "coreml-ios16",
        "coreml-ios18-int8",
        "litert-arm64",
        "litert-arm64-int8",
        "litert-arm64-static-int8",
    )
    """Deployment targets, one file of every variant for each: where it runs and how its weights are stored.
    Files with static int8 are always dense."""
    budget: Budget = field(default_factory=Budget)
    """Limits that the files must meet."""
    seed: int = 0
    """Random seed, a whole number of 0 or more. The same seed on the same machine reproduces the files byte
    for byte."""
    output: Path = Path("runs")
    """Folder of the run: a new or empty one, or that of an earlier run of the same recipe, which is then
    continued."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise UserError(problems)

    def problems(self) -> list[str]:
        """All validation errors, one message each."""
        problems = [
            f"unknown target {name!r}: choose from {', '.join(TARGETS)}"
            for name in self.targets
            if name not in TARGETS
        ]
        checks = [
            (
                self.image_size_px is None or self.image_size_px >= SMALLEST_PX,
                f"image_size_px {self.image_size_px}: {SMALLEST_PX} or more",
            ),
            (
                self.padding is None
                or (self.padding == "same" and backbone_of(self.model).startswith("timm/")),
                f"padding {self.padding!r}: same, of a timm model, or leave it out",
            ),
            (
                self.weights is None or self.checkpoint is None,
                "weights and checkpoint: choose one: a checkpoint is not trained, weights are a start",
            ),
            (self.head in HEADS, f"head {self.head!r}: choose from {', '.join(HEADS)}"),
            (
                0 <= self.freeze_epochs < max(self.dense.epochs, 2),
                f"freeze_epochs {self.freeze_epochs}: 0 to below the {self.dense.epochs} epochs of dense",
            ),
            (
                0 < self.body_learning_rate <= 1,
                f"body_learning_rate {self.body_learning_rate:g}: above 0 to 1, a share of the head's",
            ),
            (self.save_minutes > 0, f"save_minutes {self.save_minutes:g}: above 0"),
            (len(self.targets) > 0, "targets: name at least one"),
            (len(set(self.targets)) == len(self.targets), "targets: one is named twice"),
            ("dense" not in self.variants, "variants.dense: that name is the baseline's"),
        ]
        problems += [message for fine, message in checks if not fine]
        problems += self.dense.problems("dense")
        problems += self.preprocessing.problems()
        if self.weights is None or self.image_size_px is not None:
            size_px = self.preprocessing.image_size_px
            problems += self.augment.problems(size_px)
            problems += [
                f"{where}.first_px {fit.first_px}: at most image_size_px, {size_px}"
                for where, fit in self.fits.items()
                if fit.first_px > size_px
            ]
        problems += self._order_problems()
        for key, variant in self.variants.items():
            if not key or not key.replace("+", "").replace("_", "").isalnum():
                problems.append(
                    f"variants.{key!r}: letters, digits, '_' and '+' only; it becomes a file name"
                )
            problems += variant.problems(f"variants.{key}")
        problems += [
            f"budget.target.{name}.{limit}: a run does not measure it: put it into a file for edgeprune check"
            for name, limits in self.budget.target.items()
            for limit in BENCHED
            if getattr(limits, limit) is not None
        ]
        return problems + self.budget.problems() + self._task_problems()

    def _order_problems(self) -> list[str]:
        """Variants that start from one that cannot be started from."""
        problems, earlier = [], list[str]()
        for key, variant in self.variants.items():
            if variant.after and variant.after not in earlier:
                problems.append(
                    f"variants.{key}.after {variant.after!r}: name a variant before it that has channels "
                    f"removed and no zeros: {', '.join(earlier) or 'there is none'}"
                )
            if not variant.prunes:
                earlier.append(key)
        return problems

    def _task_problems(self) -> list[str]:
        """What another task would make sense of."""
        task = TASKS.get(self.task)
        if task is None:
            return [f"task {self.task!r}: choose from {', '.join(TASKS)}"]
        limits: dict[str, Budget | Limits] = {"budget": self.budget}
        limits |= {f"budget.target.{name}": own for name, own in self.budget.target.items()}
        foreign = [
            f"{where}.{metric}{DROP}: a {self.task} is measured by {task.metric.key}{DROP}"
            for where, limit in limits.items()
            for metric in limit.drop_points
            if metric != task.metric.key
        ]
        return foreign + self._augment_problems(task) + task.problems(self.augment)

    def _augment_problems(self, task: Task) -> list[str]:
        """What augmentation would do to images without doing it to labels that lie in them."""
        if task.labels is LabelKind.CLASS or self.augment.preset not in (AUTO, *PRESETS):
            return []
        return [
            f"augment.{name} of preset {self.augment.preset}: it changes images alone, and labels of a "
            f"{self.task} lie in them"
            for name in self.augment.alone
        ]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: what is set here, else the default.

        Of a recipe that starts from weights it is their own once `edgeprune.pipeline.starting_point` has
        filled it in, as in every run folder.
        """
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Preprocessing)}
        if self.whole_image is None and self.resize_px is None and self.task in TASKS:
            given["whole_image"] = TASKS[self.task].whole_image
        return Preprocessing(**{name: value for name, value in given.items() if value is not None})

    @property
    def architecture(self) -> Architecture:
        """The model, but for its classes."""
        return Architecture(self.model, self.preprocessing.image_size_px, self.padding)

    @property
    def fits(self) -> dict[str, TrainConfig]:
        """Every training of the recipe, by its place in it."""
        return {
            "dense": self.dense,
            **{f"variants.{key}.fit": variant.fit for key, variant in self.variants.items()},
        }


def to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, without what is None: what `from_data` and a TOML file take."""
    return dict(_plain(dataclasses.asdict(recipe) | {"budget": budgets.to_plain(recipe.budget)}))


def from_data(data: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data.

    Raises:
        UserError: every unknown key, wrong type and invalid value, by its place.
    """
    given = dict(data)
    if "budget" in given:
        given["budget"] = budgets.with_drops_gathered(given["budget"])
    try:
        return parsing.build(Recipe, given, "recipe")
    except UserError as error:
        raise budgets.named_as_in_files(error) from None


def read(path: Path) -> Recipe:
    """Read a recipe from a TOML file.

    Raises:
        UserError: no such file, not TOML, or not a recipe.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return from_data(tomllib.loads(path.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: a recipe is a TOML file, as a run saves it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML: {error}") from None


def to_toml(recipe: Recipe) -> str:
    """The recipe as text that `read` takes back."""
    import tomli_w

    return tomli_w.dumps(to_data(recipe))


def from_command_line(recipe: Recipe, description: str, arguments: Sequence[str] | None = None) -> Recipe:
    """Let the command line change any field of `recipe`; `--help` explains each.

    Raises:
        UserError: all invalid values.
        SystemExit: status 2 on arguments that do not parse, 0 after `--help`.
    """
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_pairs)
    given = _with_drops_as_pairs(sys.argv[1:] if arguments is None else arguments)
    with registry:
        return tyro.cli(Recipe, default=recipe, description=description, args=given)


def _with_drops_as_pairs(arguments: Sequence[str]) -> list[str]:
    """Let the command line say what budget.toml says: `--budget.top1-drop-points 0.5`.

    >>> _with_drops_as_pairs(["--seed", "1", "--budget.top1-drop-points", "0.5"])
    ['--seed', '1', '--budget.drop-points', 'top1=0.5']
    """
    flags = {f"--budget.{metric.key}-drop-points": metric.key for metric in metrics()}
    given: list[str] = []
    pending = ""
    for argument in arguments:
        flag, equals, value = argument.replace("_", "-").partition("=")
        if pending:
            given.append(f"{pending}={argument}")
            pending = ""
        elif flag in flags and equals:
            given += ["--budget.drop-points", f"{flags[flag]}={value}"]
        elif flag in flags:
            given.append("--budget.drop-points")
            pending = flags[flag]
        else:
            given.append(argument)
    return given


def _pairs(info: Any) -> Any:
    """Have a mapping to numbers written NAME=VALUE, any number of them."""
    from tyro.constructors import PrimitiveConstructorSpec

    if get_origin(info.type) not in (dict, Mapping) or get_args(info.type)[1] not in (int, float):
        return None
    kind = get_args(info.type)[1]

    def parse(arguments: list[str]) -> dict[str, Any]:
        pairs = (argument.rpartition("=") for argument in arguments)
        return {name: kind(value) for name, _, value in pairs}

    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={item}" for name, item in value.items()],
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
