from __future__ import annotations

import pytest

from edgeprune.errors import UserError
from edgeprune.report import summary


@pytest.mark.parametrize(
    ("files", "efficient"),
    [
        ([("litert-arm64", 10, 0.9)], [True]),
        ([("litert-arm64", 10, 0.9), ("litert-arm64", 9, 0.9)], [False, True]),
        ([("litert-arm64", 10, 0.9), ("litert-arm64", 10, 0.91)], [False, True]),
        ([("litert-arm64", 10, 0.9), ("litert-arm64-int8", 9, 0.89)], [True, True]),
        ([("litert-arm64", 10, 0.9), ("litert-web-int8", 9, 0.9)], [False, True]),  # one format, they compete
        ([("litert-arm64", 10, 0.9), ("coreml-ios16", 9, 0.95)], [True, True]),  # they never do
        (
            [("litert-arm64", 10, 0.9), ("litert-arm64", 10, 0.9)],
            [True, True],
        ),  # equals do not beat each other
    ],
)
def test_a_file_is_efficient_when_none_of_its_format_beats_it(row, files, efficient):
    rows = [row(target=target, bytes=size, score=top1) for target, size, top1 in files]
    assert [summary.is_efficient(one, rows) for one in rows] == efficient


def test_files_are_compared_with_the_dense_file_of_their_target(report):
    groups = summary.groups(report(), summary.verdict(report()))
    assert [group.target for group in groups] == [
        "coreml-ios16",
        "coreml-ios18-int8",
        "litert-arm64",
        "litert-arm64-int8",
    ]
    times = {
        (file.row.variant, file.row.target): file.times_smaller for group in groups for file in group.files
    }
    assert times["block80", "litert-arm64"] == pytest.approx(6_203_148 / 2_131_016)
    assert times["dense", "coreml-ios16"] == 1


def test_without_a_dense_file_nothing_is_compared(row):
    from edgeprune.report.records import Report

    report = Report({}, {}, (row(variant="block80"),))
    ((file,),) = [group.files for group in summary.groups(report, summary.verdict(report))]
    assert file.times_smaller is None


def test_reasons_are_gathered(report):
    rows = report().rows
    assert summary.sparse_reasons(rows, None) == {
        "Core ML does not say which kernels it takes": "block80 on coreml-ios16, coreml-ios18-int8"
    }
    assert summary.sparse_reasons(rows, False) == {
        "no weight is stored sparse": "dense, channels on every target"
    }


def test_a_senseless_budget_in_the_recipe_is_refused(report):
    with pytest.raises(UserError, match="unknown target 'ios'"):
        summary.verdict(report({"bytes": {"ios": 5}}))
