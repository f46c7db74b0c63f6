"""Times Core ML packages and Core AI files by compute unit: on a Mac, or a device that is connected to it.

    python3 -m venv mac && mac/bin/pip install coremltools pillow      (for .aimodel files: coreai-core too)
    mac/bin/python measure_on_mac.py MODEL.mlpackage ...
    mac/bin/python measure_on_mac.py MODEL.mlpackage ... --ios-device --team TEAMID

Needs nothing else of edgeprune: copy it and the files to a Mac with macOS 14.4 or later (27 for Core AI).
Writes bench-mac-UNIT.json, or bench-ios-device-UNIT.json, for each of all, ane, gpu and cpu ("all" is Apple's
own choice, "ane" the Neural Engine and the CPU); put those into the run's folder, and edgeprune report takes
them in. The first file is what the others are compared with: name the dense one first. How many operations
run where is MLComputePlan's word, of Core ML packages only.

A connected device is coremltools' doing: it builds an app of its own with Xcode 16 or later, signed for the
team, puts it on the device by devicectl, and the app times the packages. The device needs iOS 17 or later,
its developer mode on, and this Mac trusted. Core AI files are not timed there: open them in the app of
sample_apps/ios."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
WARMUP = 10
UNITS = {"all": "ALL", "ane": "CPU_AND_NE", "gpu": "CPU_AND_GPU", "cpu": "CPU_ONLY"}
PACKAGE, CORE_AI = ".mlpackage", ".aimodel"


@dataclass(frozen=True)
class Place:
    """Where files are timed.

    Attributes:
        name: "mac" or "ios-device".
        model: of the machine, or its chip.
        system: "macOS 27.0".
        device: coremltools' Device, with its app running; None: this Mac.
    """

    name: str
    model: str
    system: str
    device: Any = None


@dataclass(frozen=True)
class Timed:
    """A file that is loaded.

    Attributes:
        once: runs it once; milliseconds.
        where: how many operations run on which device, as far as that is told.
        kept: what has to stay for it to run.
    """

    once: Callable[[], float]
    where: Callable[[], dict[str, int]]
    kept: Any = None


def main() -> None:
    """Measure on every unit that is asked for, and write a file for each."""
    options = parser().parse_args()
    problems = mistakes(options)
    if problems:
        sys.exit("error: " + "; ".join(problems))
    loop = asyncio.new_event_loop()
    place = ios_device(options, loop) if options.ios_device is not None else this_mac()
    for unit in options.units:
        files = [opened(path, unit, place, loop) for path in options.files]
        times = in_turns([file.once for file in files], options.rounds)
        text = json.dumps(
            result(options.files, unit, times, [file.where() for file in files], place), indent=1
        )
        path = options.output / f"bench-{place.name}-{unit}.json"
        path.write_text(f"{text}\n", encoding="utf-8")
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("files", type=Path, nargs="+", metavar="MODEL", help="Core ML packages, Core AI files")
    made.add_argument("--rounds", type=int, default=50, help="%(default)s if not given")
    made.add_argument(
        "--units", nargs="+", choices=tuple(UNITS), default=list(UNITS), help="all if not given"
    )
    made.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="here if not given")
    made.add_argument(
        "--ios-device",
        nargs="?",
        const="",
        metavar="NAME",
        help="the iPhone or iPad that is connected, or this one",
    )
    made.add_argument("--team", default="", metavar="TEAMID", help="whose certificate signs coremltools' app")
    return made


def mistakes(options: argparse.Namespace) -> list[str]:
    """What is wrong with what was asked for."""
    if platform.system() != "Darwin":
        return ["Core ML runs on macOS only: copy this script and the files to a Mac"]
    missing = [str(path) for path in options.files if not path.is_dir()]
    core_ai = [str(path) for path in options.files if path.suffix == CORE_AI]
    told = [f"no such file: {', '.join(missing)}"] * bool(missing)
    told += [f"--rounds {options.rounds}: must be 1 or more"] * (options.rounds < 1)
    if options.ios_device is not None and core_ai:
        told.append(f"coremltools times no Core AI files on a device: leave out {', '.join(core_ai)}")
    return told


def in_turns(runs: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Milliseconds of each round for each file: what slows one down slows all."""
    for run in runs:
        for _ in range(WARMUP):
            run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for number, run in enumerate(runs):
            times[number].append(run())
    return times


def opened(path: Path, unit: str, place: Place, loop: asyncio.AbstractEventLoop) -> Timed:
    """A file, loaded for a compute unit."""
    if path.suffix == CORE_AI:
        return opened_core_ai(path, unit, loop)
    return opened_here(path, unit) if place.device is None else opened_there(path, unit, place, loop)


# --- Core ML ------------------------------------------------------------------------------------------------


def opened_here(path: Path, unit: str) -> Timed:
    """A package on this Mac."""
    import coremltools as ct

    units = ct.ComputeUnit[UNITS[unit]]
    model = ct.models.MLModel(str(path), compute_units=units)
    given = image(model)
    return Timed(lambda: milliseconds(lambda: model.predict(given)), lambda: planned(model, units))


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


def planned(model: Any, units: Any) -> dict[str, int]:
    """How many operations Core ML would rather run on which device, by MLComputePlan."""
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=units)
    operations = plan.model_structure.program.functions["main"].block.operations
    return counted(
        plan.get_compute_device_usage_for_mlprogram_operation(operation) for operation in operations
    )


