"""Damaged files of every kind that is read: one message or an answer, how long it takes, how much memory."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from robustness_runs import MODEL, SIZE_PX, reference

from converters.errors import EdgepruneError
from tests.support.mutations import changed_bytes, changed_values, mutated, one_byte

SECONDS, MEMORY_BYTES = 5.0, 1_000_000_000
HANG_SECONDS = 60
MESSAGES_KEPT = 12
PAGES_EVERY = 8


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        count: of mutations.
        damage: the file's new content, from a seed.
        path: where it is written.
        read: takes the file as the product does; whatever it raises but our own errors is a fault.
    """

    count: int
    damage: Callable[[int], bytes]
    path: Path
    read: Callable[[Path], object]


def mutate(name: str, work: Path) -> dict[str, Any]:
    """All mutations of a kind, in a process that is begun anew where one crashes it."""
    if not reference(work):
        raise AssertionError
    log = work / f"mutations-{name}.jsonl"
    log.write_text("")
    faults: list[str] = []
    count = 1
    while (done := len(log.read_text().splitlines())) < count:
        pid = os.fork()
        if not pid:
            _work(name, work, log, done)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        lines = log.read_text().splitlines()
        count = KINDS[name]
        if len(lines) < count:
            ended = "hangs" if status == -signal.SIGALRM else f"ends the process with {status}"
            with log.open("a") as file:
                file.write(json.dumps({"seed": len(lines), "end": "crash", "told": ended}) + "\n")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    faults = [f"seed {row['seed']}: {row['told']}" for row in rows if row["end"] in ("crash", "traceback")]
    faults += [
        f"seed {row['seed']}: {row['seconds']:.1f} s" for row in rows if row.get("seconds", 0) > SECONDS
    ]
    faults += [
        f"seed {row['seed']}: {row['bytes'] / 1e6:.0f} MB"
        for row in rows
        if row.get("bytes", 0) > MEMORY_BYTES
    ]
    return {
        "count": len(rows),
        "ends": dict(Counter(row["end"] for row in rows)),
        "most_seconds": max(row.get("seconds", 0) for row in rows),
        "most_bytes": max(row.get("bytes", 0) for row in rows),
        "faults": len(faults),
        "examples": faults[:MESSAGES_KEPT],
    }


