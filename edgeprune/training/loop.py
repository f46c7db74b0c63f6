"""The training loop: one for the dense model and for every variant of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune import processes
from edgeprune.data.dataset import Data, Subset
from edgeprune.errors import UserError
from edgeprune.pruning import Sparsifier
from edgeprune.tasks.task import Move, Task
from edgeprune.training.augment import erased, mirror, random_shift, resize, size_px
from edgeprune.training.batches import generator_of, whole_batches
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.predict import EVALUATION_BATCH, normalized
from edgeprune.training.recover import copy_parameters, recalibrate, running_average
from edgeprune.training.transfer import Transfer

Epochs = tuple[dict[str, float], ...]
FROM_NOTHING = Transfer()


@dataclass(frozen=True)
class Setting:
    """What every training of a run shares.

    Attributes:
        data: images, uint8.
        task: what the model is to answer.
        normalization: applied to pixels scaled to [0, 1].
        augment: for training images.
        seed: of order, augmentation and dropout.
    """

    data: Data
    task: Task
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


def steps_per_epoch(setting: Setting, config: TrainConfig) -> int:
    """Optimizer steps in one pass; what is left after the last whole step goes to the next pass's shuffle."""
    return max(len(setting.data.train) // (config.batch_size * config.accumulate), 1)


def train(
    model: nn.Module,
    setting: Setting,
    config: TrainConfig,
    hooks: Hooks,
    *,
    teacher: nn.Module | None = None,
    distill: float = 0.0,
    sparsifier: Sparsifier | None = None,
    transfer: Transfer = FROM_NOTHING,
) -> tuple[Epochs, float]:
    """Train `model` in place and recalibrate its batch norms.

    Everything random follows from the seed and the epoch, so that a training resumed after any epoch ends
    with the very weights of one that was never stopped.

    Under `accelerate launch` every process calls this. Each takes its part of every batch, gradients are
    averaged, so that weights and masks stay the same in all of them; batch norms see a process's own part.

    Args:
        model: in float32.
        setting: data, task and seed.
        config: how long and how fast.
        hooks: how to resume, and whom to tell.
        teacher: answers to learn from beside the labels (Hinton et al., 2015); None: labels only.
        distill: weight of the teacher's answers against the labels, 0 to 1.
        sparsifier: stepped after every optimizer step, finalized at the end.
        transfer: what of the model is new, where it starts from pretrained weights.

    Raises:
        UserError: batches too small for the number of processes, or too few images for one step.

    Returns:
        One record an epoch ("epoch", "loss", the task's metric on held-out images of the epoch's size,
        "learning_rate", "sparsity"), and the seconds spent.
    """
    session = _Session(model, setting, config, teacher, distill, sparsifier, transfer)
    session.load(hooks.load())
    for epoch in range(session.epochs_done, config.epochs):
        remark = session.run_epoch(epoch)
        hooks.save(session.state())
        hooks.show(epoch + 1, remark=remark)
    session.finish()
    return tuple(session.history), session.seconds


def cpp_compiler() -> str | None:
    """The one that torch.compile would use, if there is one."""
    own = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [own] if own else ["g++", "clang++"])), None)


