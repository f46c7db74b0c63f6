"""What the LiteRT benchmarks share: models of random weights, files made once, timings made once, provenance.

Everything made is kept in a folder under a name that says what it is, and is taken from there the next time;
remove the folder to make all of it anew.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from converters import litert
from converters.files import write_text
from converters.litert.lowering import lower
from converters.runtimes.environments import RUNTIMES
from edgeprune import pruning
from edgeprune.commands import bench
from edgeprune.commands.output import json_text
from edgeprune.evaluation.bench_result import to_plain
from edgeprune.models import build as models
from edgeprune.pipeline.environment import package_version, processor
from edgeprune.progress import Progress
from edgeprune.pruning import Pattern, Rule, Sparsifier

CLASSES = 1000
PACKAGES = ("torch", "torchvision", "timm", "litert-torch", "ai-edge-litert", "litert-quantizer", "numpy")
CAVEATS = (
    "Weights are random and batch norms have statistics of their own: bytes and times do not depend on the "
    "values, accuracy is not looked at.",
    "Emulated runtimes (qemu) count instructions, not memory: only ratios within one run mean something, and "
    "they are no promise for a phone.",
    "All files take turns; speed is the median of the rounds' own ratios, in brackets their quartiles.",
)


def build(name: str) -> nn.Module:
    """A model by its torchvision or "timm/" name; batch norms as after training, not all ones."""
    torch.manual_seed(0)
    model = models.build(name, CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pruned(name: str, pattern: Pattern, sparsity: float, classifier: bool = False) -> nn.Module:
    """The same with zeros in its 1x1 convolutions, and in its linear layers where asked."""
    model = build(name)
    rules = [Rule(pattern, sparsity)]
    if not classifier:
        linear = [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)]
        rules += [Rule(pattern, 0.0, layer) for layer in linear]
    Sparsifier(model, rules, pruning.OneShot()).finalize()
    return model.eval()


def files(
    make: Callable[[], nn.Module], folder: Path, size_px: int, wanted: dict[str, dict[str, Any]]
) -> dict[str, Path]:
    """The files of one model, lowered once, and only if one of them is not there yet.

    Args:
        make: the model.
        folder: where they are kept.
        size_px: of the image, both sides.
        wanted: name of each file -> further arguments to `litert.convert`, such as its target.
    """
    paths = {name: folder / f"{name}.tflite" for name in wanted}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        model, example = make(), torch.zeros(1, 3, size_px, size_px)
        lowered = lower(model, example)
        for name in missing:
            print(f"converting {paths[name]}", flush=True)
            litert.convert(model, example, paths[name], lowered=lowered, **wanted[name])
    return paths


def timed(paths: Sequence[Path], runtime: str, rounds: int, kept: Path) -> dict[str, Any]:
    """What `edgeprune bench --json` says of the files, by name; from `kept` if that is there already."""
    plan = bench.plan_bench(paths, runtime, rounds=rounds)
    if not _still_holds(kept, paths):
        with Progress(Console(stderr=True)).track(f"timing on {runtime}", plan.steps) as advance:
            write_text(kept, json_text(to_plain(bench.time_files(plan, advance))))
    plain: dict[str, Any] = json.loads(kept.read_text())
    for row in plain["files"]:
        row["path"] = Path(row["path"]).name  # nobody else has the folder
    return plain


def _still_holds(kept: Path, paths: Sequence[Path]) -> bool:
    """Whether the timings there are of these very files."""
    from converters.facts import sha256

    if not kept.exists():
        return False
    return [row["sha256"] for row in json.loads(kept.read_text())["files"]] == [
        sha256(path) for path in paths
    ]


def row(plain: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of one file of `timed`."""
    found: dict[str, Any] = next(row for row in plain["files"] if row["path"] == f"{name}.tflite")
    return found


def shown_speed(row: dict[str, Any]) -> str:
    """A table's cell: "2.41 (2.38–2.44)", or why there is none."""
    if row["speed"] is None:
        return "refused" if row["refused"] else "–"
    low, high = row["speed_quartiles"]
    return f"{row['speed']:.2f} ({low:.2f}–{high:.2f})"


def percent(fraction: float) -> str:
    """For people: "15.9 %", "80 %"."""
    return f"{100 * fraction:.1f}".removesuffix(".0") + " %"


def provenance() -> dict[str, Any]:
    """Command, date, processor and versions."""
    # Nobody else has this machine's folders.
    arguments = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "date": date.today().isoformat(),
        "processor": processor(),
        "versions": {name: package_version(name) for name in PACKAGES},
    }


def made_by(facts: dict[str, Any]) -> str:
    """A page's last sentence: command, date, processor and versions, as `provenance` tells them."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    return f"Made by `{facts['command']}` on {facts['date']}, {facts['processor']}; {versions}."


def provenance_lines(facts: dict[str, Any], runs: Sequence[dict[str, Any]]) -> list[str]:
    """The same for people, with the runtimes that were timed, and the caveats."""
    return [
        made_by(facts),
        "",
        *(
            f"- {run['runtime']}: {run['version']}, {run['description']}; {run['clock']}, "
            f"{run['threads']} thread, {run['rounds']} rounds."
            for run in runs
        ),
        *(f"- {caveat}" for caveat in CAVEATS),
    ]


def write(folder: Path, name: str, lines: Sequence[str], plain: dict[str, Any]) -> None:
    """The table for people and the data for machines."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.md", "\n".join(lines) + "\n")
    write_text(folder / f"{name}.json", json.dumps(plain, indent=1) + "\n")
    print("\n".join(lines))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first column to the left."""
    rule = ["---", *("--:" for _ in heading[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows)]


RUNTIME_NAMES = tuple(RUNTIMES)