def _work(name: str, work: Path, log: Path, first: int) -> None:
    """In the child: each mutation's end goes into the log before the next one is read."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        kind = MAKERS[name](work)
        _once(kind, 10**6)  # What is imported and built once.
        with log.open("a", buffering=1) as file:
            for seed in range(first, kind.count):
                signal.alarm(HANG_SECONDS)
                file.write(json.dumps({"seed": seed, **_once(kind, seed)}) + "\n")
                signal.alarm(0)
        status = 0
    except BaseException as error:
        import traceback

        (work / f"mutations-{name}.failed").write_text("".join(traceback.format_exception(error)))
    finally:
        import atexit

        atexit._run_exitfuncs()
        os._exit(status)


def _once(kind: Kind, seed: int) -> dict[str, Any]:
    kind.path.write_bytes(kind.damage(seed))
    processes = _reset_peaks()
    began = time.monotonic()
    told = ""
    try:
        kind.read(kind.path)
        end = "answer"
    except EdgepruneError as error:
        end, told = "message", str(error)[:200]
    except Exception as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        end, told = "traceback", f"{type(error).__name__} at {place}: {str(error)[:150]}"
    return {"end": end, "told": told, "seconds": time.monotonic() - began, "bytes": _peak(processes)}


def _reset_peaks() -> list[int]:
    """Let this process and its children count their largest memory from now on."""
    processes = [os.getpid(), *_children()]
    for pid in processes:
        try:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        except OSError:
            continue
    return processes


def _children() -> list[int]:
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return [int(pid) for pid in found.read_text().split()] if found.exists() else []


def _peak(processes: list[int]) -> int:
    """The largest resident memory of any of them since `_reset_peaks`, all of it, libraries too."""
    peaks = [0]
    for pid in {*processes, *_children()}:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        peaks += [1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    return max(peaks)


def _run(work: Path) -> Path:
    return work / "reference-folder"


def _tflite(work: Path) -> Kind:
    from converters import litert
    from converters.targets import Storage
    from tests.support.networks import Network

    net = Network(16)
    x = net.depthwise(net.conv(net.stem(), 32))
    gate = net.unary("LOGISTIC", net.conv(net.mean(x), 32))
    x = net.conv(net.binary("MUL", gate, x), 64)
    small = net.finish(net.linear(net.flatten(net.mean(x)), 10, zeros=0.8), Storage.INT8)
    real = (_run(work) / "files" / "block80-litert-arm64-int8.tflite").read_bytes()
    images = {size: np.zeros((1, 3, size, size), np.float32) for size in (16, SIZE_PX)}

    def read(path: Path) -> None:
        litert.inspect(path)
        litert.lint(path)
        model = litert.load(path)
        model.predict(images.get(model.input.shape[-1], images[SIZE_PX]))

    sources = (small, real)
    return Kind(KINDS["tflite"], lambda seed: mutated(sources[seed % 2], seed), work / "mutated.tflite", read)


def _package(part: str, name: str) -> Callable[[Path], Kind]:
    def make(work: Path) -> Kind:
        import shutil

        from converters import coreml

        package = work / f"mutated-{name}.mlpackage"
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(_run(work) / "files" / "block80-coreml-ios16.mlpackage", package)
        content = (package / part).read_bytes()
        image = np.zeros((1, 3, SIZE_PX, SIZE_PX), np.float32)

        def read(_: Path) -> None:
            coreml.inspect(package)
            coreml.load(package).predict(image)

        def damage(seed: int) -> bytes:
            if part.endswith(".bin"):  # Its records are few: every other time one of them is hit.
                starts = [
                    at for at in range(0, len(content), 64) if content[at : at + 4] == b"\xef\xbe\xad\xde"
                ]
                at = starts[seed % len(starts)]
                return changed_bytes(content, seed, at, at + 24) if seed % 2 else mutated(content, seed)
            if seed % 3 == 0:  # One byte, so that much of what is read is whole.
                return one_byte(content, seed)
            return changed_bytes(content, seed) if seed % 3 == 1 else mutated(content, seed)

        return Kind(KINDS[name], damage, package / part, read)

    return make


def _checkpoint(work: Path) -> Callable[[Path], object]:
    from edgeprune.models.build import build
    from edgeprune.models.weights import load_checkpoint

    model = build(MODEL, 3, SIZE_PX)
    return lambda path: load_checkpoint(model, path)


def _safetensors(work: Path) -> Kind:
    content = (_run(work) / "variants" / "dense.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])

    def damage(seed: int) -> bytes:
        if seed % 3 == 0:
            return mutated(content, seed)
        if seed % 3 == 1:
            return changed_bytes(content, seed, 0, 8 + length)
        text = json.dumps(changed_values(header, seed)).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return Kind(KINDS["safetensors"], damage, work / "mutated.safetensors", _checkpoint(work))


def _pt(work: Path) -> Kind:
    import zipfile

    import torch
    from safetensors.torch import load_file

    state = load_file(_run(work) / "variants" / "dense.safetensors")
    sources = []
    for zipped in (True, False):
        buffer = BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        sources.append(buffer.getvalue())
    with zipfile.ZipFile(BytesIO(sources[0])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))

    def damage(seed: int) -> bytes:
        if seed % 3 < 2:
            source = sources[seed % 3]
            return changed_bytes(source, seed) if seed % 2 else mutated(source, seed)
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:  # With the right checksum: the pickle itself is read.
            for name, content in members.items():
                archive.writestr(name, changed_bytes(content, seed) if name == pickled else content)
        return buffer.getvalue()

    return Kind(KINDS["pt"], damage, work / "mutated.pt", _checkpoint(work))


def _report(work: Path) -> Kind:
    import shutil

    from edgeprune.report import records, render

    folder = work / "mutated-report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(_run(work) / "thumbnails", folder / "thumbnails")
    content = (_run(work) / "report.json").read_bytes()
    data = json.loads(content)

    def damage(seed: int) -> bytes:
        if seed % 3 == 0:
            return changed_bytes(content, seed)
        return json.dumps(changed_values(data, seed)).encode()

    answers = itertools.count()

    def read(_: Path) -> None:
        report = records.read(folder)
        render.markdown(report)
        if next(answers) % PAGES_EVERY == 0:  # The page for people takes a hundred times as long.
            render.write_pages(report, folder)

    return Kind(KINDS["report"], damage, folder / "report.json", read)


def _toml(name: str, text: bytes, read: Callable[[Path], object]) -> Callable[[Path], Kind]:
    def make(work: Path) -> Kind:
        import tomli_w
        import tomllib

        content = text or (_run(work) / "recipe.toml").read_bytes()
        data = tomllib.loads(content.decode())

        def damage(seed: int) -> bytes:
            if seed % 3 == 0:
                return changed_bytes(content, seed)
            return tomli_w.dumps(changed_values(data, seed)).encode()

        return Kind(KINDS[name], damage, work / f"mutated-{name}.toml", read)

    return make


def _read_recipe(path: Path) -> object:
    from edgeprune import recipe

    return recipe.read(path)


def _read_budget(path: Path) -> object:
    from edgeprune import budget

    return budget.read(path)


BUDGET = b"""top1_drop_points = 0.5
[bytes]
coreml-ios16 = 1_100_000
[target.litert-arm64-int8]
bytes = 600_000
download_bytes = 500_000
top1_drop_points = 1.0
load_memory_bytes = 20_000_000
time_ratio = 0.6
"""


def _images(suffix: str, sources: Callable[[], list[bytes]]) -> Callable[[Path], Kind]:
    def make(work: Path) -> Kind:
        from edgeprune.data.loading import Found, decoded, listed_files
        from edgeprune.data.preprocessing import Preprocessing
        from edgeprune.errors import UserError

        files = sources()

        def damage(seed: int) -> bytes:
            content = files[seed % len(files)]
            if suffix == "png" and seed % 4 == 0:
                return resized_png(content, seed)
            if suffix == "png" and seed % 4 == 1:
                return with_checksums(one_byte(content, seed))
            return changed_bytes(content, seed) if seed % 3 else mutated(content, seed)

        def read(path: Path) -> None:
            listed = listed_files(path.parent, [Found(path.name, 0, path.stat())], Preprocessing(SIZE_PX))
            problems: list[str] = []
            decoded(listed, Preprocessing(SIZE_PX), problems, lambda _: None)
            if problems:
                raise UserError(problems)

        return Kind(KINDS[suffix], damage, work / f"mutated.{suffix}", read)

    return make


def _pixels(mode: str) -> Any:
    from PIL import Image

    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (64, 64, 4)).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (64, 64)).astype(np.uint16))
    return Image.fromarray(colours).convert(mode)


def _jpegs() -> list[bytes]:
    found = []
    for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("CMYK", {}), ("L", {})):
        buffer = BytesIO()
        _pixels(mode).save(
            buffer,
            "JPEG",
            exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
            **options,
        )
        found.append(buffer.getvalue())
    return found


def _pngs() -> list[bytes]:
    found = []
    for mode in ("RGB", "RGBA", "P", "L", "I;16", "1"):
        buffer = BytesIO()
        _pixels(mode).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def resized_png(content: bytes, seed: int) -> bytes:
    """Another width, height, depth or colour type, with the right checksum, as a hostile file has it."""
    random = np.random.default_rng(seed)
    header = bytearray(content[16:29])
    sizes = (0, 1, 64, 1000, 9000, 13_000, 20_000, 65_535, 2**31 - 1)
    kind = int(random.integers(0, 3))
    if kind < 2:
        struct.pack_into(">II", header, 0, int(random.choice(sizes)), int(random.choice(sizes)))
    if kind > 0:
        header[int(random.integers(8, 13))] = int(random.integers(0, 20))
    chunk = b"IHDR" + bytes(header)
    return content[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[33:]


def with_checksums(content: bytes) -> bytes:
    """The chunks of a PNG with the checksums of what is in them, so that it is read."""
    found, at = [content[:8]], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunk = content[at + 4 : at + 8 + length]
        found.append(struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        at += 12 + length
    return b"".join(found)


MLMODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MAKERS: dict[str, Callable[[Path], Kind]] = {
    "tflite": _tflite,
    "mlmodel": _package(MLMODEL, "mlmodel"),
    "weight.bin": _package(WEIGHTS, "weight.bin"),
    "manifest": _package("Manifest.json", "manifest"),
    "safetensors": _safetensors,
    "pt": _pt,
    "report": _report,
    "recipe": _toml("recipe", b"", _read_recipe),
    "budget": _toml("budget", BUDGET, _read_budget),
    "jpg": _images("jpg", _jpegs),
    "png": _images("png", _pngs),
}
FULL = {
    "tflite": 2400, "mlmodel": 1500, "weight.bin": 700, "manifest": 300, "safetensors": 1000, "pt": 1000,
    "report": 900, "recipe": 700, "budget": 300, "jpg": 600, "png": 600,
}  # fmt: skip
SHARE = float(os.environ.get("ROBUSTNESS_SHARE", "1"))  # For a first look: a part of the mutations.
KINDS = {name: max(int(SHARE * count), 1) for name, count in FULL.items()}
assert sum(FULL.values()) == 10_000
