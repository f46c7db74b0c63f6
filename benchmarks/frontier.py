"""Time against accuracy: where zeros in blocks are put, one model, the same training for each.

    python benchmarks/frontier.py make time-0.4-0 lamp-0.4-0 --images CIFAR10 --weights LITE0.pth --work DIR
    python benchmarks/frontier.py page --images CIFAR10 --weights LITE0.pth --work DIR

EfficientNet-Lite0 from ImageNet weights at 48 px, on 6,000 training images of CIFAR-10, so that a point
takes minutes. A name is a way to place zeros, the share of the dense time that is left on emulated arm64 at
224 px, and a seed. Each way gets as many zeros as that time asks for. 10,000 other training images are the
validation set; the test images are looked at once, by `page`. State is kept in DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10_blocks import PATTERN, RUNTIME, TIMED_PX, Cifar10, Kind, Phase, file, paired, read, row
from litert_files import RUNTIME_NAMES, made_by, percent, provenance, table, timed, write

from edgeprune.pruning import Rule, select
from edgeprune.pruning.allocation import limits, shares
from edgeprune.pruning.allocation.result import Allocation

SIZE_PX, TRAIN, VALIDATION = 48, 6000, 10_000
RATE = 3e-3
TIMES = (0.5, 0.45, 0.4, 0.36, 0.32, 0.28)
MOST = 0.949  # Zeros in any layer.
EARLY = ("blocks.0.", "blocks.1.", "blocks.2.")
# Found by hand, which this benchmark does not repeat.
REMARKS = """\
- `time` is `allocation: time`, for emulated arm64; `channels` has no zeros: as large a share of the
  multiplications left by removing channels. `lamp` is one threshold for all layers, `hand` half of the
  first three stages and as many zeros as it takes in all others.
- Tried for `time` at 40 % of the time, on validation images, where it has 76.3 % right: at most 85 %
  zeros in any layer, 75.6; what layers lose at half of their zeros scaled up by the weights' own errors,
  which do not level off, 76.1; these errors alone, 71.8.
- `channels` keeps more for the same time: at 44 % of it, as measured on arm64, 1.5 points are lost, where
  `time` loses 3.6.
- The `arm64` and `x86-sparse` times are an emulator's processor time, three rounds on a machine that had
  other work: 0.05 either way, as points out of line show.
- By the time asked for, `time` loses least at each of the six; by the time measured on arm64, it and
  `lamp` lie on one line below 42 %.
- Two thirds of the weights must be zero before sparse kernels run at all, so that the same zeros in every
  layer cannot take more than 45 % of the time. Not trained: `uniform`, `multiplications` and `hand` at
  other times.
- Too few images for what one would ship: they tell ways apart, not how much a network loses that is
  trained on all it has.
