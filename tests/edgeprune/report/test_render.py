from __future__ import annotations

import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from converters.gains import GAINS
from edgeprune import budget as budgets
from edgeprune.evaluation.records import Examination, thumbnail
from edgeprune.report import formatting, records, render, summary
from edgeprune.report.verdict import RECOMMENDED_DROP_POINTS

BUDGETS = {
    "none": None,
    "within": {"bytes": {"litert-arm64-int8": 900_000}, "top1_drop_points": 0.5},
    "over": {"bytes": {"coreml-ios16": 1_000_000, "litert-web": 70_001}, "top1_drop_points": 0.35},
}
VOID = {"meta", "br", "img", "path", "use", "rect"}


def html(made: records.Report) -> str:
    """Render what `report.json` would hold; the same report only once."""
    return _html(json.dumps(records.to_json(made)))


@functools.cache
def _html(text: str) -> str:
    return render.html(records.from_json(json.loads(text)))


class Page(HTMLParser):
    """An HTML page taken apart: its tags, its text outside style and pictures, its tables by heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.picture_text: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" in self.open:
            return
        if "svg" in self.open:
            self.picture_text.append(data.strip())
            return
        self.text.append(data)
        if self.open[-1:] and any(tag in ("th", "td") for tag in self.open):
            self.tables[-1][-1][-1] += data


def _number(text: str) -> float:
    """Read "1,234", "79.6 %", "−0.22", "2.9×" or "3.1e-04" back."""
    return float(re.sub(r"[,×]| [%MkG]?B?$", "", text.replace(formatting.MINUS, "-")))


def _size(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]


# How a heading's cell must read: the row's value, and how far rounding may have moved it.
CELLS: dict[str, Callable[[str, summary.RankedFile], bool]] = {
    "size": lambda cell, file: _size(cell) == pytest.approx(file.row.bytes, rel=0.006),
    "bytes": lambda cell, file: _number(cell) == file.row.bytes,
    "download": lambda cell, file: (
        (_size(cell) if "B" in cell else _number(cell)) == pytest.approx(file.row.download_bytes, rel=0.006)
    ),
    "top-1": lambda cell, file: _number(cell) == pytest.approx(100 * file.row.score, abs=0.0051),
    "points lost": lambda cell, file: _number(cell) == pytest.approx(file.row.drop_points, abs=0.0051),
    "times smaller": lambda cell, file: _number(cell) == pytest.approx(file.times_smaller, abs=0.051),
    "zeros": lambda cell, file: _number(cell) == pytest.approx(100 * file.row.zero_fraction, abs=0.051),
    "bits per weight": lambda cell, file: (
        _number(cell) == pytest.approx(file.row.bits_per_weight, abs=0.0051)
    ),
    "sparse kernels": lambda cell, file: (
        {"yes": True, "no": False, "unknown": None}[cell] is file.row.sparse_runtime
    ),
}


def _check_files(
    headings: list[str],
    rows: dict[tuple[str, str], list[str]],
    report: records.Report,
    without: tuple[str, ...] = (),
) -> None:
    files = [file for group in summary.groups(report, summary.verdict(report)) for file in group.files]
    assert set(rows) == {(file.row.target, file.row.variant) for file in files}
    expected = {name: holds for name, holds in CELLS.items() if name not in without}
    assert set(expected) <= set(headings)
    for file in files:
        cells = dict(zip(headings, rows[file.row.target, file.row.variant], strict=True))
        for heading, holds in expected.items():
            assert holds(cells[heading], file), f"{heading}: {cells[heading]!r} of {file.row.path}"


def _without_glyph(text: str) -> str:
    return re.sub(r"^\W+", "", text.strip())


@pytest.mark.parametrize("limits", BUDGETS.values(), ids=BUDGETS)
def test_the_table_of_files_is_the_jsons(report, limits):
    made = report(limits)
    table = Page(html(made)).tables[0]
    headings = [cell.lower() for cell in table[0]]
    rows, target = {}, ""
    for cells in table[1:]:
        if len(cells) == 1:
            target = cells[0]
        else:
            rows[target, _without_glyph(cells[0])] = cells
    _check_files(headings, rows, made)


@pytest.mark.parametrize("limits", BUDGETS.values(), ids=BUDGETS)
def test_the_markdown_table_is_the_jsons(report, limits):
    made = report(limits)
    section = render.markdown(made).split("## Files")[1].split("##")[0]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line]
    _check_files(table[0], {(cells[0], cells[1]): cells for cells in table[2:]}, made)


def test_further_numbers_of_the_task_stand_beside_its_metric(report):
    made = report()
    rows = tuple(dataclasses.replace(row, details={"top5": 0.9876}) for row in made.rows[1:])
    made = dataclasses.replace(made, rows=(made.rows[0], *rows))
    table = Page(html(made)).tables[0]
    place = table[0].index("Top-5")
    told = [cells[place] for cells in table[1:] if len(cells) > 1]
    assert sorted(set(told)) == ["98.76 %", "–"]
    section = render.markdown(made).split("## Files")[1].split("##")[0]
    lines = [line.split("|") for line in section.splitlines() if "|" in line]
    assert lines[0][8].strip() == "top-5"
    assert lines[-1][8].strip() == "98.76 %"
    assert len({len(line) for line in lines}) == 1


def test_the_tables_of_layers_are_the_jsons(report):
    made = report()
    tables = [table for table in Page(html(made)).tables if table[0][0] == "Layer"]
    assert len(tables) == len(made.rows)
    for table, row in zip(tables, made.rows, strict=True):
        for cells, layer in zip(table[1:], row.layers, strict=True):
            named = dict(zip(table[0], cells, strict=True))
            assert named["Layer"] == layer["name"]
            assert _number(named["Zeros"]) == pytest.approx(100 * layer["zero_fraction"], abs=0.051)
            assert _number(named["Bits / weight"]) == pytest.approx(layer["bits_per_weight"], abs=0.0051)
            assert [int(size) for size in named["Shape"].split("×")] == layer["shape"]
            assert named["Stored as"].startswith(layer["encoding"])
            assert (layer["note"] or "") in named["Stored as"]


def test_the_tables_of_models_and_of_proof_are_the_jsons(report):
    made = report()
    tables = {table[0][0]: table for table in Page(html(made)).tables[1:]}
    models = next(table for table in Page(html(made)).tables if "Parameters" in table[0])
    for cells, training in zip(models[1:], made.trainings, strict=True):
        assert _without_glyph(cells[0]) == training.variant
        assert _number(cells[1]) == pytest.approx(100 * training.score, abs=0.0051)
        assert _number(cells[2]) == training.parameters
        assert cells[3:] == ["5.81 M", "6", "1 min 34 s", "Some GPU, 2 processes"]
    for cells, row in zip(tables["File"][1:], made.rows, strict=True):
        assert (cells[0], _number(cells[1]), cells[5]) == (row.path, row.images, row.sha256)
        assert _number(cells[2]) == pytest.approx(100 * row.agreement, abs=0.0051)
        assert _number(cells[3]) == pytest.approx(row.max_relative_error, rel=0.06)
        assert cells[4] == "0.0 to 255.0"


NUMBER = r"(?<![\w.,])[−-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]\d+)?"


def _leaves(data):
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _leaves(value)
    elif isinstance(data, list):
        for value in data:
            yield from _leaves(value)
    else:
        yield data


def _lost_on_worse_images(examinations):
    """Points of each variant below the dense model: images as they are, each condition, each class."""
    top1 = {}
    for examination in examinations:
        robustness = examination["robustness"]
        values = {"none": robustness["top1"]}
        values |= {(c["corruption"], c["strength"]): c["top1"] for c in robustness["conditions"]}
        values |= {c["name"]: c["corrupted_top1"] for c in robustness["classes"]}
        top1[examination["variant"]] = values
    return {100 * (top1["dense"][key] - value) for own in top1.values() for key, value in own.items()}


@pytest.mark.parametrize("limits", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("form", [html, render.markdown])
def test_every_number_of_a_page_is_the_jsons(report, limits, form):
    """No text holds a number that is not one of the report's, or follows from two of them in a named way."""
    made = report(limits)
    data = records.to_json(made)
    text = " ".join(Page(form(made)).text) if form is html else form(made).replace("\\", "")
    words = {leaf for leaf in _leaves(data) if isinstance(leaf, str)}
    words |= {word.replace("_", " ") for word in words} | {"SHA-256", "32 bits", "float32"}
    words |= {words for gain in GAINS for words in vars(gain).values()}
    words |= {thumbnail(leaf) for leaf in _leaves(data) if type(leaf) is int}
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, " ")

    numbers = {
        leaf for leaf in _leaves(data) if isinstance(leaf, (int, float)) and not isinstance(leaf, bool)
    }
    numbers |= {len(training.epochs) for training in made.trainings}
    numbers |= {100 / row.images for row in made.rows}
    numbers |= {row.bytes - most for row in made.rows for most in budgets.from_plain(limits).bytes.values()}
    numbers |= {RECOMMENDED_DROP_POINTS}
    numbers |= _lost_on_worse_images(data["examinations"])
    numbers |= {len(made.sensitivity.layers)}
    groups = summary.groups(made, summary.verdict(made))
    written = {formatting.times(file.times_smaller) for group in groups for file in group.files}
    written |= {formatting.shape(layer["shape"]) for row in made.rows for layer in row.layers}
    forms = (
        formatting.bits, formatting.bytes_exact, formatting.bytes_human, formatting.confidence,
        formatting.count_human, formatting.duration, formatting.error, formatting.milliseconds,
        formatting.percent, formatting.plain, formatting.points, formatting.points_fine,
        formatting.points_lost, formatting.strength, formatting.zeros,
    )  # fmt: skip
    written |= {
        write(number)
        for number in numbers
        for write in forms
        if isinstance(number, int) or "." in str(number)
    }
    allowed = {token for string in written for token in re.findall(NUMBER, string)}
    found = re.findall(NUMBER, text)
    assert len(found) > 100
    assert [token for token in found if token not in allowed] == []


