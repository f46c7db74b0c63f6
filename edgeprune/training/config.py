"""How a model is trained: settings, all of whose validation errors are found at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SMALLEST_PX = 32


OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images gone through at once."""
    accumulate: int = 1
    """Batches in an optimizer step: more where a large batch does not fit into memory."""
    learning_rate: float = 3e-3
    """Peak of the schedule: some 3e-3 for AdamW, 0.1 for SGD."""
    optimizer: str = "adamw"
    """What takes the steps: adamw, or sgd with momentum (Nesterov's)."""
    momentum: float = 0.9
    """Of SGD, 0 to below 1."""
    schedule: str = "one-cycle"
    """Of the learning rate: one-cycle (Smith & Topin 2018), or cosine after a warm-up that grows evenly."""
    warmup_fraction: float = 0.3
    """Share of the steps in which the learning rate grows; some 0.05 is usual before a cosine."""
    clip_norm: float = 0.0
    """Length to which longer gradients are shortened, all weights together; 0: never."""
    weight_decay: float = 0.02
    """Batch norms and biases are left out."""
    balanced: bool = False
    """Draw images so that each class comes equally often, however many it has."""
    validation_fraction: float = 0.0
    """Share of the training images set aside to choose the best epoch, below 0.5; held-out images never are
    asked. 0: the last epoch is kept."""
    patience: int = 0
    """Epochs without a better one after which training stops; 0: none. With validation_fraction."""
    label_smoothing: float = 0.0
    """0 to below 1."""
    ema: float = 0.0
    """Decay of a running average of the weights, kept in their place: 0.99 over some 100 steps; 0: none."""
    first_px: int = 0
    """Side of the images in the first epoch: they grow to full size over two thirds of the epochs, which
    saves time (progressive learning, Tan & Le 2021); 0: full size throughout."""
    compile: bool = False
    """Whether torch.compile makes machine code of the training first: minutes for each size of image. An
    epoch then takes half the time or, on other machines, as long as before. Needs a C++ compiler."""

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
    """What training images go through; held-out images never do."""

    preset: str = "light"
    """What the fields left out are: none; light, shifted and mirrored; standard, random parts of images in
    other light, as from pretrained weights; or strong, for long trainings."""
    shift_px: int | None = None
    """Random shift in each direction, in pixels."""
    flip: bool | None = None
    """Mirror half of them left to right. None: photographs yes, the embedded digits and preset none no."""
    erase_px: int = 0
    """Side of a square somewhere in each image that is made grey (cutout, DeVries & Taylor 2017); 0: none."""
    least_area: float | None = None
    """A random part of each image, at least this share of it, is resized to the whole; 1: none."""
    colour: float | None = None
    """Share by which brightness, contrast and saturation change at most; 0: none."""
    policy: str | None = None
    """Random operations on each image: none, randaugment, trivialaugment or augmix."""
    erase_fraction: float | None = None
    """Share of the images in which a rectangle is filled with its mean (random erasing); 0: none."""
    mixup: float | None = None
    """Of two images and their labels (Zhang et al. 2018): alpha of the share's distribution; 0: none."""
    cutmix: float | None = None
    """A part of one image in another (Yun et al. 2019): alpha of the share's distribution; 0: none. With
    mixup each batch gets one of them."""

    def problems(self, image_size_px: int) -> list[str]:
        """Validation errors, one message each."""
        checks = [
            (self.preset in PRESETS, f"preset {self.preset!r}: choose from {', '.join(PRESETS)}"),
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
        """With what the preset says where nothing else is said; `flip` may stay None."""
        preset = PRESETS[self.preset]
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