def counted(usages: Iterable[Any]) -> dict[str, int]:
    """Operations by the kind of the device that they would rather run on."""
    kinds = (type(usage.preferred_compute_device).__name__ for usage in usages if usage is not None)
    return dict(Counter(kinds).most_common())


# --- A connected iPhone or iPad -----------------------------------------------------------------------------


def ios_device(options: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> Place:
    """The device, with coremltools' app on it."""
    from coremltools.models.ml_program.experimental.remote_device import (
        AppSigningCredentials,
        Device,
        DeviceType,
    )

    kinds = (DeviceType.IPHONE, DeviceType.IPAD)
    device = chosen(
        [device for kind in kinds for device in Device.get_connected_devices(kind)], options.ios_device
    )
    signed = AppSigningCredentials(development_team=options.team)
    ready = loop.run_until_complete(device.prepare_for_model_debugging(credentials=signed))
    return Place("ios-device", device.name, f"iOS {device.os_version}", ready)


def chosen(devices: Sequence[Any], name: str) -> Any:
    """The device of a name or identifier, or the only one."""
    known = [d for d in devices if name in ("", d.name, d.udid, d.identifier)]
    listed = ", ".join(device.name for device in devices) or "none"
    if len(known) != 1:
        asked = (
            f"--ios-device {name}: not connected" if name and not known else "name one with --ios-device NAME"
        )
        sys.exit(f"error: {asked}; connected by devicectl's word: {listed}")
    return known[0]


def opened_there(path: Path, unit: str, place: Place, loop: asyncio.AbstractEventLoop) -> Timed:
    """A package on the device, timed by its own clock."""
    import coremltools as ct
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[UNITS[unit]], skip_model_load=True)
    benchmarker = MLModelBenchmarker(model=model, device=place.device)

    def once() -> float:
        return float(loop.run_until_complete(benchmarker.benchmark_predict(iterations=1)).samples[0])

    def where() -> dict[str, int]:
        operations = loop.run_until_complete(benchmarker.benchmark_operation_execution(iterations=1))
        return counted(operation.compute_device_usage for operation in operations)

    return Timed(once, where)


# --- Core AI ------------------------------------------------------------------------------------------------


def opened_core_ai(path: Path, unit: str, loop: asyncio.AbstractEventLoop) -> Timed:
    """A Core AI file on this Mac, by the system's own runtime: only that has compute units."""
    import numpy as np
    from coreai.authoring import AIModelAsset
    from coreai.runtime import NDArray

    stack = AsyncExitStack()
    ready = AIModelAsset.load(path).executable(specialization(unit))
    model = loop.run_until_complete(stack.enter_async_context(ready))
    function = model.load_function("main")
    name = function.desc.input_names[0]
    shape = tuple(function.desc.input_descriptor(name).shape)
    given = {name: NDArray(np.random.default_rng(0).standard_normal(shape).astype(np.float32))}

    async def call() -> None:
        await function(given)

    return Timed(lambda: milliseconds(lambda: loop.run_until_complete(call())), dict, stack)


def specialization(unit: str) -> Any:
    """Apple's own choice, the CPU alone, or the unit that is preferred."""
    from coreai import runtime

    options = runtime.SpecializationOptions
    if not options.is_supported():
        sys.exit("error: Core AI files are timed by compute unit on macOS 27 and later only")
    if unit in ("all", "cpu"):
        return options.default() if unit == "all" else options.cpu_only()
    kind = runtime.ComputeUnitKind
    return options.from_preferred_compute_unit_kind(kind.gpu() if unit == "gpu" else kind.neural_engine())


# --- What is written ----------------------------------------------------------------------------------------


def result(
    files: Sequence[Path],
    unit: str,
    times: Sequence[Sequence[float]],
    devices: Sequence[dict[str, int]],
    place: Place,
) -> dict[str, Any]:
    """What edgeprune bench writes of a measurement, for these times."""
    runtimes = {PACKAGE: "Core ML", CORE_AI: "Core AI"}
    by = " and ".join(dict.fromkeys(runtimes.get(path.suffix, "Core ML") for path in files))
    return {
        "schema": SCHEMA,
        "runtime": f"{place.name}-{unit}",
        "description": f"{by} on {UNITS[unit]}, {place.system}, {place.model}",
        "version": f"{by} of {place.system}",
        "emulated": False,
        "clock": "wall time",
        "processor": place.model,
        "threads": 1,
        "warmup": WARMUP,
        "rounds": len(times[0]),
        "image": None,
        "files": [
            timing(path, own, times[0], where) for path, own, where in zip(files, times, devices, strict=True)
        ],
        "device": {"model": place.model, "system": place.system, "compute_units": UNITS[unit]},
    }


def timing(path: Path, own: Sequence[float], first: Sequence[float], where: dict[str, int]) -> dict[str, Any]:
    """One file of it."""
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
        "load_memory_reason": "Apple's runtimes do not say",
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper; of one value itself."""
    if len(values) == 1:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [low, high]


def milliseconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


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


def this_mac() -> Place:
    """Its chip and its system, by their own word."""
    return Place("mac", processor(), f"macOS {platform.mac_ver()[0] or 'unknown'}")


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
