"""How a model is trained: settings, all of whose validation errors are found at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SMALLEST_PX = 32


OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine")
AUTO = "auto"  # The augmentation preset that follows from what a training starts from.


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 30
    """Number of passes over the training images, 1 or more."""
    batch_size: int = 64
    """Images in a batch, 2 or more (batch normalization needs two)."""
    accumulate: int = 1
    """Batches whose gradients are accumulated for one optimizer step, 1 or more; raise it where a large batch
    does not fit into memory."""
    learning_rate: float = 3e-3
    """Peak learning rate, above 0 and below 10; typical are 3e-3 for adamw and 0.1 for sgd."""
    optimizer: str = "adamw"
    """Optimizer: adamw, or sgd with Nesterov momentum."""
    momentum: float = 0.9
    """Momentum of sgd, from 0 to below 1; adamw has no use for it."""
    schedule: str = "one-cycle"
    """Learning rate schedule: one-cycle (Smith & Topin 2018), or cosine after a linear warm-up."""
    warmup_fraction: float = 0.3
    """Fraction of the steps in which the learning rate rises, from 0 to below 1 and above 0 for one-cycle;
    0.05 is usual for cosine."""
    clip_norm: float = 0.0
    """Largest norm of the gradient over all weights, 0 or more; longer ones are scaled down to it. 0: no
    clipping."""
    weight_decay: float = 0.02
    """Weight decay, from 0 to below 1; batch norms and biases have none."""
    balanced: bool = False
    """Sample training images so that every class appears equally often, however many images it has."""
    validation_fraction: float = 0.0
    """Fraction of the training images set aside as a validation set that chooses the best epoch, from 0 to
    below 0.5; the images that files are measured on are never used for this. 0: keep the last epoch."""
    patience: int = 0
    """Epochs without improvement on that validation set after which training stops early, 0 or more; needs a
    validation_fraction. 0: never."""
    label_smoothing: float = 0.0
    """Label smoothing in the loss, from 0 to below 1. 0: none."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which replaces them at the end, from 0 to below
    1; 0.99 averages over some 100 steps. 0: no average."""
    first_px: int = 0
    """Side of the images in the first epoch in pixels, 32 up to image_size_px; they grow to full size over
    two thirds of the epochs (progressive learning, Tan & Le 2021), which saves time. 0: full size
    throughout."""
    compile: bool = False
    """Compile the training step with torch.compile, which takes minutes for each image size and needs a C++
    compiler. An epoch then takes half the time or, on other machines, as long as before."""

    def problems(self, where: str) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (self.epochs >= 1, f"epochs {self.epochs}: 1 or more"),
            (self.batch_size >= 2, f"batch_size {self.batch_size}: 2 or more, batch norms need them"),
            (self.accumulate >= 1, f"accumulate {self.accumulate}: 1 or more"),
            (0 <= self.ema < 1, f"ema {self.ema:g}: 0 to below 1"),
            (
                self.first_px == 0 or self.first_px >= SMALLEST_PX,
                f"first_px {self.first_px}: 0, or {SMALLEST_PX} or more",
            ),
            (0 < self.learning_rate < 10, f"learning_rate {self.learning_rate:g}: above 0, below 10"),
            (0 <= self.weight_decay < 1, f"weight_decay {self.weight_decay:g}: 0 to below 1"),
            (0 <= self.label_smoothing < 1, f"label_smoothing {self.label_smoothing:g}: 0 to below 1"),
            *(
                (value in known, f"{name} {value!r}: choose from {', '.join(known)}")
                for name, value, known in (
                    ("optimizer", self.optimizer, OPTIMIZERS),
                    ("schedule", self.schedule, SCHEDULES),
                )
            ),
            (0 <= self.momentum < 1, f"momentum {self.momentum:g}: 0 to below 1"),
            (
                0 <= self.warmup_fraction < 1 and (self.warmup_fraction > 0 or self.schedule == "cosine"),
                f"warmup_fraction {self.warmup_fraction:g}: 0 to below 1, and above 0 for one-cycle",
            ),
            (self.clip_norm >= 0, f"clip_norm {self.clip_norm:g}: 0 or more"),
            (
                0 <= self.validation_fraction < 0.5,
                f"validation_fraction {self.validation_fraction:g}: 0 to below 0.5",
            ),
            (
                self.patience == 0 or (self.patience > 0 and self.validation_fraction > 0),
                f"patience {self.patience}: 0, or epochs, with a validation_fraction to judge them by",
            ),
        ]
        return [f"{where}.{message}" for fine, message in checks if not fine]


@dataclass(frozen=True)
class Augment:
    """Data augmentation of the training images; validation and test images are never augmented."""

    preset: str = AUTO
    """Preset for the fields below that are not set: none; light (shift and flip); standard (random crop, flip
    and colour, as usual for pretrained weights); or strong (for long trainings). auto: standard for
    classification that starts from pretrained weights, otherwise light."""
    shift_px: int | None = None
    """Largest random shift in each direction in pixels, from 0 to below half of image_size_px. None: the
    preset's."""
    flip: bool | None = None
    """Flip half of the images left to right. None: the preset's; light, standard and strong flip photographs
    but not the embedded digits."""
    erase_px: int = 0
    """Side in pixels of a square at a random place that is painted grey (cutout, DeVries & Taylor 2017), from
    0 to below image_size_px. 0: none."""
    least_area: float | None = None
    """Smallest fraction of the image that a random crop keeps before it is resized, above 0 to 1; 1: no crop.
    None: the preset's."""
    colour: float | None = None
    """Largest relative change of brightness, contrast and saturation, from 0 to 1; 0: no change. None: the
    preset's."""
    policy: str | None = None
    """Policy of random operations on each image, one of none, randaugment, trivialaugment and augmix. None:
    the preset's."""
    erase_fraction: float | None = None
    """Fraction of the images in which a random rectangle is filled with its mean (random erasing), from 0 to
    1; 0: none. None: the preset's."""
    mixup: float | None = None
    """Alpha of mixup (two images and their labels are blended, Zhang et al. 2018), from 0 to 10; 0: none.
    None: the preset's."""
    cutmix: float | None = None
    """Alpha of CutMix (a part of one image is pasted into another, Yun et al. 2019), from 0 to 10; 0: none.
    With mixup, each batch gets one of the two. None: the preset's."""

    def problems(self, image_size_px: int) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (
                self.preset in (AUTO, *PRESETS),
                f"preset {self.preset!r}: choose from {', '.join((AUTO, *PRESETS))}",
            ),
            (
                self.policy is None or self.policy in POLICIES,
                f"policy {self.policy!r}: choose from {', '.join(POLICIES)}",
            ),
            (
                self.least_area is None or 0 < self.least_area <= 1,
                f"least_area {self.least_area}: above 0 to 1",
            ),
            *(
                (value is None or 0 <= value <= most, f"{name} {value}: 0 to {most}")
                for name, value, most in (
                    ("colour", self.colour, 1),
                    ("erase_fraction", self.erase_fraction, 1),
                    ("mixup", self.mixup, 10),
                    ("cutmix", self.cutmix, 10),
                )
            ),
            *(
                (value is None or 0 <= value < limit, f"{name} {value}: 0 to below {what}, {limit}")
                for name, value, what, limit in (
                    ("shift_px", self.shift_px, "half the image", image_size_px // 2),
                    ("erase_px", self.erase_px, "the image", image_size_px),
                )
            ),
        ]
        return [f"augment.{message}" for fine, message in checks if not fine]

    def filled(self) -> Augment:
        """With what the preset says where nothing else is said; `flip` may stay None.

        The preset auto is light here: what a training starts from is not known.
        """
        preset = PRESETS["light" if self.preset == AUTO else self.preset]
        given = {name: getattr(self, name) for name in preset if getattr(self, name) is not None}
        return replace(self, **{**preset, **given})

    @property
    def alone(self) -> tuple[str, ...]:
        """Fields that change images without their labels, or mix both: for one class an image alone."""
        filled, none = self.filled(), PRESETS["none"]
        return tuple(name for name in ONE_CLASS if getattr(filled, name) != none[name])


POLICIES = ("none", "randaugment", "trivialaugment", "augmix")
ONE_CLASS = ("least_area", "policy", "erase_fraction", "mixup", "cutmix")
_NONE: dict[str, Any] = {
    "shift_px": 0,
    "flip": False,
    "least_area": 1.0,
    "colour": 0.0,
    "policy": "none",
    "erase_fraction": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    "none": _NONE,
    "light": {**_NONE, "shift_px": 4, "flip": None},
    "standard": {**_NONE, "flip": None, "least_area": 0.35, "colour": 0.2},
    "strong": {
        **_NONE, "flip": None, "least_area": 0.2, "policy": "trivialaugment", "erase_fraction": 0.1,
        "mixup": 0.2, "cutmix": 1.0,
    },
}  # fmt: skip