""".splitlines()
TARGET, REFERENCE, OWN, CHANNELS = "litert-arm64", "longer", "time", "channels"
BISECTIONS = 20


def within(cifar10: Cifar10, kind: Kind, place: Callable[[float], Allocation]) -> Allocation:
    """The fewest zeros, placed in some way, that are fast enough."""
    model, times = cifar10.make(kind.start), cifar10.times(kind.start)

    def fraction(found: Allocation) -> float:
        chosen = [s for s in select(model, [Rule(PATTERN, 0.5)]) if not s.reason]
        limit = limits.TimeLimit(times[RUNTIME], chosen, kind.time_left)
        return limit.fraction(np.array([found.sparsities[s.name] for s in chosen]))

    low, high = 0.3, MOST
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if fraction(place(middle)) <= kind.time_left else (middle, high)
    found = place(high)
    if fraction(found) > kind.time_left:
        raise SystemExit(f"{kind.time_left} of the time cannot be had: the least is {fraction(found):.3f}")
    return found


def uniform(cifar10: Cifar10, kind: Kind) -> Allocation:
    model = cifar10.make(kind.start)
    return within(cifar10, kind, lambda sparsity: shares.uniform(model, PATTERN, sparsity))


def erdos_renyi(cifar10: Cifar10, kind: Kind) -> Allocation:
    model = cifar10.make(kind.start)
    return within(cifar10, kind, lambda sparsity: shares.erdos_renyi(model, PATTERN, sparsity))


def by_multiplications(cifar10: Cifar10, kind: Kind) -> Allocation:
    model, example = cifar10.make(kind.start), torch.zeros(1, 3, TIMED_PX, TIMED_PX)

    def place(sparsity: float) -> Allocation:
        spread = min(0.1, 0.95 - sparsity)
        return shares.by_multiplications(model, example, PATTERN, sparsity, spread=spread)

    return within(cifar10, kind, place)


def lamp(cifar10: Cifar10, kind: Kind) -> Allocation:
    model = cifar10.make(kind.start)
    return within(cifar10, kind, lambda s: shares.by_importance(model, PATTERN, s, criterion="lamp"))


def by_hand(cifar10: Cifar10, kind: Kind) -> Allocation:
    """Half of the first three stages, as a person would who knows that they matter."""
    model = cifar10.make(kind.start)

    def place(sparsity: float) -> Allocation:
        found = shares.uniform(model, PATTERN, sparsity)
        own = {n: 0.5 if n.startswith(EARLY) else value for n, value in found.sparsities.items()}
        return dataclasses.replace(found, sparsities=own)

    return within(cifar10, kind, place)


WAYS: dict[str, Callable[[Cifar10, Kind], Allocation]] = {
    OWN: lambda cifar10, kind: cifar10.solved(kind),
    "uniform": uniform,
    "erdos-renyi": erdos_renyi,
    "multiplications": by_multiplications,
    "lamp": lamp,
    "hand": by_hand,
}


def kinds() -> dict[str, Kind]:
    """All there are, by name."""
    recover = Kind((Phase(5, SIZE_PX),), RATE)
    found = {"dense": Kind((Phase(7, SIZE_PX),), 1e-3, start=""), REFERENCE: recover}
    for name, way in WAYS.items():
        for left in TIMES:
            found[f"{name}-{left:g}"] = dataclasses.replace(recover, time_left=left, place=way)
    for left in TIMES:  # No zeros: what removing channels gives, for about the same time.
        found[f"{CHANNELS}-{left:g}"] = dataclasses.replace(recover, macs_left=left)
    return found


@dataclass(frozen=True)
class Point:
    """One trained model.

    Attributes:
        way, left: of its name.
        zeros: share of the weights of 1x1 convolutions and classifier.
        lost, error: points of accuracy, against the dense model trained as long, and their standard error.
        times: measured share of that model's time, by runtime.
        right: whether each test image is right, (n,).
    """

    way: str
    left: float
    zeros: float
    lost: float
    error: float
    times: dict[str, float]
    right: np.ndarray


def points(rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> list[Point]:
    """Of all rows with zeros."""
    reference = next(one for one in rows if one["kind"] == REFERENCE)
    found = []
    for one in rows:
        way, _, left = one["kind"].rpartition("-")
        if not way:
            continue
        lost, error = paired([reference], [one], TARGET)
        right = np.array(list(one["files"][TARGET]["right"]), dtype=int)
        times = {}
        for timing in timings:
            name = f"{one['model']}-{TIMED_PX}-{TARGET}.tflite"
            times[timing["runtime"]] = 1 / next(f["speed"] for f in timing["files"] if f["path"] == name)
        found.append(Point(way, float(left), one["zeros"], lost, error, times, right))
    return found


def asked(point: Point) -> str:
    """A table's cell: the share of the time, or of the multiplications where channels were removed."""
    return percent(point.left) + (" (multiplications)" if point.way == CHANNELS else "")


def against(best: Point, other: Point) -> str:
    """Points that one loses more than another on the same images, and the standard error."""
    more = 100 * (best.right - other.right)
    return f"{more.mean():+.2f} ± {more.std(ddof=1) / len(more) ** 0.5:.2f}"