JPEG = b"\xff\xd8\xff not looked into"


def test_the_page_needs_no_network_and_no_script(report):
    pictures = dict.fromkeys((7, 12, 211), render.data_address(JPEG))
    text = render.html(report(BUDGETS["over"]), pictures)
    page = Page(text)
    addresses = [attributes.pop("src") for _, attributes in page.tags if "src" in attributes]
    assert set(addresses) == {pictures[7]}
    assert len(addresses) == 13, (
        "two confusions with three pictures and, but for dense, two samples a variant"
    )
    text = text.replace(pictures[7], "")
    assert pictures[7].startswith("data:image/jpeg;base64,")
    policy = next(attributes for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    names = {tag for tag, _ in page.tags}
    assert not names & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "image",
        "base",
        "form",
        "audio",
        "video",
    }
    assert not [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"
    ]
    assert all(
        value.startswith("#")
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key == "href"
    )
    assert "//" not in text.replace("<!--", "")
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.open == ["svg"] or page.open == [], "every element is closed"


def test_pictures_show_every_file_and_name_the_efficient_ones(report):
    made = report()
    text = html(made)
    figures = dict(re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", text, flags=re.DOTALL))
    curves = ["Top-1 on the held-out images", "Loss", "Zeros asked for", "Noise", "Rotation"]
    confusions = ["cat taken for newt", "dog taken for cat"]
    assert list(figures) == ["Core ML", "LiteRT", *curves, *confusions]
    for name in ("Core ML", "LiteRT"):
        assert figures[name].count("<use") == 6, "three variants on two targets"
    assert "block80, int8" in figures["Core ML"]
    assert "block80, float16" not in figures["Core ML"], "the smaller int8 file is as accurate"
    assert {"block80, float32", "block80, int8", "channels, int8"} <= set(Page(text).picture_text)
    assert not re.search(r"#[0-9a-fA-F]{6}", "".join(figures.values())), "every colour is the page's"
    assert "size, MB (logarithmic)" not in text


def test_each_training_names_its_hardware(report):
    made = report()
    assert html(made).count("<td>Some GPU, 2 processes</td>") == len(made.trainings)
    assert render.markdown(made).count("| Some GPU, 2 processes |") == len(made.trainings)


def test_sizes_that_differ_much_stand_by_powers_of_ten(report):
    made = report()
    dense = max(row.bytes for row in made.rows if row.target.startswith("litert"))
    rows = tuple(
        dataclasses.replace(row, bytes=dense // 20) if row.variant == "channels" else row for row in made.rows
    )
    assert "size, MB (logarithmic)" in Page(html(dataclasses.replace(made, rows=rows))).picture_text


def _table(text: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first heading this is, by heading."""
    table = next(table for table in Page(text).tables if table[0][0] == first)
    headings = [_without_glyph(cell) for cell in table[0]]
    return [dict(zip(headings, map(str.strip, cells), strict=True)) for cells in table[1:]]


def test_the_tables_of_worse_images_are_the_jsons(report):
    made = report()
    dense, *others = made.of(Examination)
    rows = _table(html(made), "Corruption")
    assert [row["Corruption"] for row in rows] == ["none", "noise 0.05", "noise 0.2", "rotation 15"]
    for place, row in enumerate(rows):
        top1 = [
            e.robustness.conditions[place - 1].top1 if place else e.robustness.top1 for e in (dense, *others)
        ]
        assert _number(row["dense"]) == pytest.approx(100 * top1[0], abs=0.0051)
        for examination, value in zip(others, top1[1:], strict=True):
            shown, lost = row[examination.variant].removesuffix(")").split(" (")
            assert _number(shown) == pytest.approx(100 * value, abs=0.0051)
            assert _number(lost) == pytest.approx(100 * (top1[0] - value), abs=0.0051)
    classes = _table(html(made), "Class")
    assert [row["Class"] for row in classes] == ["cat", "dog"], "newts lost nothing"
    for row, cat_or_dog in zip(classes, others[0].robustness.classes, strict=False):
        assert _number(row["Images"]) == cat_or_dog.images
        assert _number(row["block80"]) == pytest.approx(100 * cat_or_dog.corrupted_top1, abs=0.0051)
    assert "worst under noise 0.05, 21.00 points lost" in re.sub(r"\s+", " ", "".join(Page(html(made)).text))


def test_the_tables_of_times_and_of_sensitivity_are_the_jsons(report):
    made = report()
    for row, timing in zip(_table(html(made), "Timed file"), made.benches[0].timings, strict=True):
        assert row["Timed file"] == timing.path
        assert row["Median"] == formatting.milliseconds(timing.median_ms)
        assert row["Load memory"] == formatting.bytes_human(timing.load_memory_bytes)
        assert row["Half of the rounds took"] == " to ".join(
            map(formatting.milliseconds, timing.quartiles_ms)
        )
    for row, layer in zip(_table(html(made), "Pruned layer"), made.sensitivity.layers, strict=True):
        assert row["Pruned layer"] == layer.name
        assert _number(row["Weights"]) == layer.weights
        drops = [_number(row["50.0 %"]), _number(row["95.0 %"])]
        assert drops == pytest.approx(layer.drops_points, abs=0.0051)


def test_mistakes_and_samples_are_the_jsons(report):
    made = report()
    text = re.sub(r"\s+", " ", "".join(Page(html(made)).text))
    for examination in made.of(Examination)[1:]:
        assert f"{examination.both_right} right in both, {examination.only_dense_right} only in dense" in text
        for confusion in examination.confusions:
            counts = f"{confusion.images} of {confusion.label_images} images; dense {confusion.dense_images}"
            assert f"{confusion.label} taken for {confusion.predicted} {counts}" in text
        for said in ("cat dense ✓ cat 81 % {} ✕ newt 55 %", "dog dense ✕ cat 43 % {} ✓ dog 68 %"):
            assert "shows" + said.format(examination.variant).replace(" ", "") in text.replace(" ", "")
    assert "thumbnails/00211.jpg" in text, "a picture that is not there is named"


def test_pictures_are_read_from_the_run_folder_as_far_as_they_fit(report, tmp_path, monkeypatch):
    made = report()
    (tmp_path / "thumbnails").mkdir()
    for place in (7, 211):
        (tmp_path / thumbnail(place)).write_bytes(JPEG)
    address = render.data_address(JPEG)
    assert render.embedded_pictures(made, tmp_path) == {7: address, 211: address}
    page = render.write_pages(made, tmp_path)[0].read_text()
    assert page.count(address) == 11
    assert "Pictures that are named only were left out" in page
    monkeypatch.setattr(render, "PICTURES_LIMIT_BYTES", len(address))
    assert render.embedded_pictures(made, tmp_path) == {7: address}


def test_what_was_not_examined_is_said_with_the_reason(report):
    older = dataclasses.replace(report(), analyses=(), sensitivity=None, benches=())
    for text in ("".join(Page(html(older)).text), render.markdown(older)):
        assert "Not measured: the report holds nothing about it" in text
    assert "edgeprune sensitivity RUN adds it" in "".join(Page(html(older)).text)
    why = dataclasses.replace(older, not_examined={"dense": "too new", "block80": "too new"})
    for text in ("".join(Page(html(why)).text), render.markdown(why)):
        assert "Not measured for dense, block80: too new" in text


def test_the_same_report_gives_the_same_pages(report, tmp_path):
    first = [path.read_bytes() for path in render.write_pages(report(), tmp_path)]
    again = render.write_pages(report(), tmp_path)
    assert [path.name for path in again] == ["report.html", "report.md"]
    assert [path.read_bytes() for path in again] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_a_page_of_40_files_is_small(report, tmp_path):
    made = report()
    names = [f"variant{number}" for number in range(10)]
    renamed = lambda records, name: dataclasses.replace(records, variant=name)  # noqa: E731
    examination = made.of(Examination)[1]
    examination = dataclasses.replace(examination, samples=examination.samples * 6)
    many = dataclasses.replace(
        made,
        rows=tuple(
            dataclasses.replace(row, variant=name, layers=made.rows[0].layers * 18)
            for name in names
            for row in made.rows[:4]
        ),
        trainings=tuple(renamed(made.trainings[1], name) for name in names),
        analyses=tuple(renamed(examination, name) for name in names),
    )
    assert len(many.rows) == 40
    (tmp_path / "thumbnails").mkdir()
    for place in (7, 12, 211):
        (tmp_path / thumbnail(place)).write_bytes(bytes(4000))
    page, _ = render.write_pages(many, tmp_path)
    assert page.stat().st_size < 3_000_000
    assert page.read_text().count("data:image/jpeg") == 10 * 15


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $x_1$ &amp; {{ 7*7 }} | `a` ## [b](c)"


def _hostile(made: records.Report) -> records.Report:
    """Return the report with every text in it one that tries to break out."""
    layers = tuple(
        layer | {"name": HOSTILE, "kind": HOSTILE, "encoding": HOSTILE, "note": HOSTILE}
        for layer in made.rows[0].layers
    )
    row = dataclasses.replace(
        made.rows[0],
        variant=HOSTILE,
        target=HOSTILE,
        path=HOSTILE,
        sha256=HOSTILE,
        sparse_runtime=None,
        sparse_runtime_reason=HOSTILE,
        layers=layers,
    )
    examination = made.of(Examination)[1]
    robustness = dataclasses.replace(
        examination.robustness,
        image_source=HOSTILE,
        conditions=tuple(
            dataclasses.replace(condition, corruption=HOSTILE, unit=HOSTILE)
            for condition in examination.robustness.conditions
        ),
        classes=tuple(dataclasses.replace(known, name=HOSTILE) for known in examination.robustness.classes),
    )
    hostile = dataclasses.replace(
        examination,
        variant=HOSTILE,
        confusions=(dataclasses.replace(examination.confusions[0], label=HOSTILE, predicted=HOSTILE),),
        samples=(
            dataclasses.replace(examination.samples[0], label=HOSTILE, dense=HOSTILE, predicted=HOSTILE),
        ),
        robustness=robustness,
    )
    dense = dataclasses.replace(hostile, variant="dense")
    sensitivity = dataclasses.replace(
        made.sensitivity,
        image_source=HOSTILE,
        layers=(dataclasses.replace(made.sensitivity.layers[0], name=HOSTILE),),
        left_dense={HOSTILE: HOSTILE},
    )
    timing = dataclasses.replace(made.benches[0].timings[0], path=HOSTILE)
    words = dict.fromkeys(("source", "runtime", "description", "version", "processor"), HOSTILE)
    return records.Report(
        analyses=(dense, hostile),
        not_examined={HOSTILE: HOSTILE},
        sensitivity=sensitivity,
        benches=(dataclasses.replace(made.benches[0], timings=(timing,), **words),),
        recipe={"model": HOSTILE, "output": HOSTILE, HOSTILE: HOSTILE},
        environment={"command": f"{HOSTILE}\n```\n{HOSTILE}", HOSTILE: {HOSTILE: [HOSTILE]}},
        rows=(row, dataclasses.replace(row, score=0.5, sparse_runtime=False)),
        trainings=(dataclasses.replace(made.trainings[0], variant=HOSTILE),),
    )


def test_hostile_text_is_only_text(report):
    text = html(_hostile(report()))
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "img"}, "no pictures were given"
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "".join(page.text).count(HOSTILE) > 40


def test_hostile_names_are_only_text_in_pictures(report):
    made = report()
    short = '<i>&$x_1$"'
    rows = tuple(dataclasses.replace(row, variant=short) for row in made.rows[:1])
    assert f"{short}, float16" in Page(html(dataclasses.replace(made, rows=rows))).picture_text


def test_hostile_text_is_only_text_in_markdown(report):
    text = render.markdown(_hostile(report()))
    *_, last = re.finditer("````sh\n", text)
    outside, fence, rest = text[: last.start()], last.group(), text[last.end() :]
    assert fence, "the fence is longer than the one inside"
    assert rest.endswith("\n````\n")
    assert "<" not in outside
    assert len({line.count(" | ") for line in outside.splitlines() if line.startswith("| ")}) == 4, (
        "the tables of files, of what is within the points, of models, and of corrupted images"
    )
    assert not re.search(r"(?<!\\)[`\[*_]", outside.replace("**", ""))


def test_a_bare_report_renders(row):
    made = records.Report({}, {}, ())
    assert "No budget was set" in html(made)
    assert "Speed, memory and battery" in render.markdown(made)
    one = records.Report({}, {}, (row(variant="block80", input_range=None),))
    table = Page(html(one)).tables[0]
    assert table[2][table[0].index("Times smaller")] == "–"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (None, ["No budget was set", "Set a budget"]),
        (
            BUDGETS["within"],
            ["Within budget", "Budget: at most 900,000 bytes and 0.5 points of accuracy lost"],
        ),
        (
            BUDGETS["over"],
            [
                "Over budget: coreml-ios16, litert-web",
                "block80, 1,120,331 bytes: 120,331 bytes over the budget of 1,000,000",
                "The run wrote no file for this target.",
                "Add litert-web to the targets of the recipe",
            ],
        ),
    ],
)
def test_the_verdict_comes_first(report, limits, words):
    made = report(limits)
    text = re.sub(r"\s+", " ", "".join(Page(html(made)).text))
    for word in words:
        assert word in text
    assert text.index(words[0]) < text.index("All files")
    assert render.markdown(made).startswith(f"# mobilenet\\_v3\\_small: {words[0]}")


def test_what_was_not_measured_is_said(report):
    made = dataclasses.replace(report(), benches=())
    for text in ("".join(Page(html(made)).text), render.markdown(made)):
        assert "Speed, memory and battery on a device." in text
        assert "Core ML files on Apple's own runtime" in text
        assert "Core ML does not say which kernels it takes" in text


def test_the_terminal_table_fits_a_screen_and_holds_the_numbers(report):
    made = report(BUDGETS["over"])
    console = Console(width=80, file=io.StringIO(), color_system=None)
    render.print_table(made, console)
    text = console.file.getvalue()
    table, said = text.split("\n\n", 1)
    assert all(len(line) <= 80 for line in table.splitlines())
    rows, target = {}, ""
    for line in table.splitlines()[2:]:
        if line.startswith("  "):
            variant, size, value, unit, *cells = line.split()
            rows[target, variant] = [size, f"{value} {unit}", *cells]
        else:
            target = line.strip()
    # A target of the budget without a file has no heading over nothing: the verdict tells of it.
    assert "litert-web" not in table
    assert "litert-web: the run has no file for this target" in said
    headings = [
        "bytes",
        "download",
        "times smaller",
        "top-1",
        "points lost",
        "zeros",
        "bits per weight",
        "sparse kernels",
    ]
    _check_files(headings, rows, made, without=("size",))
    assert said.startswith("Over budget: coreml-ios16, litert-web\n")
    assert (
        "files/block80-coreml-ios16.mlpackage: 1,120,331 bytes; 120,331 bytes over the budget of 1,000,000"
        in said
    )
    assert said.splitlines()[-1].startswith(
        "Next: For coreml-ios16, prune more, or raise its budget to 1,120,331"
    )


def test_names_with_brackets_are_printed_as_they_are(row):
    console = Console(width=120, file=io.StringIO(), color_system=None)
    render.print_table(records.Report({}, {}, (row(variant="[red]x[/red]", path="[bold]y"),)), console)
    assert "[red]x[/red]" in console.file.getvalue()
    assert "ship [bold]y" in console.file.getvalue()


def _colours(css: str) -> dict[str, dict[str, str]]:
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    dark = dark.split("* { box-sizing")[0]
    read = lambda part: dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", part))  # noqa: E731
    return {"light": read(light), "dark": read(light) | read(dark)}


def _contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(scheme):
    colours = _colours((Path(render.__file__).parent / "templates" / "style.css").read_text())[scheme]
    pairs = [(text, back) for text in ("--ink", "--muted") for back in ("--page", "--card")]
    pairs += [("--ink", back) for back in ("--good-back", "--bad-back", "--bar", "--bar-bits")]
    pairs += [("--good", "--good-back"), ("--bad", "--bad-back"), ("--good", "--card"), ("--bad", "--card")]
    pairs += [(f"--series-{i}", back) for i in range(6) for back in ("--card", "--page", "--good-back")]
    too_low = {pair: _contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in too_low.items() if ratio < 4.5} == {}


def test_every_colour_the_page_uses_is_defined(report):
    text = html(report())
    used = set(re.findall(r"var\((--[\w-]+)\)", text))
    defined = set(re.findall(r"(--[\w-]+):", text))
    assert used
    assert used <= defined


def test_layers_left_dense_are_named_with_the_reason(report):
    made = report()
    block = dataclasses.replace(
        made.trainings[1], left_dense={"head.3": "10 outputs are not a multiple of 4"}
    )
    made = dataclasses.replace(made, trainings=(made.trainings[0], block))
    assert "<code>head.3</code>: 10 outputs are not a multiple of 4" in render.html(made)
    assert "head.3 was left dense: 10 outputs are not a multiple of 4" in render.markdown(made)
