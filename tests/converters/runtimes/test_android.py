"""Phones over adb: the tool's output, and the whole road against a real adb server and a real adbd.

adbd is Debian's (package adbd, from Debian 13 on; needs root). Where it is unpacked in a folder of its own,
with the libraries it depends on, EDGEPRUNE_ADBD_ROOT names that folder, which is then the device's root. What
it runs in place of benchmark_model is a script that prints as the tool does: nothing here has timed a phone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converters.errors import EdgepruneError, ToolError, UserError
from converters.runtimes import adb, android
from tests.support.runs import write_network

ADB = shutil.which("adb")
ROOT = os.environ.get("EDGEPRUNE_ADBD_ROOT")
ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
needs_adb = pytest.mark.skipif(ADB is None, reason="adb is not installed")
needs_adbd = pytest.mark.skipif(
    ADB is None or os.geteuid() != 0 or not (ROOT or Path(ADBD).exists()),
    reason="adb, adbd (Debian 13's package, or EDGEPRUNE_ADBD_ROOT) and root are needed",
)
TOOL = """#!/bin/sh
for option; do case $option in --graph=1.tflite) slower=1;; esac; done
[ -e refuse ] && echo "ERROR: Didn't find op for builtin opcode" && exit 1
{wait}
echo "INFO: STARTING!"
echo "INFO: Initialized session in 12.3ms."
echo "count=3 first=9000 curr=8000 min=8000 max=9000 avg=8500 std=300"
echo "count=10 first=9 curr=9 min=9 max=9 avg=9 std=0 p5=1 median=$((4000 + ${slower:-0} * 4000)) p95=9"
echo "Inference timings in us: Init: 12345, First inference: 9, Warmup (avg): 8, Inference (avg): 9"
echo "Memory footprint delta from the start of the tool (MB): init=1.5 overall=4.25"
"""

# As three releases print it.
OLD = """STARTING!
Loaded model ./mobilenet_v1_1.0_224.tflite
Initialized session in 17.187ms.
count=1 curr=3512391

