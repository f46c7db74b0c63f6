"""`edgeprune compare`: what changed between two runs, file by file and layer by layer."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.commands.options import add_json
from edgeprune.commands.output import DONE, deliver, json_text, refuse_unwritable
from edgeprune.evaluation.records import Row
from edgeprune.report import records
from edgeprune.report.formatting import MINUS, bits, bytes_exact, percent, plain, shape, zeros
from edgeprune.report.records import Report
from edgeprune.report.summary import flat
from edgeprune.tasks import metric, metrics

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
# For people: more layers than fit on a screen help nobody; --json has all of them.
SHOWN_LAYERS = 10
EXAMPLES = """\
  edgeprune compare runs/before runs/after
  edgeprune compare runs/before runs/after --json - | jq .most_changed_layer
"""


def add_options(command: argparse.ArgumentParser) -> None:
    """Give the command its options."""
    command.add_argument("before", type=Path, metavar="RUN", help="run folder")
    command.add_argument("after", type=Path, metavar="RUN", help="the run folder to compare with it")
    add_json(command)


def execute(options: argparse.Namespace) -> int:
    """Compare and show."""
    refuse_unwritable(options.json)
    found = compare(options.before, options.after)
    deliver(json_text(to_plain(found)), options.json, lambda console: print_comparison(found, console))
    return DONE


@dataclass(frozen=True)
class BeforeAfter:
    """A value in the first run and in the second; None where that run has none."""

    before: Any
    after: Any

    @property
    def changed(self) -> bool:
        """Whether the two differ."""
        return bool(self.before != self.after)


@dataclass(frozen=True)
class LayerChange:
    """A layer of one file whose stored weights differ in what was counted of them.

    Attributes:
        name: of the layer.
        shape, zero_fraction, bits_per_weight, encoding: see `converters.facts.LayerFacts`.
        amount: how much it changed, 0 to 1: the larger of the difference of its zero fractions and the share
            of its bits per weight that came or went; 1 where only one run has the layer.
    """

    name: str
    shape: BeforeAfter
    zero_fraction: BeforeAfter
    bits_per_weight: BeforeAfter
    encoding: BeforeAfter
    amount: float

    def words(self) -> str:
        """The change in words."""
        if self.shape.before is None or self.shape.after is None:
            return f"only in the {'second' if self.shape.before is None else 'first'} run"
        parts = [
            f"zeros {zeros(self.zero_fraction.before)} → {zeros(self.zero_fraction.after)}",
            f"{bits(self.bits_per_weight.before)} → {bits(self.bits_per_weight.after)} bits per weight",
        ]
        if self.shape.changed:
            parts.append(f"{shape(self.shape.before)} → {shape(self.shape.after)}")
        if self.encoding.changed:
            parts.append(f"{self.encoding.before} → {self.encoding.after}")
        return ", ".join(parts)


@dataclass(frozen=True)
class RowChange:
    """One file in both runs.

    Attributes:
        variant: its name in either run: "block80" may have become "block90".
        target: the same in both.
        bytes, download_bytes, zero_fraction, bits_per_weight, sparse_runtime: see
            `edgeprune.evaluation.records.Row`.
        scores: by the key of the metric; None in a run that is measured by another.
        same_content: whether both are the same bytes.
        layers: those that changed, the one that changed most first.
    """

    variant: BeforeAfter
    target: str
    bytes: BeforeAfter
    download_bytes: BeforeAfter
    scores: Mapping[str, BeforeAfter]
    zero_fraction: BeforeAfter
    bits_per_weight: BeforeAfter
    sparse_runtime: BeforeAfter
    same_content: bool
    layers: tuple[LayerChange, ...]

    @property
    def score(self) -> BeforeAfter:
        """Whichever both files have; where they have not the same, two None: they do not compare."""
        pairs = [pair for pair in self.scores.values() if None not in (pair.before, pair.after)]
        return pairs[0] if pairs else BeforeAfter(None, None)

    @property
    def name(self) -> str:
        """The file, for people."""
        before, after = self.variant.before, self.variant.after
        return f"{before if before == after else f'{before} → {after}'} on {self.target}"


@dataclass(frozen=True)
class Comparison:
    """All that differs.

    Attributes:
        runs: the two folders.
        recipe: settings that differ, by name.
        same_images: whether accuracy was measured on the same images; None where a report does not say.
        rows: one for each file that both runs have.
        only_before, only_after: files of one run only, as "variant on target".
    """

    runs: BeforeAfter
    recipe: dict[str, BeforeAfter]
    same_images: bool | None
    rows: tuple[RowChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def layers(self) -> list[tuple[RowChange, LayerChange]]:
        """The layers that changed, most first; each layer of a variant once, where it changed most."""
        found: dict[tuple[str, str], tuple[RowChange, LayerChange]] = {}
        for row in self.rows:
            for layer in row.layers:
                key = (row.variant.after, layer.name)
                if key not in found or layer.amount > found[key][1].amount:
                    found[key] = (row, layer)
        return sorted(found.values(), key=lambda entry: _most_first(entry[1]))


def compare(before: Path, after: Path) -> Comparison:
    """Compare two finished runs.

    Raises:
        UserError: one of them is no finished run.
    """
    first, second = records.read(before), records.read(after)
    pairs, only_before, only_after = match(first.rows, second.rows)
    return Comparison(
        BeforeAfter(str(before), str(after)),
        _recipe_changes(first, second),
        _same_images(first, second),
        tuple(_row_change(*pair) for pair in pairs),
        tuple(f"{row.variant} on {row.target}" for row in only_before),
        tuple(f"{row.variant} on {row.target}" for row in only_after),
    )


def match(before: Sequence[Row], after: Sequence[Row]) -> tuple[list[tuple[Row, Row]], list[Row], list[Row]]:
    """BeforeAfter the files of two runs, and return what is left of each.

    Files of one target pair by variant; where each run has one variant that the other lacks, those two pair:
    "block80" that has become "block90".
    """
    first = {(row.variant, row.target): row for row in before}
    second = {(row.variant, row.target): row for row in after}
    partners = {key: key for key in first if key in second}
    renamed = [{variant for variant, _ in keys} for keys in (first.keys() - second, second.keys() - first)]
    if [len(names) for names in renamed] == [1, 1]:
        (new,) = renamed[1]
        partners |= {key: (new, key[1]) for key in first if key not in partners and (new, key[1]) in second}
    taken = set(partners.values())
    return (
        [(row, second[partners[key]]) for key, row in first.items() if key in partners],
        [row for key, row in first.items() if key not in partners],
        [row for key, row in second.items() if key not in taken],
    )


def layer_changes(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[LayerChange]:
    """The layers that differ between two files, the one that changed most first."""
    first, second = _by_name(before), _by_name(after)
    changes = (_layer_change(name, first.get(name), second.get(name)) for name in {**first, **second})
    return sorted((change for change in changes if change is not None), key=_most_first)


def _by_name(layers: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Layers by name; files of other converters may have several of one name, which are then counted."""
    seen: Counter[str] = Counter()
    found = {}
    for layer in layers:
        seen[layer["name"]] += 1
        number = seen[layer["name"]]
        found[layer["name"] if number == 1 else f"{layer['name']} ({number})"] = layer
    return found


