"""A recipe: everything that decides a run, as frozen data that refuses what makes no sense."""

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
from edgeprune.training.config import PRESETS, SMALLEST_PX, Augment, TrainConfig

# Those of edgeprune.pruning that need neither calibration images nor whole channels.
CRITERIA = ("magnitude", "squared_magnitude", "taylor", "snip", "movement", "random")
SCHEDULES = ("cubic", "stepwise", "one-shot")
HEADS = ("auto", "keep", "new")
ALLOCATIONS = (
    "uniform", "erdos-renyi", "multiplications", "global", "sensitivity", "budget", "time", "macs",
)  # fmt: skip
FINDS_SPARSITY = ("budget", "time", "macs")


@dataclass(frozen=True)
class Variant:
    """What is done to the weights of the dense model: channels removed first, then zeros grown."""

    channels: float = 0.0
    """Fraction of channels physically removed, 0 to below 1."""
    macs_left: float = 0.0
    """Or: fraction of the multiplications that stays, 0 to below 1. Channels go wherever in the network they
    matter least, on training images, for what they cost: for speed."""
    parameters_left: float = 0.0
    """Or: fraction of the weights that stays, in the same way: for bytes."""
    after: str = ""
    """An earlier variant with channels removed, whose trained weights this one starts from instead of the
    dense model's; fractions that stay are then of that one."""
    round_to: int = 8
    """Remaining widths are multiples of this."""
    sparsity: float = 0.0
    """Fraction of zeros in 1x1 convolutions and fully connected layers, 0 to below 1."""
    block: tuple[int, int] = BLOCK
    """Output by input channels that are zeroed together; 1 1 for single weights."""
    layers: dict[str, float] = field(default_factory=dict)
    """Other sparsities for some layers, by glob over their names, e.g. 'classifier.*=0.5'."""
    criterion: str = "magnitude"
    """Which weights go: the least by magnitude, squared_magnitude, taylor, snip, movement or random."""
    regrow: bool = True
    """Whether pruned weights go on learning aside and may come back while zeros grow (Lin et al. 2020)."""
    schedule: str = "cubic"
    """When they go: cubic (most of them early), stepwise (five rounds, training in between) or one-shot."""
    allocation: str = "uniform"
    """How zeros are shared out: uniform, erdos-renyi, multiplications (for speed), global (LAMP); or by
    measured sensitivity, at a sparsity (sensitivity) or until a budget, a time or a number of macs is met."""
    bytes: dict[str, int] = field(default_factory=dict)
    """For allocation budget, or beside a time: size of the file by target, e.g.
    'litert-arm64-int8=1000000'."""
    time_left: dict[str, float] = field(default_factory=dict)
    """For allocation time: share of the dense file's predicted time that stays, by runtime, e.g.
    'arm64=0.4'."""
    sparse_macs_left: float = 0.0
    """For allocation macs: share of the multiplications that stays when zeros are not multiplied."""
    ramp: float = 0.6
    """Share of the training during which zeros grow, above 0 to 1; the rest recovers."""
    distill: float = 0.7
    """Weight of the dense model's answers against the labels in the loss, 0 to 1."""
    fit: TrainConfig = field(default_factory=TrainConfig)

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
                self.allocation in ("uniform", *FINDS_SPARSITY) or self.sparsity > 0,
                f"allocation {self.allocation!r}: sparsity says how many zeros there are to share out",
            ),
            (
                self.allocation == "uniform" or not self.layers,
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
    """A torchvision model by name, e.g. mobilenet_v3_small; or timm/NAME."""
    task: str = DEFAULT_TASK
    """What the model answers: a class for an image, a class for each pixel, ...; of edgeprune.tasks."""
    data: Path | None = None
    """Image folder: train/ and val/ or test/, with one folder a class; for segmentation images/ and masks/.
    None: the embedded handwritten digits, or scenes made of them."""
    padding: str | None = None
    """Of a timm model's convolutions: same, as TensorFlow pads, for weights that come from there. None: the
    model's own."""
    merge_branches: bool = False
    """Of timm's MobileOne, RepVGG, FastViT, RepViT and the like: the branches of a block become one
    convolution after the dense training, and variants start from that. Without it they stay, as large as in
    training."""
    weights: str | None = None
    """Where training starts: default, what torchvision or timm publish; a name that they have for such
    weights; or a file of them, whoever wrote it. None: from nothing."""
    head: str = "auto"
    """The last layer of these weights: auto, replaced where it has another number of classes; keep, which
    refuses that; or new, always replaced."""
    freeze_epochs: int = 1
    """With weights: first epochs of the dense training in which only a new head learns."""
    body_learning_rate: float = 0.1
    """With weights: learning rate of all that is not a new head, as a share of the head's."""
    image_size_px: int | None = None
    """Images are resized and cropped to this square. None: as the weights were trained; 64 without any."""
    resize_px: int | None = None
    """Shorter side of an image before its middle is cropped. None: as the weights were trained; without
    weights the largest square in the middle is cropped first, then resized."""
    interpolation: str | None = None
    """How images are resized: nearest, bilinear, bicubic or lanczos. None: as the weights were trained;
    bilinear without weights."""
    mean: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]: normalisation, folded into the files. None: the weights' own; ImageNet's without."""
    std: tuple[float, float, float] | None = None
    """Of RGB in [0, 1]: normalisation, folded into the files. None: the weights' own; ImageNet's without."""
    whole_image: bool | None = None
    """Whether images are squeezed into the square, so that nothing of them is cropped. None: as suits the
    task: boxes lie at the sides of images too."""
    check_images: bool | None = None
    """Decode every image once before training, where they are not kept in memory. None: up to 20,000 images;
    of more, those that cannot be read are skipped and counted, up to 1 %."""
    save_minutes: float = 10.0
    """A training is kept after every epoch, and in the middle of one after so many minutes."""
    tensorboard: bool = False
    """Write the training's numbers after each epoch to OUTPUT/tensorboard, which TensorBoard shows. Needs the
    package: pip install 'edgeprune[tensorboard]'."""
    checkpoint: Path | None = None
    """File of the dense model's finished weights, of the same classes; it is then not trained."""
    augment: Augment = field(default_factory=Augment)
    dense: TrainConfig = field(default_factory=TrainConfig)
    variants: dict[str, Variant] = field(default_factory=dict)
    targets: tuple[str, ...] = (
        "coreml-ios16",
        "coreml-ios18-int8",
        "litert-arm64",
        "litert-arm64-int8",
        "litert-arm64-static-int8",
    )
    """Where files will run, and how weights are stored. Static int8 is dense: what ships on ARM otherwise."""
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    """Random seed. The same seed on the same machine reproduces the files byte for byte."""
    output: Path = Path("runs")
    """Folder of the run: new, empty, or an earlier run of the same recipe, which then goes on."""

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
        if task.labels is LabelKind.CLASS or self.augment.preset not in PRESETS:
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
        UserError: every unknown key, wrong type and senseless value, by its place.
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
        UserError: all values that make no sense.
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
