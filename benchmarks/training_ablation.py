"""What each setting of the training after pruning is worth: one changed at a time, all else alike.

    python benchmarks/training_ablation.py make rate-0.001-0 --images CIFAR10 --weights LITE0.pth --work DIR
    python benchmarks/training_ablation.py page --images CIFAR10 --weights LITE0.pth --work DIR

The point `time-0.4` of `frontier.py`, whose folder DIR may be: EfficientNet-Lite0 from ImageNet weights, 81 %
zeros in blocks, 6,000 training images of CIFAR-10 at 48 px. Judged on the 10,000 validation images, never on
test images: this is what settings are chosen by. State is kept in DIR.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from cifar10_blocks import Cifar10, Kind, Phase, parser_of, points_of
from frontier import REFERENCE, SIZE_PX, TRAIN, VALIDATION, images_of, kinds
from litert_files import made_by, percent, provenance, table, write

from converters.files import write_text

BASE = "time-0.4"
# What a row says, and what it changes.
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "rate-0.001": ("learning rate 1e-3, not 3e-3", {"learning_rate": 1e-3}),
    "rate-0.006": ("learning rate 6e-3", {"learning_rate": 6e-3}),
    "distill-0": ("labels only, no distillation", {"distill": 0.0}),
    "distill-1": ("the dense model's answers only, no labels", {"distill": 1.0}),
    "ramp-0.2": ("zeros grow in the first 20 % of the steps, not 45 %", {"ramp": 0.2}),
    "ramp-0.7": ("zeros grow in the first 70 % of the steps", {"ramp": 0.7}),
    "no-regrow": ("no weight comes back once it is zero", {"regrow": False}),
    "epochs-10": ("10 epochs, not 5", {"phases": (Phase(10, SIZE_PX),)}),
}
SEEDS = (0, 1)  # Of the base: what chance alone changes.


def all_kinds() -> dict[str, Kind]:
    """Those of the frontier, and its point with one setting changed."""
    known = kinds()
    changed = {name: dataclasses.replace(known[BASE], **change) for name, (_, change) in CHANGED.items()}
    return known | changed


def right(cifar10: Cifar10, name: str) -> np.ndarray:
    """Whether each validation image is right, kept."""
    kept = cifar10.work / f"{name}-validation.json"
    if not kept.exists():
        bits = cifar10.right(cifar10.make(name)).astype(int)
        write_text(kept, json.dumps("".join(map(str, bits))))
    return np.array(list(json.loads(kept.read_text())), dtype=float)


def row(told: str, own: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Of one model, beside the base on the same images."""
    gained, error = points_of(own - base)
    return {
        "setting": told,
        "validation_top1": float(own.mean()),
        "gained_points": gained,
        "standard_error_points": error,
    }


def page(facts: dict[str, Any], reference: float, rows: list[dict[str, Any]]) -> list[str]:
    """For people."""
    lines = [
        (
            found["setting"],
            percent(found["validation_top1"]),
            "–"
            if not found["standard_error_points"]
            else f"{found['gained_points']:+.2f} ± {found['standard_error_points']:.2f}",
        )
        for found in rows
    ]
    return [
        "# What each setting of the training after pruning is worth",
        "",
        f"EfficientNet-Lite0 from ImageNet weights, {TRAIN:,} training images of CIFAR-10 at {SIZE_PX} px, "
        "81 % zeros in 1x4 blocks placed by `allocation: time`. One setting changed at a time; on "
        f"{VALIDATION:,} validation images, where the dense model trained as long has {percent(reference)}, "
        "with the standard error of the paired difference.",
        "",
        *table(["setting", "validation top-1", "points gained"], lines),
        "",
        "- The error is that of the images; what another seed changes by chance is told by the second row.",
        *REMARKS,
        "",
        made_by(facts),
    ]


# What follows from the table.
REMARKS = """\
- Rates, ramp and distillation move about a point at most, twice the epochs two: train longer before turning
  anything else. The defaults of a recipe stay: a learning rate of 3e-3, 0.7 of the loss from the dense
  model's answers. That weights may come back (`regrow`) buys nothing here.
- The dense model was not trained for ten epochs, which would help it as well.
- Not varied: temperature, averages of the weights (`ema`), features as well as answers.
""".splitlines()


def main() -> None:
    names = f"of {BASE}, {', '.join(CHANGED)}, with a seed"
    options = parser_of(__doc__.splitlines()[0], names, rounds=1).parse_args()
    cifar10 = images_of(options, all_kinds())
    if options.what == "make":
        cifar10.make_all(options.names)
        return
    base = right(cifar10, f"{BASE}-0")
    told = {f"{BASE}-0": "as everywhere in the frontier"}
    told |= {f"{BASE}-{seed}": "the same, another seed" for seed in SEEDS[1:]}
    told |= {f"{name}-0": words for name, (words, _) in CHANGED.items()}
    made = {name: words for name, words in told.items() if (options.work / f"{name}.pt").exists()}
    rows = [row(words, right(cifar10, name), base) for name, words in made.items()]
    reference = float(right(cifar10, f"{REFERENCE}-0").mean())
    facts = provenance()
    plain = {"schema": 1, **facts, "dense_longer_top1": reference, "rows": rows}
    write(options.out, "training_ablation", page(facts, reference, rows), plain)


if __name__ == "__main__":
    main()
