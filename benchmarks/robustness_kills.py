"""Ten runs, each killed five times at random moments and started again, compared with one never stopped."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from robustness_runs import (
    ENDED,
    Started,
    leftovers,
    precise,
    recipe_of,
    reference,
    result,
    stage,
    start,
)

RUNS = (
    "streamed", "folder", "streamed", "folder", "streamed",
    "folder", "folder", "streamed", "folder", "folder",
)  # fmt: skip
WORDS = {"folder": "kept in memory", "streamed": "decoded as needed"}
POLL_SECONDS = 0.004
# In the order of a run: each kill of a run comes in a later stage than the one before.
PLANS = (
    ("training", "training", "converting", "measuring", "reporting"),
    ("starting a training", "training", "training", "converting", "examining"),
    ("training", "converting", "converting", "measuring", "reporting"),
)
TYPICAL_SECONDS = {
    "starting a training": 0.6, "training": 1.0, "converting": 3.0, "measuring": 0.2, "examining": 0.3,
    "reporting": 0.3,
}  # fmt: skip
ORDER = (*TYPICAL_SECONDS, ENDED)


def killed_run(number: int, work: Path) -> dict[str, Any]:
    """One of the ten: killed, started again until it is done, and compared."""
    images = RUNS[number]
    folder, log = work / f"kills-{number}", work / f"kills-{number}.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    recipe = recipe_of(work, folder)
    draw = random.Random(number)
    hits = []
    for wanted in PLANS[number % len(PLANS)]:
        started = start(recipe, log, streamed=images == "streamed")
        if _kill_in(started, folder, wanted, draw):
            hits.append(precise(folder, stage(folder), recipe.dense.epochs))
    status = start(recipe, log, streamed=images == "streamed").wait()
    found, expected = (result(folder) if status == 0 else {}), reference(work)
    return {
        "images": images,
        "kills": hits,
        "status": status,
        "same": found == expected,
        "files": len(expected["files"]),
        "scores": len(expected["scores"]),
        "resumed": log.read_text().count(": goes on after epoch"),
        "left_behind": leftovers(folder),
        "differs": [
            f"{kind} {key}"
            for kind in expected
            for key, value in expected[kind].items()
            if found.get(kind, {}).get(key) != value
        ],
    }


def _kill_in(started: Started, folder: Path, wanted: str, draw: random.Random) -> bool:
    """Kill a run at a random moment of a stage, or as soon as it is past it; whether it still ran."""
    left = draw.random() * TYPICAL_SECONDS[wanted]
    last = time.monotonic()
    page = folder / "report.html"
    page.unlink(missing_ok=True)
    while True:
        if started.poll() is not None:
            return False
        now, here = time.monotonic(), stage(folder)
        if here == wanted:
            left -= now - last
        if left <= 0 or ORDER.index(here) > ORDER.index(wanted):
            started.kill()
            return True
        last = now
        time.sleep(POLL_SECONDS)


def page(found: list[dict[str, Any]]) -> list[str]:
    """Lines of the page."""
    hits = Counter(hit for run in found for hit in run["kills"])
    same = sum(run["same"] for run in found)
    return [
        f"{len(found)} runs, {sum(hits.values())} kills (SIGKILL to all processes of a run at once, at "
        f"random moments), each run started again until it was done: {same} of {len(found)} ended with the "
        "same bytes of every exported file and of the weights, and the same scores, as the run that was "
        "never stopped. The state of a training is kept after every step: each goes on within an epoch.",
        "",
        "| killed while | kills |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in hits.most_common()),
        "",
        "| run | images | kills | files and weights compared | rows of scores compared | same |",
        "|---|---|---|---|---|---|",
        *(
            f"| {number} | {WORDS[run['images']]} | {len(run['kills'])} | {run['files']} | {run['scores']} | "
            f"{'yes' if run['same'] else ', '.join(run['differs']) or 'no'} |"
            for number, run in enumerate(found, 1)
        ),
    ]