def _layer_change(
    name: str, before: dict[str, Any] | None, after: dict[str, Any] | None
) -> LayerChange | None:
    pairs = {
        field: BeforeAfter((before or {}).get(field), (after or {}).get(field))
        for field in ("shape", "zero_fraction", "bits_per_weight", "encoding")
    }
    if not any(pair.changed for pair in pairs.values()):
        return None
    amount = 1.0
    if before is not None and after is not None:
        old, new = before["bits_per_weight"], after["bits_per_weight"]
        amount = max(
            abs(after["zero_fraction"] - before["zero_fraction"]),
            abs(new - old) / max(new, old) if max(new, old) > 0 else 0.0,
        )
    return LayerChange(name, amount=amount, **pairs)


def _most_first(layer: LayerChange) -> tuple[float, int]:
    """Sorting key: by amount, of equal ones the layer of more weights first."""
    return -layer.amount, -math.prod(layer.shape.after or layer.shape.before)


def _row_change(before: Row, after: Row) -> RowChange:
    keys = dict.fromkeys((before.metric, after.metric))
    names = ("bytes", "download_bytes", "zero_fraction", "bits_per_weight", "sparse_runtime")
    return RowChange(
        BeforeAfter(before.variant, after.variant),
        after.target,
        scores={
            key: BeforeAfter(*(row.score if row.metric == key else None for row in (before, after)))
            for key in keys
        },
        **{name: BeforeAfter(getattr(before, name), getattr(after, name)) for name in names},
        same_content=before.sha256 == after.sha256,
        layers=tuple(layer_changes(before.layers, after.layers)),
    )


def _recipe_changes(before: Report, after: Report) -> dict[str, BeforeAfter]:
    first, second = dict(flat(before.recipe)), dict(flat(after.recipe))
    pairs = {
        name: BeforeAfter(first.get(name), second.get(name))
        for name in {**first, **second}
        if name != "output"
    }
    return {name: pair for name, pair in pairs.items() if pair.changed}


