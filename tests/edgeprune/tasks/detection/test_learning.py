"""Which anchors stand for which boxes, the loss, distillation, and boxes that move with their pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeprune.data import box_scenes
from edgeprune.data.boxes import Boxes
from edgeprune.data.digits import digits
from edgeprune.models.anchors import Anchors, ssdlite
from edgeprune.models.architecture import Architecture
from edgeprune.tasks import TASKS
from edgeprune.tasks.detection.learning import (
    LEFT_OUT,
    detection_loss,
    detector_divergence,
    ious,
    match,
)
from edgeprune.tasks.detection.precision import PrecisionEvaluator
from edgeprune.tasks.detection.suppression import decoded
from edgeprune.training.augment import mirror, random_shift, resize

ANCHORS = Anchors(16, (0.3, 0.6, 0.9), (2.0,))
SIZE_PX = 64
STEPS = 120


def boxes(*corners, classes=None, crowd=()):
    values = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    kinds = torch.tensor(classes or [0] * len(values), dtype=torch.int64)
    flags = torch.tensor([place in crowd for place in range(len(values))], dtype=torch.bool)
    return Boxes(values, kinds, flags, SIZE_PX)


def anchors():
    return torch.from_numpy(ANCHORS.boxes(SIZE_PX).copy())


def answers(labels, certainty=8.0):
    """What a perfect detector gives for each image's labels."""
    outputs = torch.zeros(len(labels), len(anchors()), 7)
    for rows, own in zip(outputs, labels, strict=True):
        classes, differences = match(own, anchors())
        rows[classes > 0, :4] = differences
        rows[torch.arange(len(rows)), 4 + classes.clamp(min=0)] = certainty
    return outputs


def test_every_box_has_an_anchor_that_decodes_to_it():
    labels = boxes((3, 5, 22, 25), (40, 1, 44, 3), (0, 0, 64, 60), classes=[1, 0, 1])
    classes, differences = match(labels, anchors())
    rows = np.zeros((len(anchors()), 7), np.float32)
    rows[(classes > 0).numpy(), :4] = differences.numpy()
    corners, _ = decoded(rows, ANCHORS, SIZE_PX)
    found = {
        (int(kind) - 1, tuple(np.round(box).tolist()))
        for kind, box in zip(classes, corners, strict=True)
        if kind > 0
    }
    assert found == {(1, (3, 5, 22, 25)), (0, (40, 1, 44, 3)), (1, (0, 0, 64, 60))}


@pytest.mark.parametrize("size_px", [64, 96, 160])
def test_small_images_have_anchors_that_overlap_most_boxes_by_half(size_px):
    """SSD's scales for 320 pixels do so for one box in three at 96, and training learns next to nothing."""
    x, y, width, height = torch.from_numpy(ssdlite(size_px).boxes(size_px).copy()).T
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    sides = torch.tensor([0.25, 0.3, 0.35, 0.4]) * size_px
    places = (torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 0.6) * size_px
    squares = torch.cat([torch.cat([places, places + side], 1) for side in sides])
    overlaps = ious(squares, corners).amax(1)
    assert (overlaps >= 0.5).float().mean() > 0.7


@pytest.mark.slow
def test_a_detector_learns_a_few_scenes():
    """From nothing, with the loss, anchors and evaluator of every run: what fails here learns nowhere."""
    architecture = Architecture("ssdlite/timm/lcnet_035", SIZE_PX)
    task = TASKS["detection"].bound(architecture)
    scenes = box_scenes.make(digits()[0], 8, SIZE_PX, seed=0)
    torch.manual_seed(0)
    model, images = architecture.build(3), scenes.images / 127.5 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
    for _ in range(STEPS):
        loss = task.loss(model(images), scenes.labels, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    evaluator = PrecisionEvaluator(3, ssdlite(SIZE_PX))
    with torch.no_grad():
        evaluator.update(model.eval()(images), scenes.labels)
    assert evaluator.precision().map50 > 0.9


def test_anchors_on_a_crowd_are_left_out():
    crowd = boxes((0, 0, 32, 32), crowd={0})
    classes, differences = match(crowd, anchors())
    assert (classes == LEFT_OUT).any()
    assert not (classes > 0).any()
    assert len(differences) == 0


def test_the_loss_of_right_answers_is_near_nought_and_rises_with_each_mistake():
    labels = [boxes((3, 5, 22, 25), classes=[1]), boxes()]
    right = answers(labels)
    best = float(detection_loss(right, labels, ANCHORS, 0.0))
    assert best < 0.05
    place = int((match(labels[0], anchors())[0] > 0).nonzero()[0])
    nothing = int((match(labels[0], anchors())[0] == 0).nonzero()[0])
    shifted, missed, alarmed = right.clone(), right.clone(), right.clone()
    shifted[0, place, 0] += 3
    missed[0, place, 4:] = torch.tensor([8.0, 0, 0])
    alarmed[1, nothing, 4:] = torch.tensor([0, 8.0, 0])
    for wrong in (shifted, missed, alarmed):
        assert float(detection_loss(wrong, labels, ANCHORS, 0.0)) > best + 0.3


def test_only_the_hardest_negatives_count():
    labels = [boxes((3, 5, 22, 25))]
    outputs = torch.zeros(1, len(anchors()), 7, requires_grad=True)
    detection_loss(outputs, labels, ANCHORS, 0.0).backward()
    matched = int((match(labels[0], anchors())[0] > 0).sum())
    counted = int((outputs.grad[0, :, 4:].abs().sum(1) > 0).sum())
    assert counted == matched + max(3 * matched, 10)


def test_a_student_that_answers_like_its_teacher_has_nothing_to_learn():
    taught = answers([boxes((3, 5, 22, 25), classes=[1])], certainty=3.0)
    assert float(detector_divergence(taught.clone(), taught)) == pytest.approx(0, abs=1e-6)
    other = taught.clone()
    other[..., 4:] = other[..., 4:].roll(1, -1)
    moved = taught.clone()
    moved[..., :4] += 1
    assert float(detector_divergence(other, taught)) > 1
    assert float(detector_divergence(moved, taught)) > 0.5


def moved_box(move, corners=(10.0, 4.0, 30.0, 20.0)):
    (found,) = TASKS["detection"].transform_labels([boxes(corners)], move)
    return found


def test_boxes_move_as_their_pixels_do():
    """A white rectangle on black: wherever it goes, its box is around it."""
    image = torch.zeros(1, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)
    image[0, :, 4:20, 10:30] = 255
    moves = [random_shift(image, 9, torch.Generator().manual_seed(seed)) for seed in range(3)] + [
        mirror(torch.tensor([True]), SIZE_PX),
        resize(SIZE_PX, 32),
    ]
    for move in moves:
        pixels = move.images(image.float() if move.size_px else image)[0, 0] > 127
        down, right = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
        there = [right[0], down[0], right[-1] + 1, down[-1] + 1]
        found = moved_box(move)
        assert found.corners[0].tolist() == pytest.approx([float(side) for side in there], abs=0.51)
        assert found.size_px == len(pixels)


def test_a_box_that_mostly_leaves_the_image_is_dropped():
    class Left:
        size_px = None

        @staticmethod
        def points(points):
            return points - torch.tensor([20.0, 0.0])

    assert len(moved_box(Left)) == 1
    assert moved_box(Left).corners[0].tolist() == [0, 4, 10, 20]
    assert len(moved_box(Left, (0, 4, 25, 20))) == 0
    assert len(TASKS["detection"].transform_labels([boxes(), boxes()], Left)[1]) == 0
