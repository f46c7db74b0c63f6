"""Times Core ML packages on a Mac, by compute unit, and asks Core ML where each operation runs.

    python3 -m venv mac && mac/bin/pip install coremltools pillow
    mac/bin/python measure_on_mac.py PACKAGE.mlpackage ...

Needs nothing else of edgeprune: copy it and the packages to a Mac with macOS 14.4 or later. Writes
bench-mac-UNIT.json for each of all, ane, gpu and cpu ("all" is Core ML's own choice, "ane" the Neural Engine
and the CPU); put those into the run's folder, and edgeprune report takes them in. The first package is what
the others are compared with: name the dense one first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
WARMUP = 10
UNITS = {"all": "ALL", "ane": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}


def main() -> None:
    """Measure on every unit, and write a file for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, nargs="+", metavar="PACKAGE.mlpackage")
    parser.add_argument("--rounds", type=int, default=50, help="%(default)s if not given")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="here if not given")
    options = parser.parse_args()
    if platform.system() != "Darwin":
        sys.exit("error: Core ML runs on macOS only: copy this script and the packages to a Mac")
    missing = [str(path) for path in options.packages if not path.is_dir()]
    if missing:
        sys.exit(f"error: no such package: {', '.join(missing)}")
    for unit in UNITS:
        times, devices = measure(options.packages, unit, options.rounds)
        text = json.dumps(result(options.packages, unit, times, devices), indent=1)
        path = options.output / f"bench-mac-{unit}.json"
        path.write_text(f"{text}\n", encoding="utf-8")
        sys.stdout.write(f"{path}\n")


def measure(
    packages: Sequence[Path], unit: str, rounds: int
) -> tuple[list[list[float]], list[dict[str, int]]]:
    """Milliseconds of each round for each package, in turns; and how many operations run where."""
    import coremltools as ct

    units = ct.ComputeUnit[UNITS[unit]]
    models = [ct.models.MLModel(str(path), compute_units=units) for path in packages]
    inputs = [image(model) for model in models]
    for model, given in zip(models, inputs, strict=True):
        for _ in range(WARMUP):
            model.predict(given)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for number, (model, given) in enumerate(zip(models, inputs, strict=True)):
            start = time.perf_counter()
            model.predict(given)
            times[number].append(1000 * (time.perf_counter() - start))
    return times, [devices_of(model, units) for model in models]


def image(model: Any) -> dict[str, Any]:
    """A random image as a package takes it."""
    import numpy as np
    from PIL import Image

    (taken,) = model.get_spec().description.input
    random = np.random.default_rng(0)
    if taken.type.WhichOneof("Type") == "imageType":
        size = (taken.type.imageType.height, taken.type.imageType.width, 3)
        return {taken.name: Image.fromarray(random.integers(0, 256, size, np.uint8))}
    return {taken.name: random.standard_normal(tuple(taken.type.multiArrayType.shape)).astype(np.float32)}


def devices_of(model: Any, units: Any) -> dict[str, int]:
    """How many operations Core ML would rather run on which device, by MLComputePlan."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    counted: Counter[str] = Counter()
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is not None:
            counted[type(usage.preferred_compute_device).__name__] += 1
    return dict(counted.most_common())


def result(
    packages: Sequence[Path],
    unit: str,
    times: Sequence[Sequence[float]],
    devices: Sequence[dict[str, int]],
) -> dict[str, Any]:
    """What edgeprune bench writes of a measurement, for these times."""
    version, chip = platform.mac_ver()[0] or "unknown", processor()
    return {
        "schema": SCHEMA,
        "runtime": f"mac-{unit}",
        "description": f"Core ML on {UNITS[unit]}, macOS {version}, {chip}",
        "version": f"Core ML of macOS {version}",
        "emulated": False,
        "clock": "wall time",
        "processor": chip,
        "threads": 1,
        "warmup": WARMUP,
        "rounds": len(times[0]),
        "image": None,
        "files": [
            timing(path, own, times[0], where)
            for path, own, where in zip(packages, times, devices, strict=True)
        ],
        "device": {"model": chip, "system": f"macOS {version}", "compute_units": UNITS[unit]},
    }


def timing(path: Path, own: Sequence[float], first: Sequence[float], where: dict[str, int]) -> dict[str, Any]:
    """One package of it."""
    speeds = [theirs / mine for mine, theirs in zip(own, first, strict=True)]
    words = ", ".join(f"{count} on {name}" for name, count in where.items())
    return {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in files_of(path)),
        "sha256": sha256(path),
        "problems": [f"operations by MLComputePlan: {words}"] if words else [],
        "milliseconds": list(own),
        "median_ms": statistics.median(own),
        "quartiles_ms": quartiles(own),
        "speed": statistics.median(speeds),
        "speed_quartiles": quartiles(speeds),
        "difference_reason": "outputs were not compared",
        "load_memory_reason": "Core ML does not say",
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper; of one value itself."""
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def sha256(package: Path) -> str:
    """Digest of a package: over the name and content of each file in name order, as edgeprune's."""
    digest = hashlib.sha256()
    for file in files_of(package):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def files_of(package: Path) -> list[Path]:
    """All files in a package, in name order."""
    return sorted(file for file in package.rglob("*") if file.is_file())


def processor() -> str:
    """The Mac's chip, by its own word."""
    try:
        said = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
    except OSError:
        return platform.machine()
    return said.stdout.strip() or platform.machine()


if __name__ == "__main__":
    main()