def page(
    facts: dict[str, Any], rows: list[dict[str, Any]], found: list[Point], remarks: list[str]
) -> list[str]:
    """For people."""
    tops = {row["kind"]: row["files"][TARGET]["top1"] for row in rows}
    runtimes = list(found[0].times)
    lines = []
    for point in found:
        own = next(p for p in found if (p.way, p.left) == (OWN, point.left))
        cells = [point.way, asked(point), percent(point.zeros)]
        cells += [f"{point.times[runtime]:.3f}" for runtime in runtimes]
        cells += [
            f"{point.lost:+.2f} ± {point.error:.2f}",
            "–" if point.way in (OWN, CHANNELS) else against(own, point),
        ]
        lines.append(cells)
    headings = [f"measured on {runtime}" for runtime in runtimes]
    return [
        "# Time against accuracy: where zeros are put",
        "",
        f"EfficientNet-Lite0 from ImageNet weights, {TRAIN:,} images of CIFAR-10 at {SIZE_PX} px, zeros in "
        f"1x4 blocks, every point trained alike: {percent(tops['dense'])} dense, {percent(tops[REFERENCE])} "
        "dense and trained as long as the points. Accuracy through float32 `.tflite` files on "
        f"{len(found[0].right):,} test images, lost against the latter; time of the files at 224 px as a "
        "share of its file's.",
        "",
        "![Points lost by time](frontier.svg)",
        "",
        *table(
            ["zeros placed by", "time asked for", "zeros", *headings, "points lost", "more than by time"],
            lines,
        ),
        "",
        *remarks,
        "",
        made_by(facts),
    ]


def plot(found: list[Point], path: Path) -> None:
    from matplotlib.figure import Figure

    runtimes = list(found[0].times)
    figure = Figure((5 * len(runtimes), 4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(runtimes), sharey=True))
    for axes, runtime in zip(panels, runtimes, strict=True):
        for way in dict.fromkeys(point.way for point in found):
            own = sorted((p for p in found if p.way == way), key=lambda p: p.times[runtime])
            axes.errorbar(
                [p.times[runtime] for p in own],
                [p.lost for p in own],
                [p.error for p in own],
                marker="o",
                label=way,
                linewidth=3 if way == OWN else 1.5,
            )
        axes.set_title(runtime)
        axes.set_xlabel("share of the dense time")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("points lost")
    figure.axes[0].invert_yaxis()
    figure.axes[-1].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "page"])
    parser.add_argument("names", nargs="*", help="time-0.4-0; taught and curves: what all points share")
    parser.add_argument("--images", type=Path, required=True, help="train/ and test/, one folder a class")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--work", type=Path, required=True, help="folder to keep models in")
    parser.add_argument("--runtimes", nargs="*", default=["arm64"], choices=RUNTIME_NAMES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    cifar10 = Cifar10(
        options.images, options.weights, options.work, TRAIN, SIZE_PX, VALIDATION, kinds=kinds()
    )
    if options.what == "make":
        for name in options.names:
            if name == "curves":
                cifar10.curves("dense")
            elif name == "taught":
                cifar10.taught()
            else:
                cifar10.make(name)
        return
    test = read(options.images / "test", options.work / "test-images.pt")
    names = [f"{kind}-0" for kind in (REFERENCE, *cifar10.kinds) if (options.work / f"{kind}-0.pt").exists()]
    names = list(dict.fromkeys(names))
    rows = [row(cifar10, name, test, [TARGET]) for name in ("dense", *names)]
    paths = [file(cifar10, name, TIMED_PX, TARGET) for name in names]
    timings = [
        timed(paths, name, options.rounds, options.work / f"times-{name}.json") for name in options.runtimes
    ]
    found = points(rows, timings)
    facts = provenance()
    plain = {"schema": 1, **facts, "models": rows, "timings": timings}
    write(options.out, "frontier", page(facts, rows, found, REMARKS), plain)
    plot(found, options.out / "frontier.svg")


if __name__ == "__main__":
    main()
