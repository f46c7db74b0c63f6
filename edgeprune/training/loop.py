"""Training that recovers: one loop for the dense model and for every variant of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from converters.facts import Normalization
from edgeprune import processes
from edgeprune.data.dataset import Data, Split
from edgeprune.errors import UserError
from edgeprune.pruning import Sparsifier
from edgeprune.tasks.task import confusion
from edgeprune.training.augment import erased, mirror, moved, random_shift, resized, size_px
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.predict import normalized, predict
from edgeprune.training.recover import copy_parameters, distillation, running_average

RECALIBRATION_IMAGES = 4096


@dataclass(frozen=True)
class Setting:
    """What every training of a run shares.

    Attributes:
        data: images, uint8.
        normalization: applied to pixels scaled to [0, 1].
        augment: for training images.
        seed: of order, augmentation and dropout.
    """

    data: Data
    normalization: Normalization
    augment: Augment
    seed: int


@dataclass(frozen=True)
class Hooks:
    """How a training is resumed and watched.

    Attributes:
        load: gives the state saved last, or None.
        save: keeps the state, after every epoch.
        show: called with (epochs done, remark).
    """

    load: Callable[[], dict[str, Any] | None]
    save: Callable[[dict[str, Any]], None]
    show: Callable[..., None]


def steps_per_epoch(setting: Setting, fit: TrainConfig) -> int:
    """Optimizer steps in one pass; what is left after the last whole step goes to the next pass's shuffle."""
    return max(len(setting.data.train) // (fit.batch_size * fit.accumulate), 1)


def train(
    model: nn.Module,
    setting: Setting,
    fit: TrainConfig,
    hooks: Hooks,
    *,
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    sparsifier: Sparsifier | None = None,
) -> tuple[tuple[dict[str, float], ...], float]:
    """Train `model` in place and recalibrate its batch norms.

    Everything random follows from the seed and the epoch, so that a training resumed after any epoch ends
    with the very weights of one that was never stopped.

    Under `accelerate launch` every process calls this. Each takes its part of every batch, gradients are
    averaged, so that weights and masks stay the same in all of them; batch norms see a process's own part.

    Args:
        model: in float32.
        setting: data and seed.
        fit: how long and how fast.
        hooks: how to resume, and whom to tell.
        teacher: answers to learn from beside the labels (Hinton et al., 2015); None: labels only.
        distill: weight of the teacher's answers against the labels, 0 to 1.
        sparsifier: stepped after every optimizer step, finalized at the end.

    Raises:
        UserError: batches too small for the number of processes, or too few images for one step.

    Returns:
        One record an epoch ("epoch", "loss", the task's metric on held-out images of the epoch's size,
        "learning_rate", "sparsity"), and the seconds spent.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(
        cpu=processes.on_cpu(), mixed_precision="bf16" if torch.cuda.is_available() else "no"
    )
    _refuse_batches(setting, fit, accelerator.num_processes)
    steps = steps_per_epoch(setting, fit)
    optimizer = torch.optim.AdamW(_decayed(model, fit.weight_decay), lr=fit.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, fit.learning_rate, total_steps=steps * fit.epochs
    )
    _placed(model, accelerator.device, torch.channels_last)  # A third faster on the CPU.
    if teacher is not None:
        _placed(teacher, accelerator.device, torch.channels_last).eval()
    averaged = running_average(model, fit.ema)
    objective = _Objective(
        _compiled(model, fit),
        _compiled(teacher, fit) if teacher is not None else None,
        distill,
        fit.label_smoothing,
    )
    kept: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    kept |= {"sparsifier": sparsifier} if sparsifier is not None else {}
    kept |= {"averaged": averaged} if averaged is not None else {}
    state = hooks.load() or {"epoch": 0, "history": [], "seconds": 0.0}
    if state["epoch"]:
        for name, part in kept.items():
            part.load_state_dict(state[name])
    history, seconds = list(state["history"]), state["seconds"]
    task = setting.data.held_out.task

    def step() -> None:
        if accelerator.num_processes > 1:
            _average([p.grad for p in model.parameters() if p.grad is not None], accelerator)
        optimizer.step()
        schedule.step()
        if sparsifier is not None:
            sparsifier.step()
        if averaged is not None:
            averaged.update_parameters(model)
        optimizer.zero_grad(set_to_none=True)

    for epoch in range(state["epoch"], fit.epochs):
        began = time.monotonic()
        learning_rate = schedule.get_last_lr()[0]
        loss = _train_epoch(objective, setting, fit, epoch, accelerator, step)
        reached = _shared_score(model, setting, fit, epoch, accelerator)
        history.append(
            {
                "epoch": float(epoch + 1),
                "loss": loss,
                task.metric: reached,
                "learning_rate": float(learning_rate),
                "sparsity": sparsifier.sparsity if sparsifier is not None else 0.0,
            }
        )
        seconds += time.monotonic() - began
        states = {name: part.state_dict() for name, part in kept.items()}
        hooks.save({"epoch": epoch + 1, "history": history, "seconds": seconds, **states})
        hooks.show(epoch + 1, remark=f"loss {loss:.3f}, {task.heading} {100 * reached:.1f} %")

    if averaged is not None:
        copy_parameters(averaged.module, model)
    if sparsifier is not None:
        sparsifier.finalize()  # Also because averages reach back to when pruned weights were not zero yet.
    recalibrate(model, setting, fit.batch_size)
    _placed(model, torch.device("cpu"), torch.contiguous_format).eval()
    return tuple(history), seconds


def cpp_compiler() -> str | None:
    """The one that torch.compile would use, if there is one."""
    own = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [own] if own else ["g++", "clang++"])), None)


def recalibrate(model: nn.Module, setting: Setting, batch_size: int) -> None:
    """Measure batch-norm statistics anew on training images as they are, in place."""
    from torch.optim.swa_utils import update_bn

    order = torch.randperm(len(setting.data.train), generator=_generator(setting.seed, -1))[
        :RECALIBRATION_IMAGES
    ]
    device = next(model.parameters()).device
    batches = (  # One at a time: all of them would fill gigabytes.
        normalized(setting.data.train.images[part].to(device), setting.normalization)
        for part in _parts(order, batch_size)
    )
    with torch.no_grad():
        update_bn(batches, model)


def _shared_score(
    model: nn.Module, setting: Setting, fit: TrainConfig, epoch: int, accelerator: Any
) -> float:
    """The metric on the held-out images, as large as the epoch's; each process runs its part of them."""
    held_out, classes = setting.data.held_out, len(setting.data.classes)
    part = slice(accelerator.process_index, None, accelerator.num_processes)
    side_px = size_px(epoch, fit, held_out.images.shape[-1])
    own = Split(*resized(held_out.images[part], held_out.labels[part], side_px))
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    if len(own):
        counts = confusion(predict(model, own, setting.normalization).argmax(1), own.labels, classes)
    together: Tensor = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
    return held_out.task.of(together.cpu())


@dataclass(frozen=True)
class _Objective:
    """The loss of a batch: labels, and the teacher's answers where there is a teacher."""

    model: nn.Module
    teacher: nn.Module | None
    distill: float
    label_smoothing: float

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        outputs = self.model(images)
        loss = F.cross_entropy(outputs, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        return torch.lerp(loss, distillation(outputs, self.teacher, images), self.distill)


def _train_epoch(
    objective: _Objective,
    setting: Setting,
    fit: TrainConfig,
    epoch: int,
    accelerator: Any,
    step: Callable[[], None],
) -> float:
    """Go through the images once, calling `step` whenever gradients are complete; return the mean loss."""
    rank, together = accelerator.process_index, accelerator.num_processes
    objective.model.train()
    losses = []
    batches = _training_batches(setting, fit, epoch, accelerator.device, rank)
    for number, (images, labels) in enumerate(batches, start=1):
        if number > fit.accumulate * steps_per_epoch(setting, fit):
            break
        whole = len(labels) * fit.accumulate
        images, labels = images[rank::together], labels[rank::together]
        with accelerator.autocast():
            loss = objective(images, labels)
        losses.append(loss.detach())
        # Each image counts alike, however a step's images are divided.
        share = len(labels) * together / whole
        accelerator.backward(loss if share == 1 else loss * share)
        if number % fit.accumulate == 0:
            step()
    if together > 1:
        _average([b for b in objective.model.buffers() if b.is_floating_point()], accelerator)
    return float(torch.stack(losses).mean())


def _refuse_batches(setting: Setting, fit: TrainConfig, together: int) -> None:
    images = len(setting.data.train)
    if fit.batch_size < 2 * together:
        raise UserError(
            f"batch_size {fit.batch_size} for {together} processes: batch norms need 2 images in each"
        )
    if fit.accumulate > 1 and images < fit.batch_size * fit.accumulate:
        raise UserError(
            f"batch_size {fit.batch_size}, accumulate {fit.accumulate}: one step takes more than the "
            f"{images} training images"
        )


def _compiled(model: nn.Module, fit: TrainConfig) -> nn.Module:
    """The same model for the training to run; its weights stay those of `model`."""
    if not fit.compile:
        return model
    return cast(nn.Module, torch.compile(model))


def _average(tensors: Sequence[Tensor], accelerator: Any) -> None:
    """Replace each tensor by its mean over all processes, which all get the very same numbers."""
    together = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="mean")
    for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay weights, but not biases and batch norms."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _training_batches(
    setting: Setting, fit: TrainConfig, epoch: int, device: torch.device, rank: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches, the same in every process; only dropout differs by `rank`."""
    generator = _generator(setting.seed, epoch)
    torch.manual_seed(
        int(torch.randint(2**62, (1,), generator=generator)) + rank
    )  # Dropout draws from the global one.
    train = setting.data.train
    flip = setting.data.photographs if setting.augment.flip is None else setting.augment.flip
    side_px = size_px(epoch, fit, train.images.shape[-1])
    order = torch.randperm(len(train), generator=generator)
    for part in _parts(order, fit.batch_size):
        images, labels = train.images[part], train.labels[part].long()
        images, labels = moved(images, labels, random_shift(images, setting.augment.shift_px, generator))
        if flip:
            mirrored = (torch.rand(len(part), generator=generator) < 0.5)[:, None, None, None]
            images, labels = moved(images, labels, partial(mirror, which=mirrored))
        images = erased(images, setting.augment.erase_px, generator)
        images, labels = resized(images, labels, side_px)
        yield normalized(images.to(device), setting.normalization), labels.to(device)


def _placed(model: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    return model.to(device).to(memory_format=memory_format)


def _parts(order: Tensor, size: int) -> list[Tensor]:
    """Whole batches only, unless there is less than one: a batch norm cannot train on a single image."""
    whole = len(order) // size * size
    return list(torch.split(order[: whole or len(order)], size))


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 20) + epoch + 1)
