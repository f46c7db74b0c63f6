"""`docs/results/robustness.md` and `.json`, from what the steps of `robustness.py` found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import robustness_disk
import robustness_folders
import robustness_kills
from litert_files import provenance
from robustness_mutations import FULL, MEMORY_BYTES, SECONDS

HEAD = """# What happens when runs are killed and files damaged

Real runs of the whole road (a small network, `timm/test_efficientnet` at 32 px: dense and with 80 % zeros in
blocks; trained, converted to Core ML and LiteRT, measured, reported), disturbed; and damaged files of every
kind that is read. Made by `benchmarks/robustness.py`; all figures are in [robustness.json](robustness.json).
"""


def write(found: dict[str, dict[str, Any]], folder: Path) -> None:
    """Both files."""
    facts = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    lines = [HEAD, f"Measured on {facts['date']}, {facts['processor']}, one core; {versions}.\n"]
    if "kills" in found:
        ordered = [found["kills"][name] for name in sorted(found["kills"], key=int)]
        lines += ["## Killed and started again\n", *robustness_kills.page(ordered), ""]
    if "disk" in found:
        lines += ["## A full disk\n", *robustness_disk.page(found["disk"]["full"]), ""]
    if "folders" in found:
        lines += ["## Run folders that others meddle with\n", *robustness_folders.page(found["folders"]), ""]
    if "mutations" in found:
        lines += ["## Damaged files\n", *damaged(found["mutations"]), ""]
    if "fuzz" in found:
        lines += ["## Led by coverage\n", *fuzzed(found["fuzz"]), ""]
    (folder / "robustness.md").write_text("\n".join(lines).rstrip() + "\n")
    told = {"provenance": facts, **found}
    (folder / "robustness.json").write_text(json.dumps(told, indent=1) + "\n")


def damaged(found: dict[str, Any]) -> list[str]:
    """Lines on mutated files."""
    total = sum(part["count"] for part in found.values())
    faults = sum(part["faults"] for part in found.values())
    lines = [
        f"{total:,} mutated files: bytes, words and offsets changed, files cut, values replaced by others, "
        "headers that claim other sizes with the right checksum. Each is to give an answer or one message of "
        f"ours, within {SECONDS:.0f} s and {MEMORY_BYTES / 1e9:.0f} GB of resident memory of the process "
        f"(libraries included) and of the one that LiteRT runs in. Those that do not: {faults}.",
        "",
        "| kind | files | answers | messages | tracebacks, crashes | longest | most memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in FULL if name in found):
        part = found[name]
        ends = part["ends"]
        lines.append(
            f"| {name} | {part['count']:,} | {ends.get('answer', 0):,} | {ends.get('message', 0):,} | "
            f"{ends.get('traceback', 0) + ends.get('crash', 0)} | {part['most_seconds']:.1f} s | "
            f"{part['most_bytes'] / 1e6:.0f} MB |"
        )
    return [*lines, "", *(f"- {part['note']}" for part in found.values() if "note" in part)]


def fuzzed(found: dict[str, Any]) -> list[str]:
    """Lines on what atheris did."""
    return [
        "atheris on our own readers, from the files of the undisturbed run and small ones:",
        "",
        "| reader | inputs tried | found |",
        "|---|---|---|",
        *(f"| {name} | {part['tried'] or 0:,} | {len(part['found'])} |" for name, part in found.items()),
    ]
