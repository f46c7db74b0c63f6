"""Kill, starve and damage: what runs and readers do then, counted.

    python benchmarks/robustness.py --work WORK kills      # ten runs, 50 kills; 10 minutes of one core
    python benchmarks/robustness.py --work WORK disk       # as root: it mounts a small file system
    python benchmarks/robustness.py --work WORK folders    # as root: two runs in one, copies, slow disks ...
    python benchmarks/robustness.py --work WORK mutations  # 10,000 damaged files
    python benchmarks/robustness.py --work WORK fuzz       # our own readers, where atheris is installed
    python benchmarks/robustness.py --work WORK page       # docs/results/robustness.md and .json

What is finished in WORK is kept: a step that was stopped goes on. `--again` forgets it first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STEPS = ("kills", "disk", "folders", "mutations", "fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--again", action="store_true", help="forget what this step found before")
    parser.add_argument("--only", nargs="+", help="parts of the step, by name or number")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no part begins later than this")
    parser.add_argument("step", choices=(*STEPS, "page"))
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1]))  # tests.support makes the damage
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    if options.step == "page":
        write_page(work)
        return
    kept = work / "found" / options.step
    began = time.monotonic()
    for name, part in parts_of(options.step, work).items():
        if options.only and name not in options.only:
            continue
        path = kept / f"{name}.json"
        if (path.exists() and not options.again) or time.monotonic() - began > options.seconds:
            continue
        found = measured(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{options.step} {name}: {json.dumps(found)[:600]}", flush=True)


def measured(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a part found, and what it took."""
    from robustness_runs import timed

    found, seconds, processor_seconds = timed(part)
    return {**found, "seconds": round(seconds, 1), "processor_seconds": round(processor_seconds, 1)}


def parts_of(step: str, work: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """What a step does, by name, in order."""
    if step in ("kills", "disk", "folders"):
        from robustness_runs import import_all, lead, make_images

        make_images(work)
        import_all()
        lead()
    if step == "kills":
        from robustness_kills import RUNS, killed_run

        return {f"{n}": lambda n=n: killed_run(n, work) for n in range(len(RUNS))}
    if step == "disk":
        from robustness_disk import full_disk

        return {"full": lambda: full_disk(work)}
    if step == "folders":
        from robustness_folders import PARTS

        return {name: lambda part=part: part(work) for name, part in PARTS.items()}
    if step == "mutations":
        from robustness_mutations import KINDS, mutate

        return {name: lambda name=name: mutate(name, work) for name in KINDS}
    from robustness_fuzz import TARGETS, fuzz

    return {name: lambda name=name: fuzz(name, work) for name in TARGETS}


def write_page(work: Path) -> None:
    """`docs/results/robustness.md` and `.json` from what is in the work folder."""
    import robustness_page

    # Messages name files: where they lay here is nobody's business.
    found = {
        step: {
            path.stem: json.loads(path.read_text().replace(str(work), "WORK"))
            for path in sorted((work / "found" / step).glob("*"))
        }
        for step in STEPS
    }
    robustness_page.write({step: parts for step, parts in found.items() if parts}, RESULTS)


if __name__ == "__main__":
    main()
