"""Run folders that others meddle with: a second run, a copy, a wrong clock, read-only, a slow disk."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustness_disk import CHANGING, mounted
from robustness_runs import (
    ENDED,
    Started,
    leftovers,
    one_message,
    recipe_of,
    reference,
    result,
    stage,
    start,
)

SLOW_SECONDS = 0.03
YEAR_SECONDS = 365 * 24 * 3600


def fresh(work: Path, name: str) -> tuple[Any, Path]:
    """A recipe whose run folder is new, and its log."""
    folder, log = work / name, work / f"{name}.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    return recipe_of(work, folder), log


def same(folder: Path, work: Path) -> bool:
    """Whether a run ended like the undisturbed one, and left nothing behind."""
    return result(folder) == reference(work) and not leftovers(folder)


def until(started: Started, ready: Callable[[], bool]) -> bool:
    """Wait for a moment of a run; False if it ended before."""
    while not ready():
        if started.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def two_at_once(work: Path) -> dict[str, Any]:
    """A second run of the same folder: four begun in the same moment, one while the first converts."""
    refused, faults = 0, []
    for attempt in range(4):
        recipe, log = fresh(work, "two")
        first = start(recipe, log)
        other = work / "two-second.log"
        other.unlink(missing_ok=True)
        time.sleep(0.05 * attempt)
        second = start(recipe, other)
        running, ended, said = _first_to_end(first, second, log, other)
        refused += ended == 2 and "another process is at work" in said.read_text()
        if one_message(said) or ended != 2:
            faults.append(f"started together: exit {ended}, {said.read_text()[-300:]}")
        going_on = until(running, lambda folder=recipe.output: any((folder / "variants").glob("dense.*")))
        if not going_on:
            faults.append("the other one ended too")
        if attempt < 3 and going_on:
            running.kill()
    if going_on:
        until(running, lambda: stage(recipe.output) == "converting")
        other.unlink(missing_ok=True)
        late = start(recipe, other).wait()
        refused += late == 2 and one_message(other) is None
        if running.wait() != 0:
            faults.append("the first run failed")
    return {"refused": refused, "of": 5, "same": same(recipe.output, work), "faults": faults}


def _first_to_end(first: Started, second: Started, log: Path, other: Path) -> tuple[Started, int, Path]:
    while True:
        for one, running, said in ((first, second, log), (second, first, other)):
            status = one.poll()
            if status is not None:
                return running, status, said
        time.sleep(0.005)


def copied(work: Path) -> dict[str, Any]:
    """Copies of a run folder taken while it is written, each gone on with."""
    recipe, log = fresh(work, "copied")
    draw = random.Random(0)
    started = start(recipe, log)
    copies = {}
    for number, wanted in enumerate(("training", "converting", "measuring", "reporting")):
        if not until(started, lambda wanted=wanted: stage(recipe.output) in (wanted, ENDED)):
            break
        time.sleep(draw.random() * 0.3)
        target = work / f"copy-{number}"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(["cp", "-r", str(recipe.output), str(target)], check=False, capture_output=True)
        copies[wanted] = target
    first = started.wait()
    ends = {}
    for wanted, target in copies.items():
        own = work / f"{target.name}.log"
        own.unlink(missing_ok=True)
        status = start(replace(recipe, output=target), own).wait()
        if status == 0:
            ends[wanted] = "same" if same(target, work) else "other bytes"
        else:
            ends[wanted] = one_message(own) or f"refused: {own.read_text()[-200:]}"
    return {"copies": ends, "first": first, "first_same": same(recipe.output, work)}


def wrong_clock(work: Path) -> dict[str, Any]:
    """A run stopped while it converts; its files dated a year ahead, its clock set ten years back."""
    recipe, log = fresh(work, "clock")
    started = start(recipe, log)
    until(started, lambda: (recipe.output / "rows" / "dense-coreml-ios16.json").exists())
    started.kill()
    ahead = time.time() + YEAR_SECONDS
    for path in recipe.output.rglob("*"):
        os.utime(path, (ahead, ahead))

    def back() -> None:
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() - 10 * YEAR_SECONDS
        time.time_ns = lambda: real_ns() - 10 * YEAR_SECONDS * 10**9

    status = start(recipe, log, before=back).wait()
    return {"status": status, "same": status == 0 and same(recipe.output, work)}


def read_only(work: Path) -> dict[str, Any]:
    """Folders that cannot be written to: of the run, new, half way and finished; of the cache."""
    mount, found = work / "read-only", {}
    cli = [sys.executable, "-m", "edgeprune.cli"]

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(mount)], check=True)

    with mounted(mount, "size=64m"):
        recipe = recipe_of(work, mount / "run")
        remount("ro")
        found["new"] = refusal(recipe, work)
        remount("rw")
        begun = start(recipe, work / "read-only-half.log")
        until(begun, lambda: (recipe.output / "rows" / "dense-coreml-ios16.json").exists())
        begun.kill()
        remount("ro")
        found["half way"] = refusal(recipe, work)
        remount("rw")
        shutil.rmtree(recipe.output)
        shutil.copytree(work / "reference-folder", recipe.output)
        (mount / "cache" / "edgeprune" / "checked").mkdir(parents=True)
        remount("ro")
        found["finished, run again"] = refusal(recipe, work)
        for name, arguments in (
            ("report", ["report", str(recipe.output)]),
            ("inspect", ["inspect", str(recipe.output / "files" / "dense-litert-arm64-int8.tflite")]),
        ):
            done = subprocess.run([*cli, *arguments], capture_output=True, text=True, check=False)
            said = done.stderr.strip().splitlines()
            found[name] = f"exit {done.returncode}" + (f": {said[-1]}" if done.returncode else "")
        again = recipe_of(work, work / "read-only-cache")
        shutil.rmtree(again.output, ignore_errors=True)

        def cache() -> None:
            os.environ["XDG_CACHE_HOME"] = str(mount / "cache")

        log = work / "read-only-cache.log"
        log.unlink(missing_ok=True)
        started = start(replace(again, targets=again.targets[:1]), log, streamed=True, before=cache)
        trains = until(started, lambda: any(again.output.glob("variants/dense.*")))
        if trains:
            started.kill()
        found["cache"] = "trains" if trains else one_message(log) or f"refused: {log.read_text()[-300:]}"
    return found


def refusal(recipe: Any, work: Path) -> str:
    """How a run that cannot be written ends."""
    log = work / "read-only.log"
    log.unlink(missing_ok=True)
    status = start(recipe, log).wait()
    if status == 0:
        return "exit 0"
    told = one_message(log) or next(
        line for line in log.read_text().splitlines() if line.startswith("error: ")
    )
    return f"exit {status}: {told}"


def slow(work: Path) -> dict[str, Any]:
    """Every opening, folder and renaming in the run folder takes 30 ms longer, as over a network."""
    recipe, log = fresh(work, "slow")
    counted = work / "slow-counted"
    counted.write_bytes(b"")

    def delay() -> None:
        prefix = f"{recipe.output}/"

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            named = event in CHANGING and isinstance(arguments[0], (str, os.PathLike))
            if named and str(arguments[0]).startswith(prefix):
                os.write(descriptor, b".")
                time.sleep(SLOW_SECONDS)

        descriptor = os.open(counted, os.O_WRONLY | os.O_APPEND)
        sys.addaudithook(watch)

    status = start(recipe, log, before=delay).wait()
    return {
        "status": status,
        "delays": counted.stat().st_size,
        "same": status == 0 and same(recipe.output, work),
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "two": two_at_once,
    "copied": copied,
    "clock": wrong_clock,
    "read-only": read_only,
    "slow": slow,
}


def page(found: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the page."""
    lines = ["| what | found |", "|---|---|"]
    told = {name: {k: v for k, v in part.items() if "seconds" not in k} for name, part in found.items()}
    if "two" in told:
        part = told["two"]
        ended = "the same" if part["same"] else "otherwise"
        told_faults = "".join(f"; {fault}" for fault in part["faults"])
        lines.append(
            "| two runs in one folder, four times begun together, once later | one of them refused with one "
            f"message (exit 2): {part['refused']} of {part['of']}; the other ended {ended}{told_faults} |"
        )
    for when, end in told.get("copied", {}).get("copies", {}).items():
        lines.append(f"| copied while {when}, the copy gone on with | {end} |")
    for name, words in (
        ("clock", "files dated a year ahead, then a clock ten years back"),
        ("slow", f"{SLOW_SECONDS * 1000:.0f} ms more for everything that is opened, made or renamed"),
    ):
        if name in told:
            part = told[name]
            times = f" ({part['delays']} times)" if "delays" in part else ""
            lines.append(f"| {words}{times} | {'the same' if part['same'] else part} |")
    for name, end in told.get("read-only", {}).items():
        lines.append(f"| read-only: {name} | {end.replace('|', '/')} |")
    return lines
