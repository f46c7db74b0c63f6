"""Anchors of single-shot detectors: boxes, fixed by the size of the image, that predictions start from."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# What the differences that a network gives are multiplied with: of centres, of sizes (Liu et al., 2016: SSD).
CENTRE_SCALE, SIZE_SCALE = 0.1, 0.2


@dataclass(frozen=True)
class Anchors:
    """Boxes around the centre of every cell of grids that grow coarser level by level.

    Attributes:
        first_stride: side of a cell of the first level in pixels; each level's is twice that before it.
        scales: side of a level's square boxes over the image's, one more than there are levels: between two
            of them is the second square.
        ratios: width by height of further boxes, each there lying and standing.
    """

    first_stride: int
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def levels(self) -> int:
        """How many grids there are."""
        return len(self.scales) - 1

    @property
    def each(self) -> int:
        """Boxes in a cell."""
        return 2 + 2 * len(self.ratios)

    def sides(self, size_px: int) -> list[int]:
        """Cells along a side of each level's grid.

        >>> Anchors(16, (0.2, 0.5, 0.9, 1.0), ()).sides(300)
        [19, 10, 5]
        """
        sides = [math.ceil(size_px / self.first_stride)]
        while len(sides) < self.levels:
            sides.append(math.ceil(sides[-1] / 2))
        return sides

    def shapes(self, level: int) -> list[tuple[float, float]]:
        """Width and height of a cell's boxes over the image's side, at most 1.

        >>> Anchors(16, (0.25, 1.0), (4.0,)).shapes(0)
        [(0.25, 0.25), (0.5, 0.5), (0.5, 0.125), (0.125, 0.5)]
        """
        scale, between = self.scales[level], math.sqrt(self.scales[level] * self.scales[level + 1])
        shapes = [(scale, scale), (between, between)]
        for ratio in self.ratios:
            longer, shorter = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(longer, shorter), (shorter, longer)]
        return [(min(width, 1.0), min(height, 1.0)) for width, height in shapes]

    def boxes(self, size_px: int) -> np.ndarray:
        """All boxes for square images of this side, in the order of a detector's rows.

        Returns:
            (boxes, 4) float32: x and y of the centre, width, height, in pixels.
        """
        return _boxes(self, size_px)


LEAST_PX = 20  # Side of the smallest anchors, 2.5 cells: where they are no larger than the way from one to
# the next, most boxes overlap none by half, and training has one anchor a box to learn from.
SMALLEST, SECOND, LARGEST = 0.07, 0.15, 0.87  # Scales that SSD has for COCO.
GROWTH = 1.7  # Of the second scale over the first in small images.


def ssdlite(image_size_px: int) -> Anchors:
    """Of a detector for images of this side: the same shares of the image at whatever size it is trained.

    From 286 pixels on the scales are those of SSD for COCO, objects of a fifteenth of the image and up;
    below, the smallest anchors are some 20 pixels.

    >>> [round(scale, 2) for scale in ssdlite(320).scales]
    [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.0]
    >>> [round(scale, 2) for scale in ssdlite(96).scales]
    [0.21, 0.35, 0.48, 0.61, 0.74, 0.87, 1.0]
    """
    least = min(max(SMALLEST, LEAST_PX / image_size_px), LARGEST / GROWTH)
    second = max(SECOND, GROWTH * least)
    between = (LARGEST - second) / 4
    return Anchors(8, (least, *(second + between * level for level in range(5)), 1.0), (2.0,))


# Those of torchvision's SSDLite, whose published weights go with them.
TORCHVISION_SSDLITE = Anchors(16, (*(0.2 + 0.15 * level for level in range(6)), 1.0), (2.0, 3.0))


@functools.lru_cache(maxsize=64)  # An image size each; a training that grows its images has some.
def _boxes(anchors: Anchors, size_px: int) -> np.ndarray:
    import numpy as np

    levels = []
    for level, side in enumerate(anchors.sides(size_px)):
        centres = (np.arange(side) + 0.5) / side
        down, right = np.meshgrid(centres, centres, indexing="ij")
        # (side, side, 1, 2) beside (each, 2): a cell's boxes lie next to each other.
        cells = np.broadcast_to(np.stack([right, down], -1)[:, :, None], (side, side, anchors.each, 2))
        shapes = np.broadcast_to(np.array(anchors.shapes(level)), cells.shape)
        levels.append(np.concatenate([cells, shapes], -1).reshape(-1, 4))
    boxes = (np.concatenate(levels) * size_px).astype(np.float32)
    boxes.setflags(write=False)  # Everyone gets the same array.
    return boxes