count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 4e+06, Warmup (avg): 4e6, Inference (avg): 2.95034e+06
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""
NEW = """INFO: STARTING!
INFO: count=3 first=9537 curr=9431 min=9431 max=9537 avg=9480.33 std=43 p5=9431 median=9473 p95=9537
INFO: count=25 first=18753 curr=14099 min=14007 max=195121 avg=145528 std=1 p5=140545 median=141253 p95=187533
INFO: Inference timings in us: Init: 9231, First inference: 1875, Warmup (avg): 2e+05, Inference (avg): 145528
INFO: Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
GPU = """INFO: Created TensorFlow Lite delegate for GPU.
VERBOSE: Replacing 60 out of 64 node(s) with delegate (TfLiteGpuDelegateV2) node, yielding 3 partitions.
count=25 first=5 curr=5 min=5 max=5 avg=5120 std=1
Overall peak memory footprint (MB) via periodic monitoring: 120.3
"""


@pytest.mark.parametrize(
    ("output", "milliseconds", "memory_bytes", "note"),
    [
        (OLD, 2950.34, 48_324_569, ""),
        (NEW, 141.253, 76_976_174, ""),
        (GPU, 5.12, None, "60 of 64 ops ran on the GPU, the others on the CPU"),
        (GPU.replace("60 out", "64 out"), 5.12, None, ""),
        (
            GPU.replace("TfLiteGpuDelegateV2", "LITERT_CL"),
            5.12,
            None,
            "60 of 64 ops ran on the GPU, the others on the CPU",
        ),
        (f"the graph will not be executed by the delegate\n{OLD}", 2950.34, 48_324_569, "it ran on the CPU"),
    ],
    ids=["2020", "2026", "partly on the GPU", "all on the GPU", "by ML Drift", "fell back"],
)
def test_what_benchmark_model_prints_is_read(
    output: str, milliseconds: float, memory_bytes: int | None, note: str
) -> None:
    found = android.parse(output)
    assert found is not None
    assert found.milliseconds == pytest.approx(milliseconds)
    assert found.load_memory_bytes == memory_bytes
    assert note in found.note
    assert bool(note) == bool(found.note)


@pytest.mark.parametrize("output", ["", "ERROR: Failed to load model", "count=1 curr=3512391"])
def test_output_without_times_has_none(output: str) -> None:
    assert android.parse(output) is None


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_network(tmp_path / f"{name}.tflite", width=16) for name in ("dense", "sparse")]


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    return script(tmp_path / "benchmark_model")


def script(path: Path, wait: str = "") -> Path:
    path.write_text(TOOL.replace("{wait}", wait))
    return path


def test_without_adb(files: list[Path], tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    with pytest.raises(UserError, match="adb is not installed: install Android's platform tools"):
        android.run(files, tool)


# --- A real adb server --------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """Of an adb server of our own, which is gone in the end."""
    number = free_port()
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(number))
    monkeypatch.setenv("ADB_MDNS", "0")
    monkeypatch.setenv("HOME", str(tmp_path))
    yield number
    if listens(number):
        subprocess.run(["adb", "kill-server"], capture_output=True, check=False)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@needs_adb
def test_without_a_device_and_no_server_is_left(files: list[Path], tool: Path, port: int) -> None:
    with pytest.raises(UserError, match="no Android device is connected: plug one in"):
        android.run(files, tool)
    assert not listens(port)


@contextlib.contextmanager
def server_saying(port: int, devices: str) -> Iterator[None]:
    """An adb server that has these devices and nothing else, in its protocol: a length in hex, a text."""
    listener = socket.create_server(("127.0.0.1", port))

    def answer(text: str) -> bytes:
        return b"OKAY" + f"{len(text):04x}{text}".encode()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    request = client.recv(int(client.recv(4) or b"0", 16)).decode()
                    replies = {"host:version": "0029", "host:devices": devices}
                    known = replies.get(request)
                    client.sendall(b"FAIL0002no" if known is None else answer(known))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@needs_adb
@pytest.mark.parametrize(
    ("devices", "serial", "message"),
    [
        ("ABC\tunauthorized\n", None, "ABC has not allowed this computer: unlock it"),
        ("ABC\toffline\n", None, "ABC does not answer: unplug it"),
        (
            "ABC\tdevice\nDEF\tdevice\n",
            None,
            "2 Android devices are connected: name one with --device: ABC, DEF",
        ),
        ("ABC\tdevice\n", "XYZ", "--device XYZ: not connected; there is ABC"),
        (
            "ABC\tno permissions (missing udev rules?); see [http://x]\n",
            None,
            "ABC may not be opened by this user",
        ),
        ("ABC\thost\n", None, "ABC is in state 'host'"),
    ],
)
def test_a_device_that_cannot_be_used(
    devices: str, serial: str | None, message: str, port: int, files: list[Path], tool: Path
) -> None:
    with server_saying(port, devices), pytest.raises(UserError) as raised:
        android.run(files, tool, serial=serial)
    assert message in str(raised.value)
    assert len(raised.value.problems) == 1


# --- A real device side -------------------------------------------------------------------------------------


class Adbd:
    """A daemon that is started, and what it calls /data/local/tmp."""

    def __init__(self) -> None:
        port = free_port()
        command = ["chroot", ROOT, ADBD] if ROOT else [ADBD]
        environment = {"ADBD_PORT": str(port), "HOME": "/tmp", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        self.folder = Path(f"{ROOT or ''}/data/local/tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.serial = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not listens(port):
            assert self.process.poll() is None
            time.sleep(0.02)
        subprocess.run(["adb", "connect", self.serial], capture_output=True, check=True)
        while self.state() != "device":
            time.sleep(0.02)

    def state(self) -> str:
        said = subprocess.run(
            ["adb", "-s", self.serial, "get-state"], capture_output=True, text=True, check=False
        )
        return said.stdout.strip()

    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("edgeprune-*"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def device(port: int) -> Iterator[Adbd]:
    found = Adbd()
    yield found
    found.end()
    for name in found.left():
        shutil.rmtree(found.folder / name)


def running(name: str) -> list[str]:
    """Processes whose command has a word in it."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [command for command in commands if name in command]


