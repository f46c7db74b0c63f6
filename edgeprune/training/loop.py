"""The training loop: one for the dense model and for every variant of it."""

from __future__ import annotations

import copy
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from converters.facts import Normalization
from edgeprune import processes
from edgeprune.allocator import giving_back, keeping_freed_memory
from edgeprune.data.dataset import Data, Split, Subset
from edgeprune.errors import UserError
from edgeprune.pruning import Sparsifier
from edgeprune.tasks.task import Move, Task
from edgeprune.training.augment import Own, erased, mirror, random_shift, resize, size_px
from edgeprune.training.batches import generator_of, whole_batches
from edgeprune.training.config import Augment, TrainConfig
from edgeprune.training.optimizer import optimizer_of, schedule_of
from edgeprune.training.predict import EVALUATION_BATCH, normalized
from edgeprune.training.recover import copy_parameters, recalibrate, running_average
from edgeprune.training.transfer import Transfer
from edgeprune.training.transforms import change_of, mixed

NOTEWORTHY_FRACTION = 0.05  # Of the time, spent waiting for images.
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
        save: keeps the state, after every epoch and in the middle of one.
        show: called with (epochs done, remark).
        save_seconds: after so many of an epoch the state is kept before its end.
        record: called with what there is to tell of each epoch, see `train`.
    """

    load: Callable[[], dict[str, Any] | None]
    save: Callable[[dict[str, Any]], None]
    show: Callable[..., None]
    save_seconds: float = math.inf
    record: Callable[[Mapping[str, float]], None] = lambda _: None


def steps_per_epoch(setting: Setting, config: TrainConfig) -> int:
    """Optimizer steps in one pass; what is left after the last whole step goes to the next pass's shuffle."""
    images = len(divided(setting.data.train, config.validation_fraction, setting.seed)[0])
    return max(images // (config.batch_size * config.accumulate), 1)


def divided(train: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    """What is trained on, and so much of the training images set aside to choose the best epoch by."""
    if not fraction:
        return train, None
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    aside = max(round(fraction * len(train)), 1)
    return Subset(train, order[aside:].sort().values), Subset(train, order[:aside].sort().values)


@keeping_freed_memory()
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

    Everything random follows from the seed and the epoch, so that a training resumed after any epoch, or in
    the middle of one, ends with the very weights of one that was never stopped.

    Under `accelerate launch` every process calls this. Each reads its part of every batch, gradients are
    averaged, so that weights and masks stay the same in all of them; batch norms see a process's own part.
    Their state is kept after whole epochs only.

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
        "learning_rate", "sparsity", "images_per_second" trained, "waiting_fraction" of the time for images;
        "validation" where training images were set aside), and the seconds spent.
    """
    session = _Session(model, setting, config, teacher, distill, sparsifier, transfer, hooks)
    session.load(hooks.load())
    for epoch in range(session.epochs_done, config.epochs):
        if session.patience_is_over():
            break
        remark = session.run_epoch(epoch)
        hooks.save(session.state())
        hooks.record(session.history[-1])
        hooks.show(epoch + 1, remark=remark)
    session.finish()
    return tuple(session.history), session.seconds


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """Channels last, a third faster on the CPU, but where there are depthwise 1x1 convolutions (MobileOne's).

    Their gradients in that order end torch 2.14 with corrupted memory on processors without AVX-512.
    """
    scaled = any(
        isinstance(part, nn.Conv2d) and part.groups > 1 and tuple(part.kernel_size) == (1, 1)
        for part in model.modules()
    )
    return torch.contiguous_format if scaled else torch.channels_last


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
        hooks: Hooks,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator(
            cpu=processes.on_cpu(), mixed_precision="bf16" if torch.cuda.is_available() else "no"
        )
        _refuse_batches(setting, config, self.accelerator.num_processes)
        self.model, self.setting, self.config, self.sparsifier = model, setting, config, sparsifier
        self.transfer, self.hooks = transfer, hooks
        self.train, self.validation = divided(setting.data.train, config.validation_fraction, setting.seed)
        groups = transfer.groups(model, config.learning_rate, config.weight_decay)
        self.optimizer = optimizer_of(groups, config)
        self.schedule = schedule_of(self.optimizer, config, steps_per_epoch(setting, config) * config.epochs)
        _placed(model, self.accelerator.device, memory_format_of(model))
        if teacher is not None:
            _placed(teacher, self.accelerator.device, memory_format_of(teacher)).eval()
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
        self.within: dict[str, Any] | None = None  # How far an epoch was when its state was kept.
        self.best: dict[str, Any] | None = None
        self.read = Reading()

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from what `state` gave; None: begin."""
        if not state:
            return
        self.history, self.seconds = list(state["history"]), state["seconds"]
        self.epochs_done = state["epoch"]
        self.within, self.best = state.get("within"), state.get("best")
        for name, part in self._kept().items():
            part.load_state_dict(state[name])

    def state(self, within: dict[str, Any] | None = None, seconds: float = 0.0) -> dict[str, Any]:
        """All that a training goes on from, `within` an epoch that has taken so many seconds."""
        states = {name: part.state_dict() for name, part in self._kept().items()}
        told = {"epoch": self.epochs_done, "history": self.history, "seconds": self.seconds + seconds}
        return {**told, "within": within, "best": self.best, **states}

    def patience_is_over(self) -> bool:
        """Whether the best epoch is so long ago that training stops."""
        if not self.config.patience or self.best is None:
            return False
        return self.epochs_done - int(self.best["epoch"]) >= self.config.patience

    def run_epoch(self, epoch: int) -> str:
        """Go through the images once, score the model, and say how it went."""
        began = time.monotonic()
        self.transfer.freeze(self.model, epoch)
        loss = self._train_epoch(epoch)
        trained = time.monotonic() - began
        reached = self._score(self.setting.data.held_out, epoch)
        metric = self.setting.task.metric
        self.history.append(
            {
                "epoch": float(epoch + 1),
                "loss": loss,
                metric.key: reached,
                "learning_rate": float(self.rate),
                "sparsity": self.sparsifier.sparsity if self.sparsifier is not None else 0.0,
                "images_per_second": self.read.images / max(trained, 1e-9),
                "waiting_fraction": min(self.read.waited / max(trained, 1e-9), 1.0),
            }
        )
        told = f"{self.read.images / max(trained, 1e-9):.0f} images/s"
        if self.read.waited > NOTEWORTHY_FRACTION * trained:
            told += f", {self.read.waited / trained:.0%} of the time waiting for them"
        self.epochs_done = epoch + 1
        if self.validation is not None:
            self._remember_best(self._score(self.validation, epoch))
        self.seconds += time.monotonic() - began
        return f"loss {loss:.3f}, {metric.heading} {100 * reached:.1f} %, {told}"

    def _remember_best(self, validated: float) -> None:
        """Keep the epoch if it is the best that could be the last: of a full size and with all its zeros."""
        self.history[-1]["validation"] = validated
        full = size_px(self.epochs_done - 1, self.config, self.train.size_px) == self.train.size_px
        complete = self.sparsifier is None or self.sparsifier.is_complete
        if full and complete and (self.best is None or validated > self.best["validation"]):
            states = {name: part.state_dict() for name, part in self._finished().items()}
            self.best = copy.deepcopy({"epoch": self.epochs_done, "validation": validated, **states})

    def finish(self) -> None:
        """Leave the model as it will be used: averaged, its zeros exact, its batch norms recalibrated."""
        self.transfer.freeze(self.model, self.transfer.freeze_epochs)
        if self.best is not None:
            for name, part in self._finished().items():
                part.load_state_dict(self.best[name])
        if self.averaged is not None:
            copy_parameters(self.averaged.module, self.model)
        if self.sparsifier is not None:
            self.sparsifier.finalize()  # Averages reach back to when pruned weights were not zero yet.
        setting = self.setting
        recalibrate(self.model, self.train, setting.normalization, setting.seed, self.config.batch_size)
        _placed(self.model, torch.device("cpu"), torch.contiguous_format).eval()

    def _kept(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "schedule": self.schedule, **self._finished()}

    def _finished(self) -> dict[str, Any]:
        """What an epoch leaves behind if it is the last."""
        parts = {"model": self.model, "sparsifier": self.sparsifier, "averaged": self.averaged}
        return {name: part for name, part in parts.items() if part is not None}

    def _train_epoch(self, epoch: int) -> float:
        """Take every step of an epoch, or those that are left of it; return the mean loss."""
        accelerator, accumulate = self.accelerator, self.config.accumulate
        together = accelerator.num_processes
        self.objective.model.train()
        generator, order = self._order(epoch)
        done, losses = self._begun(generator)
        self.read = Reading()
        began = kept = time.monotonic()
        batches = self._batches(epoch, generator, order[done:])
        for number, (images, labels, whole) in enumerate(giving_back(batches), start=done + 1):
            with accelerator.autocast():
                loss = self.objective(images, labels)
            losses.append(loss.detach())
            # Each image counts alike, however a step's images are divided.
            share = len(images) * together / (whole * accumulate)
            accelerator.backward(loss if share == 1 else loss * share)
            if number % accumulate:
                continue
            self._step()
            now = time.monotonic()
            if together == 1 and now - kept > self.hooks.save_seconds:
                kept = now
                self.hooks.save(self.state(self._within(number, losses, generator), now - began))
        if together > 1:
            _average([b for b in self.model.buffers() if b.is_floating_point()], accelerator)
        return float(torch.stack(losses).mean())

    def _order(self, epoch: int) -> tuple[torch.Generator, list[Tensor]]:
        """What an epoch draws from, and its batches, the same in every process."""
        generator = generator_of(self.setting.seed, epoch)
        seed = int(torch.randint(2**62, (1,), generator=generator))
        torch.manual_seed(seed + self.accelerator.process_index)  # Dropout draws from the global one.
        count = len(self.train)
        if self.config.balanced:
            order = torch.multinomial(shares(self.train.labels), count, True, generator=generator)
        else:
            order = torch.randperm(count, generator=generator)
        steps = steps_per_epoch(self.setting, self.config)
        return generator, whole_batches(order, self.config.batch_size)[: steps * self.config.accumulate]

    def _begun(self, generator: torch.Generator) -> tuple[int, list[Tensor]]:
        """How many batches of the epoch are done, and their losses; what is drawn goes on from there."""
        within, self.within = self.within, None
        if within is None:
            self.rate = float(self.schedule.get_last_lr()[0])
            return 0, []
        self.rate = within["rate"]
        generator.set_state(within["generator"])
        torch.set_rng_state(within["torch"])
        return within["batches"], list(within["losses"])

    def _within(self, batches: int, losses: list[Tensor], generator: torch.Generator) -> dict[str, Any]:
        """How far an epoch is, for `_begun`."""
        return {
            "batches": batches,
            "losses": torch.stack(losses),
            "rate": self.rate,
            "generator": generator.get_state(),
            "torch": torch.get_rng_state(),
        }

    def _batches(
        self, epoch: int, generator: torch.Generator, parts: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Any, int]]:
        """This process's images and labels of each batch, and how many images the batch has in all."""
        rank, together = self.accelerator.process_index, self.accelerator.num_processes
        setting, train, device = self.setting, self.train, self.accelerator.device
        side_px = size_px(epoch, self.config, train.size_px)
        mix = mixed(setting.augment.filled(), len(setting.data.classes))
        read = train.batches(
            [part[rank::together] for part in parts],
            change_of(setting.augment.filled(), setting.seed, epoch),
        )
        for part, (images, labels) in zip(parts, self.read.timed(read), strict=True):
            # What could not be read is missing.
            own = Own(len(part), torch.arange(len(part))[rank::together][: len(images)])
            images, labels = _augmented(images, labels, setting, generator, own)
            images, labels = _sized(images, labels, side_px, setting.task)
            taken = normalized(images.to(device), setting.normalization)
            labels = _to(labels, device)
            if mix is not None:
                taken, labels = mix(taken, labels)
            yield taken, labels, len(part)

    def _step(self) -> None:
        if self.accelerator.num_processes > 1:
            _average([p.grad for p in self.model.parameters() if p.grad is not None], self.accelerator)
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.sparsifier is not None:
            self.sparsifier.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _score(self, split: Split, epoch: int) -> float:
        """The metric on images as large as the epoch's; each process runs its part of them."""
        setting = self.setting
        side_px = size_px(epoch, self.config, split.size_px)
        indices = torch.arange(len(split))[self.accelerator.process_index :: self.accelerator.num_processes]
        evaluator = setting.task.evaluator(len(setting.data.classes))
        self.model.eval()
        for images, labels in split.batches(torch.split(indices, EVALUATION_BATCH)):
            images, labels = _sized(images, labels, side_px, setting.task)
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
    if not tensors:  # A network without batch norms has no buffers.
        return
    together = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduction="mean")
    for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view(tensor.shape))


