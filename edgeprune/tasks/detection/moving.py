"""Boxes that move with their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.data.boxes import Boxes
from edgeprune.tasks.task import Move

LEAST_LEFT = 0.3  # Share of a box that must still be in the image for it to be looked for.


def moved(labels: Sequence[Boxes], move: Move) -> list[Boxes]:
    """The boxes of a batch whose images are moved, cut off at the images' sides."""
    size_px = labels[0].size_px if move.size_px is None else move.size_px
    most = max(1, *map(len, labels))
    # Padded to one number of boxes, (n, most, 4) -> corners as points (n, 2 * most, 2).
    padded = torch.stack([_padded(own.corners, most) for own in labels])
    corners = move.points(padded.reshape(len(labels), 2 * most, 2)).reshape(padded.shape)
    return [_kept(own, corners[place, : len(own)], size_px) for place, own in enumerate(labels)]


def _padded(corners: Tensor, count: int) -> Tensor:
    return torch.cat([corners, corners.new_zeros(count - len(corners), 4)])


def _kept(labels: Boxes, corners: Tensor, size_px: int) -> Boxes:
    """Boxes at new corners; a mirror has swapped left and right."""
    low, high = torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])
    whole = torch.cat([low, high], 1)
    inside = whole.clamp(0, size_px)
    stays = _areas(inside) >= LEAST_LEFT * _areas(whole)
    stays &= _areas(inside) > 0
    return Boxes(inside[stays], labels.classes[stays], labels.crowd[stays], size_px)


def _areas(corners: Tensor) -> Tensor:
    return (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
