"""Small real runs of the whole road, each in a process of its own, for `robustness.py` to disturb.

A run is started by fork from a process that has imported the libraries already, which saves seven seconds a
start; the run that the others are compared with was started as a user does, by `python -m edgeprune.cli run`.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.facts import sha256
from edgeprune import recipe as recipes
from edgeprune.data import loading
from edgeprune.recipe import Recipe, Variant
from edgeprune.training.config import TrainConfig

MODEL = "timm/test_efficientnet"
TARGETS = ("coreml-ios16", "litert-arm64-int8")
VARIANTS = ("dense", "block80")
SIZE_PX = 32
SAVE_MINUTES = 1e-5  # After every step: a kill is always in the middle of an epoch whose state was kept.
ENDED = "ended"
REAL_TIME = os.sched_getscheduler(0) != os.SCHED_OTHER  # As chrt begins it.


@dataclass(frozen=True)
class Started:
    """A run in a process group of its own.

    Attributes:
        pid: of its first process.
        log: what it says on stdout and stderr.
    """

    pid: int
    log: Path

    def poll(self) -> int | None:
        """Its exit status, if it has ended: negative for a signal."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        _step_back()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End all its processes at once, as a machine that loses its power."""
        _step_back()  # A dying process needs the processor too: waiting for it in front of it never ends.
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        lead()


def recipe_of(work: Path, output: Path) -> Recipe:
    """The recipe of a run.

    Args:
        work: where `make_images` put the folder.
        output: its run folder.
    """
    fit = TrainConfig(epochs=5, batch_size=16)
    return Recipe(
        model=MODEL,
        data=work / "images",
        image_size_px=SIZE_PX,
        dense=fit,
        variants={"block80": Variant(sparsity=0.8, fit=fit)},
        targets=TARGETS,
        output=output,
        save_minutes=SAVE_MINUTES,
    )


def make_images(work: Path) -> None:
    """JPEGs in folders, each class a colour, with noise."""
    import numpy as np
    from PIL import Image

    if (work / "images").exists():
        return
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for label, colour in enumerate(((30, 60, 200), (40, 180, 60), (200, 40, 40))):
            folder = work / "images" / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                noise = random.integers(-30, 30, (40, 47, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:03}.jpg")


def import_all() -> None:
    """Import what every run imports, before the first fork; no thread may have begun."""
    import coremltools  # noqa: F401
    import litert_torch  # noqa: F401
    import timm  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    import edgeprune.pipeline.steps  # noqa: F401

    torch.set_num_threads(1)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, (
        "a fork would copy this process without its threads"
    )


def start(
    recipe: Recipe, log: Path, *, streamed: bool = False, before: Callable[[], None] | None = None
) -> Started:
    """Start or go on with a run.

    Args:
        recipe: its `output` says where; written beside `log` as TOML.
        log: its output is added to it.
        streamed: decode images as they are needed, however few they are.
        before: called in the new process first.
    """
    path = log.with_suffix(".toml")
    path.write_text(recipes.to_toml(recipe))
    lead()
    pid = os.fork()
    if pid:
        return Started(pid, log)
    status = 70
    try:
        os.setsid()
        _output_to(log)
        _yield_to_parent()
        if streamed:
            loading.IN_MEMORY_FRACTION = 1e-9
        if before is not None:
            before()
        from edgeprune.cli import main

        status = main(["run", str(path)])
    except BaseException:  # What a user would see as a traceback.
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(status)


def _step_back() -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _output_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target in (1, 2):
        os.dup2(descriptor, target)


def _yield_to_parent() -> None:
    """Under a real-time policy the run would keep the processor from the process that is to kill it."""
    if REAL_TIME:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def lead() -> None:
    """Give this process the processor before its runs, where it was begun under a real-time policy."""
    if REAL_TIME:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))


def plain_run(recipe: Recipe, log: Path) -> None:
    """A run as a user starts it."""
    path = log.with_suffix(".toml")
    path.write_text(recipes.to_toml(recipe))
    with log.open("w") as output:
        subprocess.run(
            [sys.executable, "-m", "edgeprune.cli", "run", str(path)],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )


def reference(work: Path) -> dict[str, Any]:
    """What the uninterrupted run ended with, its images in memory; it is run once, as a user starts it."""
    kept = work / "reference-folder.json"
    if not kept.exists():
        folder = work / "reference-folder"
        plain_run(recipe_of(work, folder), work / "reference-folder.log")
        kept.write_text(json.dumps(result(folder)))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def result(folder: Path) -> dict[str, Any]:
    """What must be the same however often a run was stopped: digests of files and weights, and all scores."""
    report = json.loads((folder / "report.json").read_text())
    exported = [*sorted((folder / "files").iterdir()), *sorted((folder / "variants").glob("*.safetensors"))]
    return {
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in exported},
        "scores": {
            f"{row['variant']} {row['target']}": [row["top1"], row["agreement"], row["max_relative_error"]]
            for row in report["rows"]
        },
    }


def leftovers(folder: Path) -> list[str]:
    """What a finished run may not leave behind."""
    return [
        path.relative_to(folder).as_posix()
        for pattern in (".*.tmp", "*.partial")
        for path in folder.rglob(pattern)
    ]


def stage(folder: Path) -> str:
    """What the run in a folder is at, as its files tell."""
    for variant in VARIANTS:
        if not (folder / "variants" / f"{variant}.safetensors").exists():
            partial = (folder / "variants" / f"{variant}.partial").exists()
            return "training" if partial else "starting a training"
    for variant in VARIANTS:
        for target in TARGETS:
            if not (folder / "rows" / f"{variant}-{target}.json").exists():
                suffix = ".mlpackage" if target.startswith("coreml") else ".tflite"
                there = (folder / "files" / f"{variant}-{target}{suffix}").exists()
                return "measuring" if there else "converting"
    if not all((folder / "examinations" / f"{variant}.json").exists() for variant in VARIANTS):
        return "examining"
    return ENDED if (folder / "report.html").exists() else "reporting"


def precise(folder: Path, found: str, epochs: int) -> str:
    """The stage of a run that stands still: where in a training it was killed."""
    import torch

    if found != "training":
        return found
    (partial,) = (folder / "variants").glob("*.partial")
    state = torch.load(partial, weights_only=True)
    if state["within"] is not None:
        return "training, in the middle of an epoch"
    return "finishing a training" if state["epoch"] == epochs else "training, between epochs"


def one_message(log: Path) -> str | None:
    """What is wrong with what a refused run said; None where it is one message."""
    text = log.read_text(errors="replace")
    if "Traceback" in text:
        return text[text.index("Traceback") :][-600:]
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    return None if len(said) == 1 else f"{len(said)} messages: {text[-400:]}"


def clock() -> float:
    """Processor seconds of this process and of those it has waited for."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` gives, and the seconds and processor seconds that it took."""
    began, used = time.monotonic(), clock()
    return work(), time.monotonic() - began, clock() - used
