"""Prepares what an emulated runtime needs, in a folder of this project; no root, nothing installed.

    python -m converters.runtimes.prepare arm64 | x86-sparse

- x86-sparse: qemu's user emulator, where it is not installed already.
- arm64: that, Debian's Python for ARM with the libraries it depends on, and LiteRT's wheels for ARM.

Packages come from wherever this machine's apt and pip get theirs. apt works on a private state, in which
nothing is installed and the architecture is ARM, so that it fetches a package with all that it depends on. A
prepared folder is moved into place whole: a preparation that was stopped starts again.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from converters.errors import EdgepruneError, ToolError, UserError
from converters.files import explained, remove, replacing
from converters.runtimes.environments import emulator, prepared, runtime
from converters.runtimes.running import FileRun, run_files

# 2.2 and 2.3 crash under qemu 7.2 when an interpreter is made.
LITERT = "2.1.6"
# The oldest systems it has wheels for.
WHEEL_PLATFORM = "manylinux_2_27_aarch64"
DEBIAN_PACKAGES = ("python3", "libstdc++6")
EMULATORS = ("qemu-x86_64", "qemu-aarch64")
# Debian 13 renamed the one to the other.
EMULATOR_PACKAGES = ("qemu-user-static", "qemu-user")
DEBIAN_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MESSAGE_LINES = 4
CHECK_VALUES = (-1.0, 0.0, 2.5, -0.5)


def main() -> None:
    """Prepare the named runtime and run a file on it."""
    parser = argparse.ArgumentParser(prog="python -m converters.runtimes.prepare", description=_summary())
    parser.add_argument("runtime", choices=tuple(PREPARATIONS))
    name = parser.parse_args().runtime
    try:
        PREPARATIONS[name]()
        version = check(name)
    except EdgepruneError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_status)
    _say(f"{name}: {version} runs ({runtime(name).description})")


def prepare_x86_sparse() -> None:
    """Find or fetch the emulator of x86 processors."""
    _prepare_emulator("qemu-x86_64")


def prepare_arm64() -> None:
    """Find or fetch the emulator of ARM processors, and what runs under it."""
    _prepare_emulator("qemu-aarch64")
    folder = prepared("arm64")
    if (folder / "site" / f"ai_edge_litert-{LITERT}.dist-info").is_dir():
        return
    _need("apt-get", "dpkg")
    with built(folder) as work:
        _say("arm64: fetching Debian's Python for ARM")
        unpack(fetch("arm64", DEBIAN_PACKAGES, work / "debs"), work / "root")
        link_libraries(work / "root")
        _say(f"arm64: fetching LiteRT {LITERT} for ARM")
        _unzip(_wheels(python_version(work / "root"), work / "wheels"), work / "site")
        for fetched in ("debs", "wheels"):
            shutil.rmtree(work / fetched)


PREPARATIONS: dict[str, Callable[[], None]] = {"x86-sparse": prepare_x86_sparse, "arm64": prepare_arm64}


def check(name: str) -> str:
    """Run a file of one op on a prepared runtime; returns the runtime's version.

    Raises:
        ToolError: it does not run, or gives something else than the op does.
    """
    image = np.array(CHECK_VALUES, np.float32).reshape(1, -1)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder, "check.tflite")
        path.write_bytes(_one_op(image.shape))
        ran = run_files([FileRun(path, image)], runtime(name))
    outputs = ran.answers[0].outputs
    if outputs is None or not np.array_equal(outputs, np.maximum(image, 0)):
        raise ToolError(f"{name}: {ran.version} does not compute max(x, 0): {ran.answers[0]}")
    return ran.version


def python_version(root: Path) -> str:
    """Version of the Python below `root`: "3.11".

    Raises:
        ToolError: there is none.
    """
    link = root / "usr" / "bin" / "python3"
    if not link.is_symlink():
        raise ToolError(f"Debian's package of Python has no {link.name}")
    return link.readlink().name.removeprefix("python")


def _prepare_emulator(name: str) -> None:
    try:
        emulator(name)
    except UserError:
        _need("apt-get", "dpkg")
        _fetch_emulator(name)


def _fetch_emulator(name: str) -> None:
    for package in EMULATOR_PACKAGES:
        _say(f"qemu: fetching {package}")
        with built(prepared("qemu")) as work:
            unpack(fetch(_own_architecture(), [package], work / "debs", alone=True), work / "root")
            shutil.rmtree(work / "debs")
            keep_emulators(work / "root" / "usr" / "bin")
        if list((prepared("qemu") / "root" / "usr" / "bin").glob(f"{name}*")):
            return
    raise ToolError(f"no {name} in Debian's {' or '.join(EMULATOR_PACKAGES)}")


def keep_emulators(folder: Path) -> None:
    """Drop those of the other 30 processors: 10 MB each."""
    for program in folder.iterdir():
        if program.name.removesuffix("-static") not in EMULATORS:
            program.unlink()


def _own_architecture() -> str:
    machine = platform.machine()
    if machine not in DEBIAN_ARCHITECTURES:
        raise UserError(f"no emulator is fetched for {machine}: install qemu's user emulation yourself")
    return DEBIAN_ARCHITECTURES[machine]


# --- Debian packages ----------------------------------------------------------------------------------------


def fetch(architecture: str, packages: Sequence[str], folder: Path, alone: bool = False) -> list[Path]:
    """Download packages, with all they depend on unless `alone`, without installing anything."""
    options = _private_state(architecture, folder)
    unlisted = (
        f"apt lists no {architecture} packages: are its mirrors reached, and do they have that architecture?"
    )
    told = run_tool(["apt-get", *options, "--quiet", "update"], unlisted)
    if not list((folder / "state" / "lists").glob("*_Packages*")):  # which apt calls a success
        raise ToolError("\n".join([unlisted, *told]))
    install = ["install", "--yes", "--download-only", "--no-install-recommends"]
    what = f"apt cannot download {', '.join(packages)} for {architecture}:"
    if alone:
        run_tool(["apt-get", *options, "--quiet", "download", *packages], what, folder / "cache" / "archives")
    else:
        run_tool(["apt-get", *options, "--quiet", *install, *packages], what)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _private_state(architecture: str, folder: Path) -> list[str]:
    """Options for an apt that has installed nothing; its sources, keys and proxies stay the machine's."""
    state, cache = folder / "state", folder / "cache"
    for made in (state / "lists" / "partial", cache / "archives" / "partial"):
        made.mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": state.resolve(),
        "Dir::State::status": (state / "status").resolve(),
        "Dir::Cache": cache.resolve(),
        # Where root starts it, apt would fetch as a user who may not write here.
        "APT::Sandbox::User": "root",
    }
    return [f"--option={key}={value}" for key, value in settings.items()]


