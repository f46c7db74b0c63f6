"""How a model is trained: settings, all of whose validation errors are found at once."""

from __future__ import annotations

from dataclasses import dataclass

SMALLEST_PX = 32


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained: AdamW, one-cycle learning rate."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images gone through at once."""
    accumulate: int = 1
    """Batches in an optimizer step: more where a large batch does not fit into memory."""
    learning_rate: float = 3e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.02
    """Of AdamW; batch norms and biases are left out."""
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
        """What makes no sense, one line each."""
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
        ]
        return [f"{where}.{message}" for fine, message in checks if not fine]


@dataclass(frozen=True)
class Augment:
    """What training images go through; held-out images never do."""

    shift_px: int = 4
    """Random shift in each direction, in pixels."""
    flip: bool | None = None
    """Mirror half of them left to right. None: photographs yes, the embedded digits no."""
    erase_px: int = 0
    """Side of a square somewhere in each image that is made grey (cutout, DeVries & Taylor 2017); 0: none."""

    def problems(self, image_size_px: int) -> list[str]:
        """What makes no sense, one line each."""
        return [
            f"augment.{name} {value}: 0 to below {what}, {limit}"
            for name, value, what, limit in (
                ("shift_px", self.shift_px, "half the image", image_size_px // 2),
                ("erase_px", self.erase_px, "the image", image_size_px),
            )
            if not 0 <= value < limit
        ]