class _Session:
    """One training: what it works on, and what it has done."""

    def __init__(
        self,
        model: nn.Module,
        setting: Setting,
        config: TrainConfig,
        teacher: nn.Module | None,
        distill: float,
        sparsifier: Sparsifier | None,
        transfer: Transfer,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(
            cpu=processes.on_cpu(), mixed_precision="bf16" if torch.cuda.is_available() else "no"
        )
        _refuse_batches(setting, config, self.accelerator.num_processes)
        self.model, self.setting, self.config, self.sparsifier = model, setting, config, sparsifier
        self.transfer = transfer
        groups = transfer.groups(model, config.learning_rate, config.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in groups],
            total_steps=steps_per_epoch(setting, config) * config.epochs,
        )
        _placed(model, self.accelerator.device, torch.channels_last)  # A third faster on the CPU.
        if teacher is not None:
            _placed(teacher, self.accelerator.device, torch.channels_last).eval()
        self.averaged = running_average(model, config.ema)
        self.objective = _Objective(
            setting.task,
            _compiled(model, config),
            _compiled(teacher, config) if teacher is not None else None,
            distill,
            config.label_smoothing,
        )
        self.history: list[dict[str, float]] = []
        self.seconds, self.epochs_done = 0.0, 0

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` gave; None: begin."""
        if not state:
            return
        self.history, self.seconds = list(state["history"]), state["seconds"]
        self.epochs_done = state["epoch"]
        for name, part in self._kept().items():
            part.load_state_dict(state[name])

    def state(self) -> dict[str, Any]:
        """All that a training goes on from."""
        states = {name: part.state_dict() for name, part in self._kept().items()}
        return {"epoch": self.epochs_done, "history": self.history, "seconds": self.seconds, **states}

    def run_epoch(self, epoch: int) -> str:
        """Go through the images once, score the model, and say how it went."""
        began = time.monotonic()
        learning_rate = self.schedule.get_last_lr()[0]
        self.transfer.freeze(self.model, epoch)
        loss = self._train_epoch(epoch)
        reached = self._score(epoch)
        metric = self.setting.task.metric
        self.history.append(
            {
                "epoch": float(epoch + 1),
                "loss": loss,
                metric.key: reached,
                "learning_rate": float(learning_rate),
                "sparsity": self.sparsifier.sparsity if self.sparsifier is not None else 0.0,
            }
        )
        self.seconds += time.monotonic() - began
        self.epochs_done = epoch + 1
        return f"loss {loss:.3f}, {metric.heading} {100 * reached:.1f} %"

    def finish(self) -> None:
        """Leave the model as it will be used: averaged, its zeros exact, its batch norms recalibrated."""
        self.transfer.freeze(self.model, self.transfer.freeze_epochs)
        if self.averaged is not None:
            copy_parameters(self.averaged.module, self.model)
        if self.sparsifier is not None:
            self.sparsifier.finalize()  # Averages reach back to when pruned weights were not zero yet.
        setting = self.setting
        recalibrate(
            self.model, setting.data.train, setting.normalization, setting.seed, self.config.batch_size
        )
        _placed(self.model, torch.device("cpu"), torch.contiguous_format).eval()

    def _kept(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "sparsifier": self.sparsifier,
            "averaged": self.averaged,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _train_epoch(self, epoch: int) -> float:
        """Take every step of an epoch; return the mean loss."""
        accelerator, accumulate = self.accelerator, self.config.accumulate
        rank, together = accelerator.process_index, accelerator.num_processes
        self.objective.model.train()
        losses = []
        most = accumulate * steps_per_epoch(self.setting, self.config)
        batches = _training_batches(self.setting, self.config, epoch, accelerator.device, rank)
        for number, (images, labels) in enumerate(batches, start=1):
            if number > most:
                break
            whole = len(labels) * accumulate
            images, labels = images[rank::together], labels[rank::together]
            with accelerator.autocast():
                loss = self.objective(images, labels)
            losses.append(loss.detach())
            # Each image counts alike, however a step's images are divided.
            share = len(labels) * together / whole
            accelerator.backward(loss if share == 1 else loss * share)
            if number % accumulate == 0:
                self._step()
        if together > 1:
            _average([b for b in self.model.buffers() if b.is_floating_point()], accelerator)
        return float(torch.stack(losses).mean())

    def _step(self) -> None:
        if self.accelerator.num_processes > 1:
            _average([p.grad for p in self.model.parameters() if p.grad is not None], self.accelerator)
        self.optimizer.step()
        self.schedule.step()
        if self.sparsifier is not None:
            self.sparsifier.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _score(self, epoch: int) -> float:
        """The metric on the held-out images, as large as the epoch's; each process runs its part of them."""
        setting, held_out = self.setting, self.setting.data.held_out
        side_px = size_px(epoch, self.config, held_out.size_px)
        indices = torch.arange(len(held_out))
        own = Subset(held_out, indices[self.accelerator.process_index :: self.accelerator.num_processes])
        evaluator = setting.task.evaluator(len(setting.data.classes))
        self.model.eval()
        for part in torch.split(torch.arange(len(own)), EVALUATION_BATCH):
            images, labels = _sized(*own.batch(part), side_px, setting.task)
            taken = normalized(images.to(self.accelerator.device), setting.normalization)
            evaluator.update(self.model(taken).float().cpu(), labels)
        evaluator.merge(processes.gathered(evaluator.state()))
        return evaluator.score()


@dataclass(frozen=True)
class _Objective:
    """The loss of a batch: labels, and the teacher's answers where there is a teacher."""

    task: Task
    model: nn.Module
    teacher: nn.Module | None
    distill: float
    label_smoothing: float

    def __call__(self, images: Tensor, labels: Any) -> Tensor:
        outputs = self.model(images)
        loss = self.task.loss(outputs, labels, self.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images)
        return torch.lerp(loss, self.task.distillation(outputs, taught), self.distill)


def _refuse_batches(setting: Setting, config: TrainConfig, together: int) -> None:
    images = len(setting.data.train)
    if config.batch_size < 2 * together:
        raise UserError(
            f"batch_size {config.batch_size} for {together} processes: batch norms need 2 images in each"
        )
    if config.accumulate > 1 and images < config.batch_size * config.accumulate:
        raise UserError(
            f"batch_size {config.batch_size}, accumulate {config.accumulate}: one step takes more than the "
            f"{images} training images"
        )


def _compiled(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The same model for the training to run; its weights stay those of `model`."""
    return cast(nn.Module, torch.compile(model)) if config.compile else model


def _average(tensors: Sequence[Tensor], accelerator: Any) -> None:
    """Replace each tensor by its mean over all processes, which all get the very same numbers."""
    together = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="mean")
    for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


def _training_batches(
    setting: Setting, config: TrainConfig, epoch: int, device: torch.device, rank: int
) -> Iterator[tuple[Tensor, Any]]:
    """Whole batches, the same in every process; only dropout differs by `rank`."""
    generator = generator_of(setting.seed, epoch)
    torch.manual_seed(
        int(torch.randint(2**62, (1,), generator=generator)) + rank
    )  # Dropout draws from the global one.
    train, task, augment = setting.data.train, setting.task, setting.augment
    flip = setting.data.photographs if augment.flip is None else augment.flip
    side_px = size_px(epoch, config, train.size_px)
    order = torch.randperm(len(train), generator=generator)
    for part in whole_batches(order, config.batch_size):
        images, labels = train.batch(part)
        if augment.shift_px:
            images, labels = _moved(images, labels, random_shift(images, augment.shift_px, generator), task)
        if flip:
            which = torch.rand(len(part), generator=generator) < 0.5
            images, labels = _moved(images, labels, mirror(which, train.size_px), task)
        images = erased(images, augment.erase_px, generator)
        images, labels = _sized(images, labels, side_px, task)
        yield normalized(images.to(device), setting.normalization), _to(labels, device)


def _moved(images: Tensor, labels: Any, move: Move, task: Task) -> tuple[Tensor, Any]:
    return move.images(images), task.transform_labels(labels, move)


def _sized(images: Tensor, labels: Any, side_px: int, task: Task) -> tuple[Tensor, Any]:
    if side_px == images.shape[-1]:
        return images, labels
    return _moved(images, labels, resize(images.shape[-1], side_px), task)


def _to(labels: Any, device: torch.device) -> Any:
    return labels.to(device) if isinstance(labels, Tensor) else labels


def _placed(model: nn.Module, device: torch.device, memory_format: torch.memory_format) -> nn.Module:
    return model.to(device).to(memory_format=memory_format)
