"""The pictures of a report: inline SVG whose colours are the page's, so that they read in light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgeprune import tasks
from edgeprune.evaluation.records import Row, Training
from edgeprune.report.formatting import capital, strength
from edgeprune.report.records import Report
from edgeprune.report.summary import Trial, format_name, is_efficient, trials, variants

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = 6
"""Colours `--series-0` ... that the page must define; further variants start over with another marker."""

MARKERS = "osD^vP"
GLYPHS = "●■◆▲▼✚"

# Stand-ins that matplotlib can write; `_for_page` puts the page's colour in their place.
_INK, _MUTED, _LINE, _PAGE = "#010203", "#010204", "#010205", "#010206"
_PAGE_COLOURS = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _PAGE: "--card"} | {
    f"#0102{16 + i:02x}": f"--series-{i}" for i in range(SERIES)
}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and colour and can be read aloud
    "svg.hashsalt": "edgeprune",  # the same report gives the same bytes
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a name is a "$"
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.unicode_minus": False,
}
_SIZE_INCHES = (4.0, 2.9)
LOGARITHMIC_FROM = 8
"""How many times larger the largest file must be than the smallest."""


def size_against_accuracy(report: Report) -> dict[str, str]:
    """Draw bytes against the score, one picture a file format; the efficient files are filled and named."""
    order = variants(report)
    by_format: dict[str, list[Row]] = {}
    for row in report.rows:
        by_format.setdefault(format_name(row.target), []).append(row)
    return {
        name: _draw(f"size-{index}", partial(_scatter, rows=rows, order=order))
        for index, (name, rows) in enumerate(by_format.items())
    }


def training_curves(report: Report) -> dict[str, str]:
    """Draw accuracy, loss and zeros over the epochs, by title, one line a variant; only what was recorded."""
    order = variants(report)
    scores = {f"{capital(metric.heading)} on the held-out images": metric.key for metric in tasks.metrics()}
    kinds = {**scores, "Loss": "loss", "Zeros asked for": "sparsity"}
    pictures: dict[str, str] = {}
    for title, key in kinds.items():
        lines = [training for training in report.trainings if _recorded(training, key)]
        if lines:
            paint = partial(_curves, trainings=lines, key=key, order=order)
            pictures[title] = _draw(f"training-{key}", paint)
    return pictures


def robustness_curves(report: Report) -> dict[str, str]:
    """Draw accuracy against the strength of each corruption, by its name, one line a variant."""
    order = variants(report)
    found = trials(report)
    by_corruption: dict[str, list[Trial]] = {}
    for trial in found[1:]:
        by_corruption.setdefault(trial.corruption, [found[0]]).append(trial)
    return {
        name: _draw(f"robustness-{index}", partial(_strengths, trials=own, order=order))
        for index, (name, own) in enumerate(by_corruption.items())
    }


def _recorded(training: Training, key: str) -> bool:
    """Whether there is a curve to draw: two epochs with the value, and for zeros some that are not 0."""
    values = [epoch[key] for epoch in training.epochs if key in epoch]
    return len(values) > 1 and (key != "sparsity" or any(values))


def _colour(order: Sequence[str], variant: str) -> str:
    return f"#0102{16 + order.index(variant) % SERIES:02x}"


def _marker(order: Sequence[str], variant: str) -> str:
    return MARKERS[order.index(variant) % len(MARKERS)]


def _scatter(axes: Axes, rows: Sequence[Row], order: Sequence[str]) -> None:
    efficient = sorted((row for row in rows if is_efficient(row, rows)), key=lambda row: row.bytes)
    axes.plot(
        [row.bytes / 1e6 for row in efficient],
        [100 * row.score for row in efficient],
        color=_MUTED,
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    for row in rows:
        colour = _colour(order, row.variant)
        axes.plot(
            row.bytes / 1e6,
            100 * row.score,
            _marker(order, row.variant),
            markersize=9,
            color=colour if row in efficient else _PAGE,
            markeredgecolor=colour,
            markeredgewidth=1.8,
            clip_on=False,
            zorder=2,
        )
    _size_axis(axes, [row.bytes / 1e6 for row in rows])
    axes.set_ylabel(f"{tasks.metric(rows[0].metric).heading}, %")
    axes.margins(y=0.22)
    _place_names(axes, efficient, rows)


def _size_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """From zero, so that lengths are sizes; where they differ too much for that, by powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    least, most = min(sizes), max(sizes)
    if most < LOGARITHMIC_FROM * least:
        axes.set_xlim(0, 1.08 * most)
        axes.set_xlabel("size, MB")
        return
    axes.set_xscale("log")
    axes.set_xlim(least / 1.25, 1.25 * most)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("size, MB (logarithmic)")


