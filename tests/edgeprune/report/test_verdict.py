from __future__ import annotations

import pytest

from edgeprune.budget import Budget, Limits
from edgeprune.report.verdict import (
    RECOMMENDED_DROP_POINTS,
    Measured,
    evaluate,
    of_row,
    with_scores,
)

WEB, ARM = "litert-web", "litert-arm64"


@pytest.fixture
def rows(row):
    """Return two targets; on ARM the small file is the less accurate one."""
    return [
        row(variant="dense", target=ARM, path="dense.tflite", bytes=1000, score=0.99, drop_points=0.0),
        row(variant="block80", target=ARM, path="block80.tflite", bytes=400, score=0.988, drop_points=0.2),
        row(variant="channels", target=ARM, path="channels.tflite", bytes=300, score=0.97, drop_points=2.0),
        row(variant="dense", target=WEB, path="web.tflite", bytes=900, score=0.9, drop_points=9.0),
    ]


@pytest.mark.parametrize(
    ("limit", "ok", "ships"),
    [
        # Nothing limited: the smallest within 0.5 points is recommended, and there may be none.
        (Budget(), True, {ARM: "block80", WEB: None}),
        (Budget({ARM: 400}), True, {ARM: "channels", WEB: None}),
        (Budget({ARM: 300}), True, {ARM: "channels"}),
        (Budget({ARM: 299}), False, {ARM: None}),
        (Budget({ARM: 1000}, {"top1": 0.0}), True, {ARM: "dense"}),  # the dense file counts too
        (Budget({ARM: 999}, {"top1": 0.0}), False, {ARM: None}),
        (Budget({ARM: 400}, {"top1": 0.2}), True, {ARM: "block80"}),
        (
            Budget({ARM: 399}, {"top1": 0.2}),
            False,
            {ARM: None},
        ),  # small enough and accurate enough, but not the same file
        # A drop alone holds for every target of the report; with bytes, only for the targets named there.
        (Budget({}, {"top1": 9.0}), True, {ARM: "channels", WEB: "dense"}),
        (Budget({}, {"top1": 0.5}), False, {ARM: "block80", WEB: None}),
        (Budget({ARM: 2000}, {"top1": 0.5}), True, {ARM: "block80", WEB: None}),
        # Every named target must hold, and one without a file is broken.
        (Budget({ARM: 400, WEB: 899}), False, {ARM: "channels", WEB: None}),
        (Budget({ARM: 400, "coreml-ios16": 10**9}), False, {ARM: "channels", "coreml-ios16": None}),
    ],
)
def test_the_smallest_file_within_every_limit_ships(rows, limit, ok, ships):
    verdict = evaluate(limit, rows)
    assert (verdict.ok, verdict.exit_status) == (ok, 0 if ok else 1)
    shipped = {target.target: target.ship and target.ship.variant for target in verdict.targets}
    assert {target: shipped[target] for target in ships} == ships


@pytest.mark.parametrize("limit", [Budget({}, {"top1": 1.0}), Budget({ARM: 1})])
def test_a_budget_does_not_hold_for_nothing(limit):
    assert evaluate(limit, []).exit_status == 1
    assert evaluate(Budget(), []).exit_status == 0


def test_five_images_of_a_thousand_are_half_a_point(row):
    drop = 100 * (0.95 - 0.945)
    assert drop > 0.5, "the difference of floats is a hair above"
    assert evaluate(Budget({}, {"top1": 0.5}), [row(drop_points=drop)]).ok


def test_of_two_files_of_one_size_the_more_accurate_ships(row):
    rows = [row(path="a", bytes=10, score=0.5), row(path="b", bytes=10, score=0.6)]
    (target,) = evaluate(Budget(), rows).targets
    assert target.ship is rows[1]


def test_a_broken_budget_names_each_file_its_bytes_and_the_limit(rows):
    message = evaluate(Budget({ARM: 350}, {"top1": 0.1}), rows).message()
    assert message.startswith("Over budget: litert-arm64\n")
    for words in (
        "at most 350 bytes and 0.1 points",
        "channels.tflite: 300 bytes; loses 2 points, the limit is 0.1",
        "block80.tflite: 400 bytes; 50 bytes over the budget of 350; loses 0.2 points, the limit is 0.1",
        "dense.tflite: 1,000 bytes; 650 bytes over the budget of 350",
    ):
        assert words in message
    assert "web.tflite: " not in message, "a target without a budget is not accused"


