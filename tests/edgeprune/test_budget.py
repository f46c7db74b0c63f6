"""What a budget may say, in Python, in files and in recipes, and what is refused."""

from __future__ import annotations

import math

import pytest

from edgeprune import budget as budgets
from edgeprune.budget import Budget, Limits
from edgeprune.errors import UserError
from edgeprune.recipe import Recipe, to_data

WEB, ARM = "litert-web", "litert-arm64"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Budget({"ios": 5}), "unknown target 'ios': choose from coreml-ios16, "),
        (Budget({ARM: 0}), "budget.bytes.litert-arm64 is 0: give a whole number of bytes above 0"),
        (Budget({ARM: -4}), "budget.bytes.litert-arm64 is -4"),
        (Budget({ARM: 1.5}), "budget.bytes.litert-arm64 is 1.5"),
        (Budget({ARM: True}), "budget.bytes.litert-arm64 is True"),
        (Budget(target={ARM: Limits(download_bytes=0)}), "budget.target.litert-arm64.download_bytes is 0"),
        (Budget({}, {"top1": -0.1}), "budget.top1_drop_points is -0.1: give percentage points from 0 to 100"),
        (Budget({}, {"top1": 101}), "budget.top1_drop_points is 101"),
        (Budget({}, {"top1": math.nan}), "budget.top1_drop_points is nan"),
    ],
)
def test_a_budget_that_makes_no_sense_says_what_would(wrong, message):
    (problem,) = wrong.problems()
    assert message in problem


def test_a_sensible_budget_has_no_problems():
    assert Budget().problems() == []
    assert Budget({ARM: 1, "coreml-ios16": 5_000_000}, {"top1": 0}).problems() == []
    assert Budget({}, {"top1": 100.0}).problems() == []


def test_a_budget_file_is_read(tmp_path):
    path = tmp_path / "budget.toml"
    path.write_text("top1_drop_points = 1\n[bytes]\nlitert-arm64 = 400_000\n")
    assert budgets.read(path) == Budget({ARM: 400_000}, {"top1": 1.0})


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("", ["limits nothing: give top1_drop_points"]),
        ("top1_drop_points = ", ["is not TOML"]),
        ("top1_drop_points = " + "[" * 5_000, ["is not TOML: maximum recursion depth"]),
        (
            "drop = 1\nbytes = 4",
            ["unknown field 'drop'", "budget.bytes must be an object with named values, not 4"],
        ),
        (
            "top1_drop_points = 200\n[bytes]\nios = 0",
            ["unknown target 'ios'", "budget.bytes.ios is 0", "budget.top1_drop_points is 200"],
        ),
    ],
)
def test_every_mistake_in_a_budget_file_is_one_message(tmp_path, content, messages):
    path = tmp_path / "budget.toml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        budgets.read(path)
    for message in messages:
        assert message in str(caught.value)
    assert all(str(path) in problem for problem in caught.value.problems)


def test_a_budget_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the budget .*none\.toml: No such file"):
        budgets.read(tmp_path / "none.toml")


def test_only_some_limits_are_kept():
    limit = Budget({ARM: 5}, {"top1": 1.0}, {WEB: Limits(bytes=6, time_ratio=0.5)})
    assert limit.only(["bytes"]) == Budget({ARM: 5}, {}, {WEB: Limits(bytes=6)})
    assert limit.only(["time_ratio"]) == Budget({}, {}, {WEB: Limits(time_ratio=0.5)})
    assert not limit.only(["load_memory_bytes"])
    sizes = Budget(target={WEB: Limits(bytes=6, download_bytes=5)})
    assert sizes.only(["download_bytes"]) == Budget(target={WEB: Limits(download_bytes=5)})
    assert limit.only(["top1_drop_points"]) == Budget({}, {"top1": 1.0}, {WEB: Limits()})


def test_a_recipe_refuses_limits_that_a_run_does_not_measure():
    limit = Budget(target={ARM: Limits(bytes=5, time_ratio=0.5)})
    with pytest.raises(
        UserError, match=r"budget\.target\.litert-arm64\.time_ratio: a run does not measure it"
    ):
        Recipe(model="mobilenet_v3_small", budget=limit)
    taken = Recipe(model="mobilenet_v3_small", budget=Budget(target={ARM: Limits(bytes=5)}))
    assert budgets.from_plain(to_data(taken)["budget"]) == taken.budget


def test_points_of_mean_iou_out_of_range_are_refused():
    assert Budget(drop_points={"miou": 101.0}).problems() == [
        "budget.miou_drop_points is 101.0: give percentage points from 0 to 100, such as 0.5"
    ]
    assert Budget(drop_points={"miou": 1.0}).only(["bytes"]) == Budget()


ALL_THERE_IS = Budget(
    {ARM: 400_000},
    {"top1": 0.5},
    {WEB: Limits(bytes=9, drop_points={"top1": 1.5}, load_memory_bytes=7, time_ratio=0.5)},
)


def test_a_budget_file_of_an_earlier_version_is_read(tmp_path):
    """Points lost are a field of their own, beside the table and within those of the targets."""
    path = tmp_path / "budget.toml"
    path.write_text(
        "top1_drop_points = 0.5\n[bytes]\nlitert-arm64 = 400_000\n[target.litert-web]\nbytes = 9\n"
        "top1_drop_points = 1.5\nload_memory_bytes = 7\ntime_ratio = 0.5\n"
    )
    assert budgets.read(path) == ALL_THERE_IS


def test_plain_data_has_a_field_for_each_metric_and_reads_back():
    plain = budgets.to_plain(ALL_THERE_IS)
    assert (plain["top1_drop_points"], plain["miou_drop_points"]) == (0.5, None)
    assert plain["target"][WEB]["top1_drop_points"] == 1.5
    assert "drop_points" not in plain
    assert "drop_points" not in plain["target"][WEB]
    assert budgets.from_plain(plain) == ALL_THERE_IS
    assert budgets.from_plain(None) == Budget()


def test_a_target_s_own_points_go_before_those_of_all():
    assert ALL_THERE_IS.limits(WEB).drop_points == {"top1": 1.5}
    assert ALL_THERE_IS.limits(ARM).drop_points == {"top1": 0.5}
    assert ALL_THERE_IS.limits(ARM).most("top1_drop_points") == 0.5
    assert ALL_THERE_IS.limits(ARM).most("miou_drop_points") is None


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"top1_drop_points": "half"}, "budget.top1_drop_points must be a finite number, not 'half'"),
        ({"target": {WEB: {"miou_drop_points": []}}}, f"budget.target.{WEB}.miou_drop_points must be a"),
        ({"drop_points": 5, "top1_drop_points": 1}, "budget.drop_points must be an object"),
        ({"drop_points": {"top5": 1.0}}, "budget.drop_points: unknown metric 'top5': choose from top1, miou"),
        ({"target": {WEB: {"drop_points": {"top5": 1.0}}}}, f"budget.target.{WEB}.drop_points: unknown"),
    ],
)
def test_wrong_points_are_named_as_files_have_them(plain, message):
    with pytest.raises(UserError) as caught:
        budgets.from_plain(plain)
    assert message in str(caught.value)
