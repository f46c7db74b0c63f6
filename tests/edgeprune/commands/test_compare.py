"""`edgeprune compare` on runs of real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converters.facts import download_bytes
from edgeprune.cli import main
from edgeprune.commands import compare as comparing
from edgeprune.report import records
from tests.support.reports import make_report, make_row
from tests.support.runs import TARGET, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three prunable layers: in "later" the second one has fewer zeros; "again" repeats "first"."""
    folder = tmp_path_factory.mktemp("compare")
    zeros = {"first": (0.8, 0.8, 0.8), "later": (0.8, 0.5, 0.8), "again": (0.8, 0.8, 0.8)}
    drops = {"first": 0.5, "later": 0.25, "again": 0.5}
    return {
        name: write_run(
            folder / name, {"dense": (0.0, 0.0, 0.0), "block80": layers}, {"block80": drops[name]}
        )
        for name, layers in zeros.items()
    }


def changed_layer(run: Path) -> str:
    """The name of the second prunable layer."""
    (row,) = (row for row in records.read(run).rows if row.variant == "block80")
    return [layer["name"] for layer in row.layers if layer["kind"] == "conv1x1"][1]


def test_the_layer_whose_sparsity_changed_is_named_first(runs: dict[str, Path], capsys: Any) -> None:
    assert main(["compare", str(runs["first"]), str(runs["later"])]) == 0
    told = capsys.readouterr().out
    name = changed_layer(runs["first"])
    assert told.startswith(f"{name} changed most (block80 on {TARGET}): zeros 80.")
    assert " → 50.0 %" in told.splitlines()[0]
    assert "same file" in told, "the dense files are the same"
    assert "+0.25" in told, "a quarter of a point is won"


def test_json_has_every_row_and_layer(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "compare.json"
    command = ["compare", str(runs["first"]), str(runs["later"]), "--json"]
    assert main([*command, str(out)]) == 0
    assert "changed most" in capsys.readouterr().out
    assert main([*command, "-"]) == 0
    told = capsys.readouterr().out
    assert out.read_text() == told
    plain = json.loads(told)
    assert plain["most_changed_layer"] == changed_layer(runs["first"])
    dense, block = plain["rows"]
    assert (dense["same_content"], dense["layers"]) == (True, [])
    sizes = [(runs[name] / f"files/block80-{TARGET}.tflite").stat().st_size for name in ("first", "later")]
    assert block["bytes"] == sizes
    downloads = [download_bytes(runs[name] / f"files/block80-{TARGET}.tflite") for name in ("first", "later")]
    assert block["download_bytes"] == downloads
    assert downloads[0] < downloads[1] < sizes[1]
    assert block["top1"] == pytest.approx([0.895, 0.8975])
    assert [layer["name"] for layer in block["layers"]] == [plain["most_changed_layer"]]
    assert block["layers"][0]["zero_fraction"] == pytest.approx([0.8, 0.5], abs=0.01)


def test_runs_of_the_same_files_do_not_differ(runs: dict[str, Path], capsys: Any) -> None:
    assert main(["compare", str(runs["first"]), str(runs["again"])]) == 0
    assert capsys.readouterr().out.startswith("Every file is the same")


def test_a_folder_that_is_no_run_is_a_mistake(runs: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    assert main(["compare", str(runs["first"]), str(tmp_path)]) == 2
    assert f"cannot read {tmp_path / 'report.json'}" in capsys.readouterr().err


def layer(name: str, zeros: float, bits: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "conv1x1",
        "shape": [8, 8, 1, 1],
        "zero_fraction": zeros,
        "bits_per_weight": bits,
        "encoding": "int8",
        **more,
    }


@pytest.mark.parametrize(
    ("before", "after", "order"),
    [
        # zeros that are stored like other values count as well as bits
        ([layer("a", 0.2, 8), layer("b", 0.5, 4)], [layer("a", 0.6, 8), layer("b", 0.5, 3)], "ab"),
        ([layer("a", 0.2, 8), layer("b", 0.5, 4)], [layer("a", 0.4, 8), layer("b", 0.5, 3)], "ba"),
        # as much of more weights is more
        (
            [layer("a", 0.2, 8), layer("b", 0.2, 8, shape=[9, 9])],
            [layer("a", 0.6, 8), layer("b", 0.6, 8, shape=[9, 9])],
            "ba",
        ),
        # a layer that is new, or gone, changed altogether
        ([layer("a", 0.0, 8), layer("b", 0.0, 8)], [layer("a", 0.9, 8), layer("c", 0.0, 8)], "bca"),
        ([layer("a", 0.0, 8)], [layer("a", 0.0, 8)], ""),
        ([layer("a", 0.0, 8)], [layer("a", 0.0, 8, encoding="float16")], "a"),
        # files of other tools have layers of one name
        ([layer("a", 0.2, 8)] * 2, [layer("a", 0.2, 8), layer("a", 0.4, 8)], "a (2)"),
        ([layer("a", 1.0, 0)], [layer("a", 1.0, 0, shape=[4, 8, 1, 1])], "a"),
    ],
)
def test_layers_are_sorted_by_how_much_they_changed(before: Any, after: Any, order: str) -> None:
    changes = comparing.layer_changes(before, after)
    assert "".join(change.name for change in changes) == order
    assert all(change.words() for change in changes)


def test_files_pair_by_variant_and_one_that_changed_its_name_with_its_successor() -> None:
    before = [make_row(variant=name) for name in ("dense", "block80", "channels50")]
    after = [make_row(variant=name) for name in ("dense", "block90", "channels50")]
    pairs, gone, new = comparing.match(before, after)
    assert [(a.variant, b.variant) for a, b in pairs] == [
        ("dense", "dense"),
        ("block80", "block90"),
        ("channels50", "channels50"),
    ]
    assert (gone, new) == ([], [])
    # Where two could be meant none is.
    two = [make_row(variant=name) for name in ("block70", "block90")]
    pairs, gone, new = comparing.match([make_row(variant="block80")], two)
    assert (pairs, [row.variant for row in gone]) == ([], ["block80"])
    assert [row.variant for row in new] == ["block70", "block90"]


def test_settings_images_and_single_files_are_told(tmp_path: Path, capsys: Any) -> None:
    report = make_report()
    other = replace(
        report,
        recipe={**report.recipe, "seed": 8},
        environment={**report.environment, "data": {"sha256": "cd" * 32}},
        rows=report.rows[1:],
    )
    for name, written in (("a", report), ("b", other)):
        (tmp_path / name).mkdir()
        records.write(written, tmp_path / name)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "recipe: seed: 7 → 8" in told
    assert "accuracy was measured on other images" in told
    assert f"only in {tmp_path / 'a'}: dense on coreml-ios16" in told