@pytest.mark.parametrize(
    ("limit", "headline", "next_step"),
    [
        (Budget(), "No budget was set", "Set a budget"),
        (Budget({ARM: 400}), "Within budget", "Ship the files"),
        (
            Budget({ARM: 350}, {"top1": 0.5}),
            "Over budget: litert-arm64",
            "Fine-tune channels longer: for litert-arm64",
        ),
        (
            Budget({WEB: 900}, {"top1": 0.5}),
            "Over budget: litert-web",
            "Fine-tune dense longer: for litert-web it is small",
        ),
        (Budget({WEB: 899}, {"top1": 0.5}), "Over budget: litert-web", "no file is small or accurate enough"),
        (
            Budget({ARM: 299}, {"top1": 0.5}),
            "Over budget: litert-arm64",
            "raise its budget to 400 bytes for block80.tflite",
        ),
        (Budget({"coreml-ios16": 1}), "Over budget: coreml-ios16", "Add coreml-ios16 to the targets"),
    ],
)
def test_the_verdict_says_what_to_do_next(rows, limit, headline, next_step):
    verdict = evaluate(limit, rows)
    assert verdict.headline == headline
    assert next_step in verdict.next_step()


@pytest.mark.parametrize(
    ("memory", "ratio", "headline", "next_step"),
    [
        (900, 0.5, "Within budget", "Ship the files"),
        (1001, 0.5, "Over budget: litert-web", "no file is light and fast enough"),
        (900, 0.51, "Over budget: litert-web", "no file is light and fast enough"),
        (None, 0.5, "Not measured: litert-web", "Measure what is missing of litert-web"),
        (None, 0.51, "Over budget: litert-web", "no file is light and fast enough"),
    ],
)
def test_memory_and_time_are_judged_where_they_were_measured(row, memory, ratio, headline, next_step):
    limit = Budget(target={WEB: Limits(load_memory_bytes=1000, time_ratio=0.5)})
    measured = Measured(1, 0.0, memory, ratio, {"load_memory_bytes": "run bench"})
    verdict = evaluate(limit, [row(target=WEB)], lambda _: measured)
    assert verdict.headline == headline
    assert next_step in verdict.next_step()
    assert verdict.ok == (headline == "Within budget")


def test_a_limit_that_cannot_be_judged_names_how_it_can(row):
    verdict = evaluate(Budget(target={WEB: Limits(time_ratio=0.5)}), [row(target=WEB, path="a.tflite")])
    assert verdict.exit_status == 1
    assert "a.tflite: 2,131,016 bytes; time not measured: edgeprune bench measures it" in verdict.message()


def test_another_file_that_was_measured_may_ship(row):
    rows = [row(target=WEB, path="small", bytes=1), row(target=WEB, path="large", bytes=2)]
    limit = Budget(target={WEB: Limits(time_ratio=0.5)})
    ratios = {"small": None, "large": 0.4}
    verdict = evaluate(limit, rows, lambda row: Measured(row.bytes, 0.0, time_ratio=ratios[row.path]))
    (target,) = verdict.targets
    assert verdict.ok
    assert target.ship is rows[1]


def test_maps_are_judged_by_mean_iou(row):
    maps = row(
        metric="miou",
        score=0.6,
        drop_points=1.5,
        not_measured={"top1": "it gives maps"},
    )
    (within,) = evaluate(Budget(drop_points={"miou": 2.0}), [maps]).targets
    assert within.ship is maps
    assert within.limits() == "at most 2.0 points of mean IoU lost"
    (over,) = evaluate(Budget(drop_points={"miou": 1.0}), [maps]).targets
    assert over.files[0].reasons == ("loses 1.5 points, the limit is 1.0",)
    (unjudged,) = evaluate(Budget(drop_points={"top1": 1.0}), [maps]).targets
    assert unjudged.files[0].reasons == ("accuracy not measured: it gives maps",)
    (advised,) = evaluate(Budget(), [maps]).targets
    assert advised.most == Limits(drop_points={"miou": RECOMMENDED_DROP_POINTS})


@pytest.mark.parametrize(
    ("lost", "gained", "images", "ok", "words"),
    [
        (3, 3, 5000, True, ""),
        (120, 20, 5000, False, "loses 2 points"),  # 2.0 ± 0.24
        (6, 2, 1000, None, "from 1,000 images it cannot be told whether that is within 0.5"),
        (0, 0, 50, None, "from 50 images"),  # No difference on 50 images is not none on all.
    ],
)
def test_points_lost_are_judged_with_confidence(row, lost, gained, images, ok, words):
    drop = 100 * (lost - gained) / images
    one = row(drop_points=drop, lost_images=lost, gained_images=gained, images=images)
    verdict = evaluate(Budget({}, {"top1": 0.5}), [one], lambda row: with_scores(of_row(row), row, 0.95))
    (target,) = verdict.targets
    (judgement,) = target.files[0].judgements
    assert (judgement.ok, target.uncertain) == (ok, ok is None)
    assert words in judgement.words
    assert verdict.ok is (ok is True)
    if ok is None:
        assert verdict.headline.startswith("Cannot be told: ")
        assert "more held-out images" in verdict.next_step()


def test_without_counts_confidence_cannot_be_had(row):
    verdict = evaluate(
        Budget({}, {"top1": 0.5}), [row(drop_points=0.0)], lambda row: with_scores(of_row(row), row, 0.95)
    )
    assert verdict.headline.startswith("Not measured: ")
    assert "leave --confidence out" in verdict.message()
