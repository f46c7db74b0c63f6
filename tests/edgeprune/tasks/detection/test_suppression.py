"""From a detector's rows to boxes, beside torchvision's own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_convert

from edgeprune.models.anchors import TORCHVISION_SSDLITE, Anchors, ssdlite
from edgeprune.tasks.detection.suppression import MOST_BOXES, decoded, find, suppressed

SSDLITE = ssdlite(320)
SMALL = Anchors(16, (0.3, 0.6), ())


@pytest.mark.parametrize("size_px", [320, 96])
def test_anchors_are_torchvisions(size_px):
    generator = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
    maps = [torch.zeros(1, 1, side, side) for side in TORCHVISION_SSDLITE.sides(size_px)]
    (corners,) = generator(ImageList(torch.zeros(1, 3, size_px, size_px), [(size_px, size_px)]), maps)
    wanted = box_convert(corners, "xyxy", "cxcywh").numpy()
    np.testing.assert_allclose(TORCHVISION_SSDLITE.boxes(size_px), wanted, rtol=1e-5, atol=1e-3)


def random_rows(seed, anchors, size_px, classes):
    rows = np.random.default_rng(seed).normal(0, 2, (len(anchors.boxes(size_px)), 5 + classes))
    return rows.astype(np.float32)


def test_boxes_are_decoded_as_torchvision_does():
    rows = random_rows(0, SSDLITE, 64, 3)
    corners, scores = decoded(rows, SSDLITE, 64)
    anchors = box_convert(torch.from_numpy(SSDLITE.boxes(64).copy()), "cxcywh", "xyxy")
    wanted = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(torch.from_numpy(rows[:, :4]), anchors)
    np.testing.assert_allclose(corners, wanted.clamp(0, 64).numpy(), atol=1e-3)
    np.testing.assert_allclose(scores, torch.from_numpy(rows[:, 4:]).softmax(1)[:, 1:].numpy(), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_is_what_torchvisions_suppression_leaves(seed):
    rows = random_rows(seed, SSDLITE, 96, 3)
    found = find(rows, SSDLITE, 96, least_score=0.3)
    corners, scores = (torch.from_numpy(part) for part in decoded(rows, SSDLITE, 96))
    places, classes = (scores >= 0.3).nonzero().T
    kept = batched_nms(corners[places], scores[places, classes], classes, 0.5)[:MOST_BOXES]
    assert 10 < len(found) <= MOST_BOXES
    np.testing.assert_allclose(found.scores, scores[places, classes][kept].numpy())
    np.testing.assert_array_equal(found.classes, classes[kept].numpy())
    np.testing.assert_allclose(found.corners, corners[places][kept].numpy())


def test_suppression_by_hand():
    # The second overlaps the first by 8 of 12, the third the second likewise but the first by 6 of 14.
    boxes = np.array([[0, 0, 10, 1], [2, 0, 12, 1], [4, 0, 14, 1], [50, 50, 60, 60]], np.float32)
    assert suppressed(boxes).tolist() == [0, 2, 3]
    assert suppressed(boxes, 0.7).tolist() == [0, 1, 2, 3]
    assert suppressed(np.zeros((0, 4), np.float32)).tolist() == []


def test_a_box_by_hand():
    rows = np.full((len(SMALL.boxes(32)), 7), -9.0, np.float32)
    rows[:, 4] = 9.0
    # The first anchor: centre 8, 8, side 9.6. To 8 + 2.5 * 0.1 * 9.6 across, twice as high.
    rows[0] = [2.5, 0, 0, np.log(2) / 0.2, 0, 0, np.log(2)]
    found = find(rows, SMALL, 32, least_score=0.25)
    assert found.classes.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([0.5, 0.25])
    assert found.corners[0].tolist() == pytest.approx([5.6, 0, 15.2, 17.6], abs=1e-4)  # cut off above


def test_of_equal_scores_the_first_row_comes_first():
    rows = np.zeros((len(SSDLITE.boxes(32)), 6), np.float32)
    found = find(rows, SSDLITE, 32, least_score=0.5)
    first, _ = decoded(rows, SSDLITE, 32)
    np.testing.assert_array_equal(found.corners, first[suppressed(first)])
    assert 1 < len(found) < len(first)
