"""Mean average precision: worked out by hand, and beside COCO's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.data.boxes import Boxes
from edgeprune.tasks.detection.precision import PrecisionEvaluator, precision
from edgeprune.tasks.detection.suppression import Found

SIZE_PX = 320


def there(*boxes, crowd=()):
    """Boxes that there are, (left, top, right, bottom, class) each."""
    values = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)
    flags = torch.tensor([place in crowd for place in range(len(values))], dtype=torch.bool)
    return Boxes(values[:, :4], values[:, 4].long(), flags, SIZE_PX)


def found(*boxes):
    """Boxes that are found, (left, top, right, bottom, class, score) each, the likeliest first."""
    values = np.array(sorted(boxes, key=lambda box: -box[5]), np.float32).reshape(-1, 6)
    return Found(values[:, :4], values[:, 4].astype(np.int64), values[:, 5])


def test_worked_out_by_hand():
    """Two boxes of one class, three found: exactly the first, nothing, three quarters of the second."""
    labels = there((0, 0, 40, 40, 0), (100, 100, 140, 140, 0))
    hits = found((0, 0, 40, 40, 0, 0.9), (200, 200, 240, 240, 0, 0.8), (100, 100, 140, 130, 0, 0.7))
    result = precision([hits], [labels], classes=2)
    # IoU of the third is 0.75: a hit at 0.50, 0.55, ... 0.75, six of the ten. Then precision is 1 up to half
    # of the boxes and 2/3 up to all: of the 101 recalls 0.00 to 1.00, 51 at 1 and 50 at 2/3.
    both = (51 + 50 * 2 / 3) / 101
    # At 0.80 and above only the first is a hit: 51 recalls at 1, the others at 0.
    one = 51 / 101
    assert result.map50 == pytest.approx(both, abs=1e-6)
    assert result.map == pytest.approx((6 * both + 4 * one) / 10, abs=1e-6)
    assert result.classes == (pytest.approx(result.map), None)  # there is none of the second class
    assert result.sizes == (None, pytest.approx(result.map), None)  # 40 px squared is medium


def test_what_lies_on_a_crowd_is_no_false_alarm():
    labels = there((0, 0, 40, 40, 0), (100, 100, 300, 300, 0), crowd={1})
    on_crowd = [(100 + 20 * k, 100, 120 + 20 * k, 140, 0, 0.95) for k in range(5)]
    result = precision([found((0, 0, 40, 40, 0, 0.5), *on_crowd)], [labels], classes=1)
    assert result.map == pytest.approx(1.0)


def test_a_second_box_on_one_object_is_a_false_alarm():
    labels = there((0, 0, 40, 40, 0), (100, 100, 140, 140, 0))
    twice = [(0, 0, 40, 40, 0, 0.9), (0, 0, 40, 40, 0, 0.8), (100, 100, 140, 140, 0, 0.7)]
    assert precision([found(*twice)], [labels], 1).map50 == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_nothing_found_is_nought_and_nothing_there_does_not_count():
    empty = found()
    result = precision([empty, empty], [there((0, 0, 9, 9, 1)), there()], classes=2)
    assert (result.map, result.map50, result.classes) == (0.0, 0.0, (None, 0.0))


def test_images_without_boxes_count():
    labels = [there((0, 0, 40, 40, 0)), there()]
    hit = found((0, 0, 40, 40, 0, 0.8))
    assert precision([hit, found()], labels, 1).map == pytest.approx(1.0)
    assert precision([hit, found((0, 0, 40, 40, 0, 0.9))], labels, 1).map == pytest.approx(0.5)


def drawn(random, images, classes):
    """Crowded random images: crowds, all sizes, more than a hundred boxes found, many equal scores."""
    labels, hits = [], []
    for _ in range(images):
        corners = random.uniform(0, 250, (12, 2))
        sizes = random.choice([8.0, 20.0, 50.0, 120.0], (12, 2))
        own = np.concatenate([corners, corners + sizes], 1)
        kinds = random.integers(0, classes, 12)
        labels.append(
            there(*np.column_stack([own, kinds]).tolist(), crowd=set(random.choice(12, 3).tolist()))
        )
        near = own[random.integers(0, 12, 130)] + random.normal(0, 5, (130, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        scores = random.choice([0.2, 0.4, 0.6, 0.8], 130)
        hits.append(found(*np.column_stack([near, random.integers(0, classes, 130), scores]).tolist()))
    return hits, labels


def reference(hits, labels, classes):
    """The twelve numbers of COCO's own code."""
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools, COCO's own code")
    from pycocotools.cocoeval import COCOeval

    truth = coco.COCO()
    images = range(1, len(labels) + 1)
    annotations = [
        {
            "image_id": image,
            "category_id": 1 + int(label),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": int(crowd),
        }
        for image, own in zip(images, labels, strict=True)
        for (left, top, right, bottom), label, crowd in zip(
            own.corners.double().tolist(), own.classes, own.crowd, strict=True
        )
    ]
    truth.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": number} for number in range(1, classes + 1)],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
        "info": {},
    }
    truth.createIndex()
    given = [
        {
            "image_id": image,
            "category_id": 1 + int(label),
            "bbox": [left, top, right - left, bottom - top],
            "score": float(score),
        }
        for image, own in zip(images, hits, strict=True)
        for (left, top, right, bottom), label, score in zip(
            own.corners.astype(float).tolist(), own.classes, own.scores, strict=True
        )
    ]
    evaluation = COCOeval(truth, truth.loadRes(given), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_equals_cocos_own_code(seed):
    hits, labels = drawn(np.random.default_rng(seed), images=6, classes=3)
    wanted = reference(hits, labels, 3)
    result = precision(hits, labels, 3)
    sizes = [-1 if size is None else size for size in result.sizes]
    assert [result.map, result.map50, *sizes] == pytest.approx([wanted[0], wanted[1], *wanted[3:6]], abs=1e-9)
    assert 0.01 < result.map < 0.9


def test_parts_of_several_processes_score_as_the_whole():
    """Average precision of all images is not the mean of the parts'."""
    labels = [there((0, 0, 40, 40, 0)), there((0, 0, 40, 40, 1), (60, 60, 99, 99, 0))]
    hits = [found((0, 0, 40, 40, 0, 0.9)), found((60, 60, 99, 99, 0, 0.5), (0, 0, 40, 30, 1, 0.4))]
    states = list(zip(hits, labels, strict=True))
    merged = PrecisionEvaluator(2, anchors=None)
    merged.merge([states[:1], states[1:]])
    assert merged.state() == states
    assert merged.score() == precision(hits, labels, classes=2).map
