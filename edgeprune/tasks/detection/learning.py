"""What a detector learns from: which anchors stand for which boxes, and how far its answers are from that.

As SSD has it (Liu et al., 2016): an anchor stands for the box it overlaps most, if by half; every box has at
least one; of the many anchors without a box only those count that are hardest, three for each with one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.data.boxes import Boxes
from edgeprune.models.anchors import CENTRE_SCALE, SIZE_SCALE, Anchors

BOX_VALUES = 4
MATCHING_IOU = 0.5
NEGATIVES_EACH, LEAST_NEGATIVES = 3, 10
NOTHING, LEFT_OUT = 0, -1  # Classes of anchors: the background; one that a crowd covers.
DISTILL_TEMPERATURE = 2.0


def detection_loss(
    outputs: Tensor, labels: Sequence[Boxes], anchors: Anchors, label_smoothing: float
) -> Tensor:
    """Mean over the anchors that stand for a box: how far their boxes and all counted classes are off.

    Args:
        outputs: (n, boxes, 4 + 1 + classes).
        labels: n of them.
        anchors: of the model.
        label_smoothing: of the classes.
    """
    base = torch.from_numpy(anchors.boxes(labels[0].size_px).copy()).to(outputs.device)
    wanted = [match(own, base) for own in labels]
    classes = torch.stack([own for own, _ in wanted])
    positive = classes > NOTHING
    count = positive.sum().clamp(min=1)
    differences = torch.cat([own for _, own in wanted])
    off = F.smooth_l1_loss(outputs[..., :BOX_VALUES][positive], differences, reduction="sum")
    entropy = F.cross_entropy(
        outputs[..., BOX_VALUES:].transpose(1, 2),
        classes,
        ignore_index=LEFT_OUT,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return (off + entropy[positive | hardest(entropy.detach(), classes)].sum()) / count


def hardest(entropy: Tensor, classes: Tensor) -> Tensor:
    """The anchors without a box that count, (n, boxes) bool: those taken for one most surely."""
    worth = entropy.masked_fill(classes != NOTHING, -1)
    counts = (NEGATIVES_EACH * (classes > NOTHING).sum(1, keepdim=True)).clamp(min=LEAST_NEGATIVES)
    rank = worth.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    return (rank < counts) & (classes == NOTHING)


def match(labels: Boxes, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """What each anchor stands for.

    Args:
        labels: of one image.
        anchors: (boxes, 4), see `Anchors.boxes`.

    Returns:
        (boxes,) classes, counted from 1, `NOTHING` or `LEFT_OUT`; and for those that stand for a box, in
        order, what a detector should give for it, (matched, 4).
    """
    classes = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    if not len(labels):
        return classes, anchors.new_zeros(0, 4)
    corners = torch.cat([anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2], 1)
    boxes, crowd = labels.corners.to(anchors.device), labels.crowd.to(anchors.device)
    overlaps = ious(boxes, corners)  # (labels, boxes)
    if bool(crowd.any()):
        classes[(overlaps[crowd] > MATCHING_IOU).any(0)] = LEFT_OUT
        boxes, overlaps = boxes[~crowd], overlaps[~crowd]
    if not len(boxes):
        return classes, anchors.new_zeros(0, 4)
    overlap, of = overlaps.max(0)
    # The best anchor of a box stands for it whatever another box has of it.
    best = overlaps.argmax(1)
    of[best] = torch.arange(len(best), device=of.device)
    overlap[best] = 1.0
    matched = overlap >= MATCHING_IOU
    classes[matched] = 1 + labels.classes.to(of.device)[~crowd][of[matched]]
    return classes, encoded(boxes[of[matched]], anchors[matched])


def encoded(corners: Tensor, anchors: Tensor) -> Tensor:
    """How boxes (k, 4) differ from anchors (k, 4), as a detector gives it."""
    sizes = corners[:, 2:] - corners[:, :2]
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    return torch.cat(
        [
            (centres - anchors[:, :2]) / anchors[:, 2:] / CENTRE_SCALE,
            (sizes.clamp(min=1e-3) / anchors[:, 2:]).log() / SIZE_SCALE,
        ],
        1,
    )


def ious(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every two boxes by their corners, (first, second)."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(1) for corners in (first, second)]
    return common / (areas[0][:, None] + areas[1][None] - common).clamp(min=1e-9)


def detector_divergence(outputs: Tensor, taught: Tensor) -> Tensor:
    """How far the answers of a detector are from its teacher's, where either of them sees something.

    The divergence of the softened classes (Hinton et al., 2015), and the differences of the boxes where the
    teacher sees something (as Chen et al., 2017, learn a detector from another).

    Args:
        outputs: (n, boxes, 4 + 1 + classes) of the student.
        taught: the same of the teacher.
    """
    given, wanted = (part[..., BOX_VALUES:] for part in (outputs, taught))
    seen = 1 - wanted.softmax(-1)[..., 0]
    either = torch.maximum(seen, 1 - given.detach().softmax(-1)[..., 0])
    divergence = F.kl_div(
        (given / DISTILL_TEMPERATURE).log_softmax(-1),
        (wanted / DISTILL_TEMPERATURE).log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    boxes = F.smooth_l1_loss(outputs[..., :BOX_VALUES], taught[..., :BOX_VALUES], reduction="none").sum(-1)
    return DISTILL_TEMPERATURE**2 * (divergence * either).sum() / either.sum().clamp(min=1e-6) + (
        boxes * seen
    ).sum() / seen.sum().clamp(min=1e-6)
