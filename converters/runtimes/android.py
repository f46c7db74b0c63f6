"""Times `.tflite` files on an Android device with LiteRT's own benchmark_model, in turns, over adb.

A round runs each file once for some runs; what is kept of it is their median, or their mean where the tool is
too old to tell. Between rounds the device cools down as far as Android says that it is warm. What was copied
to the device is removed again.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from converters.errors import ToolError, UserError
from converters.facts import sha256
from converters.runtimes.adb import Device, connected
from converters.runtimes.benchmark_model import TOOL

ACCELERATORS = {"cpu": "--use_xnnpack=true", "gpu": "--use_gpu=true"}
RUNS_A_ROUND = 10
WARMUP_RUNS = 3
SECONDS_A_ROUND = 60
# Of Android's thermal status: 0 none, 1 light, 2 moderate, ...
WARM = 1
SECONDS_TO_COOL, SECONDS_BETWEEN_LOOKS = 60.0, 5.0
ELF_MACHINES = {"arm64-v8a": 183, "armeabi-v7a": 40, "x86_64": 62, "x86": 3}
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_TIMES = re.compile(
    rf"count=(\d+) first=.*? avg={_NUMBER}(?: std={_NUMBER})?(?: p5={_NUMBER} median={_NUMBER})?"
)
_SUMMARY = re.compile(rf"Inference timings in us: Init: {_NUMBER}, .*Inference \(avg\): {_NUMBER}")
_MEMORY = re.compile(rf"[Mm]emory footprint.*\(MB\): init=.*? overall={_NUMBER}")
_GPU_NODES = re.compile(
    r"Replacing (\d+) out of (\d+) node\(s\) with delegate "
    r"\((?:TfLiteGpuDelegate|LITERT_(?:CL|OPENGL|WEBGPU))"
)
_FELL_BACK = ("will not be executed by the delegate", "Falling back to")


@dataclass(frozen=True)
class Phone:
    """What a device says of itself; "unknown" where it does not.

    Attributes:
        serial: adb's name for it.
        model: maker and name.
        android: version and API level.
        chip: maker and name of the system on a chip.
        abi: of its processor.
    """

    serial: str
    model: str
    android: str
    chip: str
    abi: str


@dataclass(frozen=True)
class Measured:
    """One run of benchmark_model.

    Attributes:
        milliseconds: for one image: median, or mean where the tool does not give it.
        load_memory_bytes: what the file added to the tool's memory; None: it does not say.
        note: what must be known of it: how much ran on the accelerator; "" where nothing must.
    """

    milliseconds: float
    load_memory_bytes: int | None
    note: str


@dataclass(frozen=True)
class PhoneTimes:
    """One file on a device: its time in each round, or why it was refused."""

    milliseconds: tuple[float, ...]
    refused: str | None
    load_memory_bytes: int | None
    note: str


@dataclass(frozen=True)
class PhoneRan:
    """What came of it.

    Attributes:
        phone: the device.
        tool: digest of the benchmark_model that was used.
        thermal: Android's thermal status before each round; None: it does not say.
        files: in the order they were given.
    """

    phone: Phone
    tool: str
    thermal: tuple[int | None, ...]
    files: tuple[PhoneTimes, ...]


def run(
    files: Sequence[Path],
    tool: Path,
    *,
    serial: str | None = None,
    accelerator: str = "cpu",
    threads: int = 1,
    rounds: int = 10,
    show: Callable[[int], None] = lambda _: None,
) -> PhoneRan:
    """Time files on a device.

    Args:
        files: the `.tflite` files.
        tool: benchmark_model, for the device's processor.
        serial: of the device; None: the only one.
        accelerator: of `ACCELERATORS`.
        threads: of the processor.
        rounds: how often each file is timed.
        show: called with the number of steps done, of files times rounds.

    Raises:
        UserError: no adb, no device, several, one that does not let us in, one that is full; a tool for
            another processor.
        ToolError: the connection is lost, or the tool does not do what it should.
    """
    with connected(serial) as device:
        phone = describe(device)
        _check_machine(tool, phone)
        with _folder(device) as folder:
            device.push(tool, f"{folder}/{TOOL}")
            _must(device.shell(f"chmod 755 {folder}/{TOOL}").status == 0, f"{TOOL} cannot be made executable")
            for number, file in enumerate(files):
                device.push(file, f"{folder}/{number}.tflite")
            times: list[list[Measured]] = [[] for _ in files]
            refused: dict[int, str] = {}
            thermal: list[int | None] = []
            for turn in range(rounds):
                thermal.append(_cooled(device))
                for number in range(len(files)):
                    if number not in refused:
                        found = _measure(device, folder, number, accelerator, threads)
                        if isinstance(found, Measured):
                            times[number].append(found)
                        else:
                            refused[number] = found
                    show(turn * len(files) + number + 1)
    return PhoneRan(
        phone,
        sha256(tool),
        tuple(thermal),
        tuple(_times(found, refused.get(number)) for number, found in enumerate(times)),
    )


def describe(device: Device) -> Phone:
    """What a device says of itself."""

    def properties(*names: str) -> str:
        values = [device.shell(f"getprop {name}") for name in names]
        return " ".join(said.text for said in values if said.status == 0 and said.text) or "unknown"

    return Phone(
        device.serial,
        properties("ro.product.manufacturer", "ro.product.model"),
        properties("ro.build.version.release", "ro.build.version.sdk"),
        properties("ro.soc.manufacturer", "ro.soc.model"),
        properties("ro.product.cpu.abi"),
    )


def parse(output: str) -> Measured | None:
    """What benchmark_model printed; None where it has no times.

    >>> parse("count=50 first=9 curr=9 min=9 max=9 avg=2.95034e+06 std=3").milliseconds
    2950.34
    """
    lines = list(_TIMES.finditer(output))
    summary = _SUMMARY.search(output)
    if not lines and summary is None:
        return None
    # The line before the last counts warming up.
    median, mean = (lines[-1][5], lines[-1][2]) if lines else (None, None)
    microseconds = float(median or mean or (summary[2] if summary else 0))
    memory = _MEMORY.search(output)
    return Measured(microseconds / 1000, round(float(memory[1]) * 2**20) if memory else None, _note(output))


def _note(output: str) -> str:
    nodes = _GPU_NODES.search(output)
    if nodes is not None:
        return (
            ""
            if nodes[1] == nodes[2]
            else f"{nodes[1]} of {nodes[2]} ops ran on the GPU, the others on the CPU"
        )
    return "the GPU was not used: it ran on the CPU" if any(words in output for words in _FELL_BACK) else ""


def _measure(device: Device, folder: str, number: int, accelerator: str, threads: int) -> Measured | str:
    """One run of the tool; why it refuses the file, where it does."""
    options = [
        f"--graph={number}.tflite",
        f"--num_threads={threads}",
        f"--num_runs={RUNS_A_ROUND}",
        f"--warmup_runs={WARMUP_RUNS}",
        "--warmup_min_secs=0",
        "--min_secs=0",
        f"--max_secs={SECONDS_A_ROUND}",
        ACCELERATORS[accelerator],
    ]
    # On the device too something ends what hangs, or what nobody waits for any more.
    command = f"cd {folder} && timeout {2 * SECONDS_A_ROUND} ./{TOOL} {shlex.join(options)}"
    said = device.shell(command, 2 * SECONDS_A_ROUND + 30.0)
    found = parse(said.text)
    if said.status == 0 and found is not None:
        return found
    lines = [line for line in said.text.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "rror:" in line]
    return (errors or lines or [f"{TOOL} ended with exit status {said.status}"])[-1].strip()


def _times(found: Sequence[Measured], refused: str | None) -> PhoneTimes:
    if refused is not None:
        return PhoneTimes((), refused, None, "")
    notes = dict.fromkeys(measured.note for measured in found if measured.note)
    memory = [m.load_memory_bytes for m in found if m.load_memory_bytes is not None]
    return PhoneTimes(tuple(m.milliseconds for m in found), None, max(memory, default=None), "; ".join(notes))


def _cooled(device: Device) -> int | None:
    """Wait until Android calls the device cool, for a while; its thermal status then."""
    end = time.monotonic() + SECONDS_TO_COOL
    while True:
        found = re.search(r"Thermal Status: (\d+)", device.shell("dumpsys thermalservice").text)
        status = int(found[1]) if found else None
        if status is None or status < WARM or time.monotonic() > end:
            return status
        time.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def _folder(device: Device) -> Iterator[str]:
    """A folder on the device; removed in the end, where the device is still there."""
    folder = f"/data/local/tmp/edgeprune-{os.getpid()}"
    made = device.shell(f"mkdir -p {folder}")
    if made.status != 0:
        raise ToolError(f"{device.serial}: {folder} cannot be made: {made.text}")
    try:
        yield folder
    except ToolError as error:
        try:
            device.shell(f"rm -rf {folder}")
        except ToolError:
            raise ToolError(f"{error}; {folder} is left on the device") from None
        raise
    except BaseException:
        with suppress(ToolError):
            device.shell(f"rm -rf {folder}")
        raise
    else:
        device.shell(f"rm -rf {folder}")


def _check_machine(tool: Path, phone: Phone) -> None:
    """A program for another processor does not start, and says nothing readable."""
    with tool.open("rb") as content:
        head = content.read(20)
    wanted = ELF_MACHINES.get(phone.abi)
    if head[:4] == b"\x7fELF" and wanted is not None and int.from_bytes(head[18:20], "little") != wanted:
        raise UserError(f"{tool} is for another processor than {phone.model}'s, {phone.abi}")


def _must(fine: bool, words: str) -> None:
    if not fine:
        raise ToolError(words)
