"""What accelerators do with 20 published models, by the linter's tables: verdicts with source and date.

    python benchmarks/accelerators.py FOLDER               go on where an earlier call stopped
    python benchmarks/accelerators.py FOLDER MODEL ...     these models only
    python benchmarks/accelerators.py FOLDER --page        docs/results/accelerators.md and .json, of those

Architectures of torchvision and timm with random weights: what an operation is does not depend on its
weights. FOLDER gets one JSON file a model, written when its files have been examined; the files themselves
are not kept."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from converters.files import write_text

RESULTS = Path(__file__).parent.parent / "docs" / "results"
# Sides in pixels, small to be quick; the quick ones come first.
MODELS = {
    "mobilenet_v3_small": 64,
    "timm/lcnet_050": 64,
    "mobilenet_v2": 64,
    "resnet18": 64,
    "squeezenet1_1": 64,
    "timm/mobilenetv4_conv_small": 64,
    "timm/mnasnet_small": 64,
    "shufflenet_v2_x0_5": 64,
    "timm/repvgg_a0": 64,
    "mnasnet0_5": 64,
    "mobilenet_v3_large": 64,
    "timm/efficientnet_lite0": 64,
    "efficientnet_b0": 64,
    "lraspp_mobilenet_v3_large": 96,
    "timm/ghostnet_100": 64,
    "timm/regnetx_002": 64,
    "timm/repvit_m0_9": 64,
    "timm/convnext_atto": 64,
    "timm/mobilevit_xxs": 64,
    "timm/vit_tiny_patch16_224": 224,
}
BACKENDS = ("litert-gpu", "litert-npu", "core-ml-ane", "core-ml-gpu")
TARGETS = {"litert": "litert-arm64", "coreml": "coreml-ios18"}
CLASSES = 1000


def main() -> None:
    """Examine what has not been examined yet, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="all of them if not given")
    parser.add_argument("--page", action="store_true", help="examine nothing")
    options = parser.parse_args()
    unknown = set(options.models) - set(MODELS)
    if unknown:
        sys.exit(f"error: unknown models {', '.join(sorted(unknown))}: choose from {', '.join(MODELS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in [] if options.page else options.models or MODELS:
        kept = options.folder / f"{name.replace('/', '-')}.json"
        if not kept.exists():
            write_text(kept, json.dumps(examined(name, MODELS[name])))
            print(f"{name}: done", flush=True)
    write_page(options.folder)


def examined(name: str, size_px: int) -> dict[str, Any]:
    """One model's verdicts by backend; of a format that cannot be written, why."""
    import torch

    from converters.errors import EdgepruneError
    from converters.format import FORMATS
    from converters.targets import TARGETS as ROWS

    model, example = build(name), torch.zeros(1, 3, size_px, size_px)
    found: dict[str, Any] = {"model": name, "size_px": size_px, "backends": {}, "failures": {}}
    for kind, target in TARGETS.items():
        try:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                path = Path(folder) / f"model{FORMATS[kind].suffix}"
                FORMATS[kind].write(FORMATS[kind].prepare(model, example, None), ROWS[target], path)
                found["backends"] |= FORMATS[kind].inspect(path).plain["accelerators"]
        except EdgepruneError as error:
            found["failures"][kind] = str(error)
    return found


def build(name: str) -> Any:
    """A model of random weights, in eval mode."""
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    backbone = {"weights_backbone": None} if "lraspp" in name else {}
    model = (
        timm.create_model(name.removeprefix("timm/"), num_classes=CLASSES)
        if name.startswith("timm/")
        else torchvision.models.get_model(name, weights=None, **backbone)
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # Zero in some: a converter drops the branch.
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


# --- The page -----------------------------------------------------------------------------------------------


def write_page(folder: Path) -> None:
    """docs/results/accelerators.md and .json from the models that were examined."""
    paths = [folder / f"{name.replace('/', '-')}.json" for name in MODELS]
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    plain = {"schema": 1, "models": [brief(one) for one in found]}
    write_text(RESULTS / "accelerators.json", f"{json.dumps(plain, indent=1)}\n")
    write_text(RESULTS / "accelerators.md", page(plain["models"]))


def brief(found: dict[str, Any]) -> dict[str, Any]:
    """A model's verdicts, the same ones of an operation's kind counted."""
    return found | {"backends": {name: grouped(one["ops"]) for name, one in found["backends"].items()}}


def grouped(ops: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts with how many operations have them; each with its source and date."""
    counted: Counter[str] = Counter()
    for op in ops:
        change = op["change"].partition(" has ")[2] or op["change"]  # without the name of a tensor
        verdict = {"op": op["op"], "outcome": op["outcome"], "change": change, "source": op["source"]}
        counted[json.dumps(verdict)] += 1
    return [json.loads(text) | {"count": count} for text, count in counted.items()]


def page(models: Sequence[dict[str, Any]]) -> str:
    """The page."""
    missing = [name for name in MODELS if name not in {model["model"] for model in models}]
    lines = [
        "# What accelerators do with published models",
        "",
        "Written by `python benchmarks/accelerators.py FOLDER`: architectures of torchvision and timm,",
        "random weights, small images, a `.tflite` file and a Core ML package of each, read by the linter.",
        "**Nothing here ran on an accelerator**: verdicts come from published, dated tables, and where there",
        "is none the answer is unknown.",
        "",
        f"{len(models)} of {len(MODELS)} models"
        + (f"; not examined yet: {', '.join(missing)}." if missing else "."),
        "",
        "Operations that run / fall back / are unknown.",
        "",
        f"| model | {' | '.join(BACKENDS)} |",
        f"|---|{'---|' * len(BACKENDS)}",
        *(f"| {model['model']} | {' | '.join(cell(model, name) for name in BACKENDS)} |" for model in models),
        "",
    ]
    for backend in BACKENDS:
        lines += [f"## {backend}", "", *reasons(models, backend), ""]
    failures = [f"- {m['model']}, {kind}: {why}" for m in models for kind, why in m["failures"].items()]
    if failures:
        lines += ["## Not written", "", *failures]
    return "\n".join(lines).rstrip() + "\n"


def cell(model: dict[str, Any], backend: str) -> str:
    """Such as "60 / 2 / 0", or a dash where there is no such file."""
    if backend not in model["backends"]:
        return "–"
    verdicts = model["backends"][backend]
    outcomes = ("runs", "falls back to the CPU", "unknown")
    return " / ".join(str(sum(v["count"] for v in verdicts if v["outcome"] == one)) for one in outcomes)


def reasons(models: Sequence[dict[str, Any]], backend: str) -> list[str]:
    """Each verdict of a backend: which operations, of how many models, what to do, who says so and when."""
    together: dict[tuple[str, ...], tuple[set[str], set[str]]] = {}
    for model in models:
        for verdict in model["backends"].get(backend, ()):
            source = verdict["source"]
            told = f"{source['kind']}: {source['where']}, {source['date']}"
            kinds, where = together.setdefault(
                (verdict["outcome"], verdict["change"] or "–", told), (set(), set())
            )
            kinds.add(verdict["op"])
            where.add(model["model"])
    rows = [
        f"| {outcome} | {', '.join(sorted(kinds))} | {len(where)} | {change} | {told} |"
        for (outcome, change, told), (kinds, where) in sorted(together.items())
    ]
    return ["| verdict | operations | models | what to do | source, date |", "|---|---|---|---|---|", *rows]


if __name__ == "__main__":
    main()
