"""A disk that is full at every write of a run in turn: a small file system, once for each write."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustness_runs import leftovers, one_message, recipe_of, reference, result, start

from converters.facts import sha256

SIZE_MB = 24
BALLAST = "ballast"
MOST_STARTS = 400
CHANGING = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink")
# What stays free when a folder is made: what libraries write into it themselves then stops in the middle.
LEFT_BYTES = (0, 65_536, 131_072)
NUMBERED = re.compile(
    r"(?<=/)(?:tmp|edgeprune-)[0-9a-z_]{8}|[0-9A-F-]{36}"
)  # Names that are drawn anew each time.


def full_disk(work: Path) -> dict[str, Any]:
    """Start the same run again and again; each time the disk is full at a write that had room before."""
    mount = work / "disk"
    expected = reference(work)
    with mounted(mount, f"size={SIZE_MB}m"):
        (mount / "tmp").mkdir()
        recipe = recipe_of(work, mount / "run")
        log, failed = work / "disk.log", work / "disk-failed.json"
        failed.write_text("[]")
        faults: list[str] = []
        statuses: Counter[int] = Counter()
        for _ in range(MOST_STARTS):
            log.unlink(missing_ok=True)
            before = len(json.loads(failed.read_text()))
            status = start(recipe, log, before=lambda: fill_at_next_write(mount, failed)).wait()
            keys = json.loads(failed.read_text())
            (mount / BALLAST).unlink(missing_ok=True)
            if len(keys) == before:
                break
            statuses[status] += 1
            told = judged(keys[-1], status, log, mount / "run", expected)
            faults += told
            print(f"{len(keys)} {keys[-1]}: {status} {told or ''}", flush=True)
        found = result(mount / "run") if status == 0 else {}
        left = leftovers(mount / "run")
    return {
        "writes": len(keys),
        "failed_at": keys,
        "statuses": {str(status): count for status, count in statuses.items()},
        "faults": faults,
        "same": found == expected,
        "left_behind": left,
    }


@contextmanager
def mounted(mount: Path, options: str) -> Iterator[None]:
    """A file system of its own in memory; needs root."""
    mount.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(mount):
        subprocess.run(["umount", str(mount)], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill_at_next_write(mount: Path, failed: Path) -> None:
    """In a run's process: fill the disk just before the first write that has not met a full one yet."""
    tempfile.tempdir = str(mount / "tmp")  # What TMPDIR says, read once.
    os.environ["XDG_CACHE_HOME"] = str(mount / "cache")
    done = json.loads(failed.read_text())
    kept_bytes: int | None = None  # What stays free; None: the disk was not filled yet.

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal kept_bytes
        if event not in CHANGING or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.path.abspath(os.fspath(arguments[0]))  # noqa: PTH100 (follows no link, opens nothing)
        inside = path.startswith(f"{mount}/") and path != f"{mount}/{BALLAST}"
        if not inside or (event == "open" and not writes(arguments[1:])):
            return
        if kept_bytes is not None:
            if kept_bytes == 0:  # Something may have been removed since, and have left room.
                fill(mount, 0)
            return
        name = NUMBERED.sub("*", path.removeprefix(f"{mount}/"))
        for left in LEFT_BYTES if event == "os.mkdir" else (0,):
            key = f"{event} {name}" + (f", {left} bytes left" if left else "")
            if key not in done:
                kept_bytes = left
                failed.write_text(json.dumps([*done, key]))
                fill(mount, left)
                return

    sys.addaudithook(watch)


def writes(arguments: tuple[Any, ...]) -> bool:
    """Whether what is opened is to be written."""
    mode, flags = arguments[0], arguments[1]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def fill(mount: Path, left_bytes: int) -> None:
    """Take all room but so much."""
    facts = os.statvfs(mount)
    more = facts.f_bavail * facts.f_frsize - left_bytes
    descriptor = os.open(mount / BALLAST, os.O_WRONLY | os.O_CREAT)
    try:
        if more > 0:
            os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, more)
    finally:
        os.close(descriptor)


def judged(key: str, status: int, log: Path, folder: Path, expected: dict[str, Any]) -> list[str]:
    """What is wrong with how a run took it; nothing where it went on without what it could not write."""
    faults = []
    if status != 0:
        told = one_message(log)
        faults += [f"{key}: exit {status}"] * (status not in (2, 3)) + ([f"{key}: {told}"] if told else [])
        if not told and "free some space" not in log.read_text() and "No space left" not in log.read_text():
            faults.append(f"{key}: the message does not say that the disk is full: {log.read_text()[-300:]}")
    for name, digest in expected["files"].items():
        path = folder / name
        if path.exists() and sha256(path) != digest:
            faults.append(f"{key}: {name} is not what it should be")
    for path in folder.rglob("*.json"):
        if ".tmp" not in str(path):
            try:
                json.loads(path.read_text())
            except ValueError:
                faults.append(f"{key}: {path.name} is half written")
    faults += [f"{key}: {name} was left" for name in leftovers(folder) if name.endswith(".tmp")]
    return faults


def page(found: dict[str, Any]) -> list[str]:
    """Lines of the page."""
    kinds = Counter(key.split(" ", 1)[0] for key in found["failed_at"])
    statuses = ", ".join(f"{count} with {status}" for status, count in sorted(found["statuses"].items()))
    end = {
        True: "The last start ended with the same bytes and scores as the undisturbed run.",
        False: "The last start did not end as the undisturbed run.",
        None: "It has not been run to its end: the writes behind these, those of the conversions above all, "
        "have not been tried.",
    }[found["same"]]
    return [
        f"A file system of {SIZE_MB} MB was filled to its last byte (or to 64 or 128 kB, where a folder is "
        f"made for what libraries write themselves) just before each of {found['writes']} different writes, "
        "temporary files and the cache among them, once each "
        f"({', '.join(f'{v} {k}' for k, v in kinds.items())}); each time the run was started again. Exit "
        f"status: {statuses}. Faults (no message, several, a file that is not whole, something left behind): "
        f"{len(found['faults'])}. {end}",
        *([""] if found["faults"] else []),
        *(f"- {fault}" for fault in found["faults"]),
    ]
