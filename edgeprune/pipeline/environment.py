"""What is needed to repeat a run: versions, machine, data, command."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeprune import __version__, processes
from edgeprune.data.dataset import Data
from edgeprune.data.files import shortened
from edgeprune.data.loading import readable_splits

PACKAGES = (
    "torch", "torchvision", "coremltools", "litert-torch", "ai-edge-litert", "litert-quantizer",
    "torch-pruning", "accelerate", "numpy",
)  # fmt: skip


def describe(data: Data, image_size_px: int, command: str) -> dict[str, Any]:
    """Return the report's `environment`, plain data."""
    import torch

    return {
        "command": command,
        "edgeprune": __version__,
        "python": platform.python_version(),
        **{name.replace("-", "_"): package_version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes.joined(),
        "data": {
            "source": data.source,
            "train_images": len(data.train),
            "held_out_images": len(data.held_out),
            "classes": len(data.classes),
            "image_size_px": image_size_px,
            "sha256": data.sha256,
            **_decoded(data),
        },
    }


def _decoded(data: Data) -> dict[str, Any]:
    """Where images were, and which of them training left out because they cannot be read."""
    streamed = readable_splits(data)
    if not streamed:
        return {"images": "in memory"}
    faults = [fault for _, split in streamed for _, fault in sorted(split.faults.items())]
    told: dict[str, Any] = {"images": "decoded as needed", "skipped_images": len(faults)}
    return told | ({"skipped": shortened(faults)} if faults else {})


def training_hardware() -> str:
    """The GPU or processor that trains here, for people: "AMD EPYC, 2 processes"."""
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{name}, {processes.count()} processes" if processes.count() > 1 else name


def package_version(name: str) -> str | None:
    """Return the installed version; None where the package is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def command_line() -> str:
    """Return the command that is running, as a user would type it."""
    import shlex

    program = Path(sys.argv[0]).name
    if program.endswith(".py"):
        program = f"python {_short(sys.argv[0])}"
    return " ".join([program, *map(shlex.quote, sys.argv[1:])])


def _short(path: str) -> str:
    try:
        return Path(path).resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path