@needs_adbd
def test_files_are_timed_in_turns_and_nothing_is_left(device: Adbd, files: list[Path], tool: Path) -> None:
    steps: list[int] = []
    ran = android.run(files, tool, rounds=3, threads=2, show=steps.append)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [times.milliseconds for times in ran.files] == [(4.0,) * 3, (8.0,) * 3]
    assert ran.files[0].load_memory_bytes == round(4.25 * 2**20)
    assert ran.phone.serial == device.serial
    assert len(ran.thermal) == 3
    assert device.left() == []


@needs_adbd
def test_a_file_that_is_refused_is_told_and_the_others_timed(
    device: Adbd, files: list[Path], tmp_path: Path
) -> None:
    tool = script(tmp_path / "tool", '[ "$slower" ] && echo "ERROR: Failed to apply delegate" && exit 1')
    ran = android.run(files, tool, rounds=2)
    assert ran.files[0].milliseconds == (4.0, 4.0)
    assert (ran.files[1].milliseconds, ran.files[1].refused) == ((), "ERROR: Failed to apply delegate")


@needs_adbd
def test_two_real_devices_are_told_apart(device: Adbd, files: list[Path], tool: Path) -> None:
    other = Adbd()
    try:
        with pytest.raises(UserError, match=r"2 Android devices are connected: name one with --device"):
            android.run(files, tool, rounds=1)
        ran = android.run(files, tool, rounds=1, serial=other.serial)
        assert ran.phone.serial == other.serial
    finally:
        other.end()


@needs_adbd
def test_a_full_device(device: Adbd, files: list[Path], tmp_path: Path) -> None:
    tool = script(tmp_path / "tool")
    with tool.open("a") as content:
        content.write(f"# {'x' * 300_000}\n")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(device.folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(UserError, match=r"is full: free at least 3.* bytes on it for tool"):
            android.run(files, tool)
        assert device.left() == []
    finally:
        subprocess.run(["umount", str(device.folder)], check=True)


@needs_adbd
@pytest.mark.parametrize("cut", ["the device is unplugged", "the server goes away"])
def test_a_connection_that_is_lost_in_the_middle(
    cut: str, device: Adbd, files: list[Path], tmp_path: Path
) -> None:
    tool = script(tmp_path / "tool", "sleep 3")
    ends: Callable[[], object] = {
        "the device is unplugged": device.end,
        "the server goes away": lambda: subprocess.run(
            ["adb", "kill-server"], capture_output=True, check=False
        ),
    }[cut]
    failure: list[EdgepruneError] = []

    def measure() -> None:
        try:
            android.run(files, tool, rounds=1)
        except EdgepruneError as error:
            failure.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    while not running("tool --graph=0.tflite") and not running("benchmark_model --graph=0.tflite"):
        time.sleep(0.02)
    ends()
    thread.join()
    (error,) = failure
    assert isinstance(error, ToolError)
    assert str(error).startswith(f"the connection to {device.serial} was lost: ")
    assert "is left on the device" in str(error)
    while running("benchmark_model --graph=0.tflite"):  # adbd, or what it left behind, ends it
        time.sleep(0.05)
    assert not running(f"-s {device.serial} shell")


@needs_adbd
def test_what_hangs_is_ended(device: Adbd) -> None:
    with adb.connected() as found, pytest.raises(ToolError, match=r"was not done after 0.5 s"):
        found.shell("sleep 2", limit_s=0.5)
    assert not running(f"-s {device.serial} shell")