def _place_names(axes: Axes, named: Sequence[Row], rows: Sequence[Row]) -> None:
    """Write the name of each of `named` where it covers no point, no line between them and no other name."""
    from matplotlib.transforms import Bbox

    figure = axes.figure
    figure.canvas.draw()
    frame = axes.get_window_extent()
    points = axes.transData.transform([(row.bytes / 1e6, 100 * row.score) for row in rows])
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in points]
    front = [axes.transData.transform((row.bytes / 1e6, 100 * row.score)) for row in named]
    for (x0, y0), (x1, y1) in pairwise(front):
        steps = [i / 20 for i in range(21)]
        taken += [Bbox.from_bounds(x0 + t * (x1 - x0) - 1, y0 + t * (y1 - y0) - 1, 2, 2) for t in steps]
    places = [(11, 0, "left"), (-11, 0, "right"), (0, 14, "center"), (0, -15, "center"), (11, 14, "left")]
    places += [
        (-11, 14, "right"),
        (11, -15, "left"),
        (-11, -15, "right"),
        (0, 28, "center"),
        (0, -29, "center"),
    ]
    # Targets that differ in the runtime's version alone give all but the same file: one name for them.
    names = {f"{row.variant}, {_storage(row.target)}": row for row in reversed(named)}
    for name, row in names.items():
        for dx, dy, side in places:
            text = axes.annotate(
                name,
                (row.bytes / 1e6, 100 * row.score),
                (dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
            )
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 + 8 and frame.y0 <= box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()  # with no free place the name stays out; the table has it


def _storage(target: str) -> str:
    from converters.targets import TARGETS

    return TARGETS[target].storage.value if target in TARGETS else target


def _curves(axes: Axes, trainings: Iterable[Training], key: str, order: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    scale = 1 if key == "loss" else 100
    for training in trainings:
        epochs = [epoch for epoch in training.epochs if key in epoch]
        axes.plot(
            [epoch.get("epoch", index) for index, epoch in enumerate(epochs)],
            [scale * epoch[key] for epoch in epochs],
            color=_colour(order, training.variant),
            marker=_marker(order, training.variant),
            markevery=max(1, len(epochs) // 6),
            markersize=5,
            linewidth=1.6,
        )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss" if key == "loss" else "%")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if key == "sparsity":
        axes.set_ylim(0, 100)


def _strengths(axes: Axes, trials: Sequence[Trial], order: Sequence[str]) -> None:
    for variant in trials[0].top1:
        places = [place for place, trial in enumerate(trials) if variant in trial.top1]
        axes.plot(
            places,
            [100 * trials[place].top1[variant] for place in places],
            color=_colour(order, variant),
            marker=_marker(order, variant),
            markersize=5,
            linewidth=1.6,
        )
    labels = ["none" if trial.strength is None else strength(trial.strength) for trial in trials]
    axes.set_xticks(range(len(trials)), labels)
    axes.set_xlabel("strength")
    axes.set_ylabel("top-1, %")
    axes.set_ylim(0, 102)


def _draw(name: str, paint: Callable[[Any], None]) -> str:
    """Draw one picture; `name` makes its ids differ from those of the other pictures of the page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # only measured with this font, shown in the page's
        figure: Figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _for_page(file.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    """Make an SVG file part of a page: no prologue, metadata or namespaces, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, f"var({colour})")
    return svg.strip()