def _same_images(before: Report, after: Report) -> bool | None:
    digests = [report.environment.get("data", {}).get("sha256") for report in (before, after)]
    sizes = [report.recipe.get("image_size_px") for report in (before, after)]
    return None if None in digests else digests[0] == digests[1] and sizes[0] == sizes[1]


# --- For people and programs --------------------------------------------------------------------------------


def headline(comparison: Comparison) -> str:
    """The change that matters most, in one line; the layer that changed most is named first."""
    if comparison.layers:
        row, layer = comparison.layers[0]
        return f"{layer.name} changed most ({row.name}): {layer.words()}"
    same = all(row.same_content for row in comparison.rows)
    if comparison.only_before or comparison.only_after:
        return (
            f"The files that both runs have {'are the same' if same else 'differ in the values of weights'}"
        )
    return "Every file is the same" if same else "The values of weights changed, not how they are stored"


def to_plain(comparison: Comparison) -> dict[str, Any]:
    """Everything, as plain data for JSON: a pair is a list of two."""
    layers = comparison.layers
    return {
        "schema": SCHEMA,
        "runs": _list(comparison.runs),
        "headline": headline(comparison),
        "most_changed_layer": layers[0][1].name if layers else None,
        "recipe": {name: _list(pair) for name, pair in comparison.recipe.items()},
        "same_images": comparison.same_images,
        "rows": [_row_to_plain(row) for row in comparison.rows],
        "only_in_first": list(comparison.only_before),
        "only_in_second": list(comparison.only_after),
    }


def _row_to_plain(row: RowChange) -> dict[str, Any]:
    """A pair for every metric, of two None where neither run is measured by it."""
    fields = _fields(row)
    del fields["scores"]
    unknown = BeforeAfter(None, None)
    scores = {known.key: _list(row.scores.get(known.key, unknown)) for known in metrics()}
    return {**fields, **scores, "layers": [_fields(layer) for layer in row.layers]}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the headline, a line for each file, the layers that changed most, and the settings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(Text(headline(comparison), style="bold"), soft_wrap=True)
    files = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    files.add_column("file", overflow="fold")
    for heading in ("bytes", "", "download", _heading(comparison), "points", "zeros", "layers\nchanged"):
        files.add_column(heading, justify="right")
    for row in comparison.rows:
        files.add_row(*map(Text, _cells(row)))
    console.print(files)
    layers = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("layer", "file", "change"):
        layers.add_column(heading, overflow="fold")
    for row, layer in comparison.layers[:SHOWN_LAYERS]:
        layers.add_row(Text(layer.name), Text(row.name), Text(layer.words()))
    if comparison.layers:
        console.print(layers)
    for line in _remarks(comparison):
        console.print(Text(line), soft_wrap=True)


def _heading(comparison: Comparison) -> str:
    """The metrics of the files, for people."""
    found = dict.fromkeys(key for row in comparison.rows for key in row.scores)
    return " or ".join(metric(key).heading for key in found or [metrics()[0].key])


def _remarks(comparison: Comparison) -> Iterator[str]:
    if len(comparison.layers) > SHOWN_LAYERS:
        yield f"{len(comparison.layers) - SHOWN_LAYERS} more layers changed: --json - has all"
    for name, pair in comparison.recipe.items():
        yield f"recipe: {name}: {plain(pair.before)} → {plain(pair.after)}"
    if comparison.same_images is False:
        yield f"accuracy was measured on other images: {_heading(comparison)} does not compare"
    for name in comparison.only_before:
        yield f"only in {comparison.runs.before}: {name}"
    for name in comparison.only_after:
        yield f"only in {comparison.runs.after}: {name}"


def _cells(row: RowChange) -> list[str]:
    before, after = row.score.before, row.score.after
    scores = ["–", "–"]
    if before is not None:
        scores = [f"{percent(before)}\n→ {percent(after)}", _signed(100 * (after - before), 2)]
    return [
        f"{row.name.removesuffix(row.target)}\n{row.target}",
        f"{bytes_exact(row.bytes.before)}\n→ {bytes_exact(row.bytes.after)}",
        f"{_signed(100 * (row.bytes.after / row.bytes.before - 1), 1)} %",
        "\n→ ".join("–" if count is None else bytes_exact(count) for count in _list(row.download_bytes)),
        *scores,
        f"{zeros(row.zero_fraction.before)}\n→ {zeros(row.zero_fraction.after)}",
        "same file" if row.same_content else str(len(row.layers)),
    ]


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def _list(pair: BeforeAfter) -> list[Any]:
    return [pair.before, pair.after]


def _fields(record: Any) -> dict[str, Any]:
    return {
        name: _list(value) if isinstance(value, BeforeAfter) else value
        for name, value in vars(record).items()
    }