def unpack(packages: Sequence[Path], root: Path) -> None:
    """Extract Debian packages into a new folder; nothing of theirs is run."""
    root.mkdir()
    for package in packages:
        run_tool(["dpkg", "--extract", str(package), str(root)], f"dpkg cannot unpack {package.name}:")


def link_libraries(root: Path) -> None:
    """Add /lib where packages no longer bring it themselves: programs look for their loader there."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


# --- Wheels -------------------------------------------------------------------------------------------------


def _wheels(python: str, folder: Path) -> list[Path]:
    """Download LiteRT for ARM with what it depends on."""
    wanted = ["--platform", WHEEL_PLATFORM, "--python-version", python, "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "--quiet", "download", *wanted, "--dest", str(folder)]
    run_tool(
        [*command, f"ai-edge-litert=={LITERT}"], f"pip cannot download LiteRT {LITERT} for Python {python}:"
    )
    return sorted(folder.glob("*.whl"))


def _unzip(wheels: Sequence[Path], site: Path) -> None:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


# --- Small things -------------------------------------------------------------------------------------------


def _one_op(shape: tuple[int, ...]) -> bytes:
    """A `.tflite` file that computes max(x, 0) of one tensor."""
    from ai_edge_litert import schema_py_generated as schema

    from converters.litert.graph import Graph

    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    model.subgraphs = [schema.SubGraphT()]
    model.subgraphs[0].tensors, model.subgraphs[0].operators = [], []
    graph = Graph(model)
    x, y = (graph.add_tensor(name, shape, schema.TensorType.FLOAT32) for name in "xy")
    graph.ops.append(graph.make_op("RELU", [x], [y]))
    graph.subgraph.inputs, graph.subgraph.outputs = np.array([x], np.int32), np.array([y], np.int32)
    return graph.to_bytes()


@contextmanager
def built(folder: Path) -> Iterator[Path]:
    """Give an empty folder to build in, moved to `folder` at the end; what a killed one left is removed."""
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as work:
        remove(work)
        work.mkdir()
        yield work


def _need(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not found: this runtime is made of Debian's packages, fetched by "
            "apt-get and unpacked by dpkg, so preparing it needs Debian or a system made from it"
        )


def run_tool(command: Sequence[str], failure: str, folder: Path | None = None) -> list[str]:
    """Run a program; returns the last lines it said, complaints before others.

    Raises:
        ToolError: it failed: `failure`, then those lines.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    told = (done.stderr.strip() or done.stdout.strip()).splitlines()[-MESSAGE_LINES:]
    if done.returncode:
        raise ToolError("\n".join([failure, *told]))
    return told


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _summary() -> str:
    return "Prepare what an emulated runtime needs, without root, and run a file on it."


if __name__ == "__main__":
    main()