@dataclass
class Reading:
    """How many images an epoch has read, and the seconds that training waited for them."""

    images: int = 0
    waited: float = 0.0

    def timed(self, batches: Iterator[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Any]]:
        """The same batches, counted."""
        while True:
            began = time.monotonic()
            found = next(batches, None)
            self.waited += time.monotonic() - began
            if found is None:
                return
            self.images += len(found[0])
            yield found


def shares(labels: Any) -> Tensor:
    """How likely each image is drawn so that every class comes equally often.

    Raises:
        UserError: images have no single class.
    """
    if not isinstance(labels, Tensor) or labels.ndim > 1:
        raise UserError("balanced: these images have no single class each: leave it out")
    return 1 / torch.bincount(labels).double()[labels]


def augmented_examples(setting: Setting, count: int) -> Tensor:
    """Training images (count, 3, size, size) uint8 as a training would see them: what people look at."""
    train, augment = setting.data.train, setting.augment.filled()
    generator = generator_of(setting.seed, 0)
    part = torch.randperm(len(train), generator=generator)[:count]
    ((images, labels),) = train.batches([part], change_of(augment, setting.seed, 0))
    images, labels = _augmented(
        images, labels, setting, generator, Own(len(images), torch.arange(len(images)))
    )
    mix = mixed(augment, len(setting.data.classes))
    if mix is None:
        return images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        shared, _ = mix(images.float(), labels)
    return shared.round().clamp(0, 255).to(torch.uint8)


def _augmented(
    images: Tensor, labels: Any, setting: Setting, generator: torch.Generator, own: Own
) -> tuple[Tensor, Any]:
    """What a batch goes through besides `change_of`: labels that lie in images move with them."""
    augment, task = setting.augment.filled(), setting.task
    flip = setting.data.photographs if augment.flip is None else augment.flip
    if augment.shift_px:
        images, labels = _moved(images, labels, random_shift(images, augment.shift_px, generator, own), task)
    if flip:
        which = torch.rand(own.whole, generator=generator)[own.places] < 0.5
        images, labels = _moved(images, labels, mirror(which, images.shape[-1]), task)
    return erased(images, augment.erase_px, generator, own), labels


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
