"""What the images on which two models differ say about all images.

Corrected as by Agresti & Min, "Simple improved confidence intervals for comparing matched proportions", 2005
(Statistics in Medicine 24): half an image is added to each way of being right or wrong, so that models which
never differ on a few images are not taken to be the same on all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

ADDED = 0.5  # Images, to each of the four ways.


def points_lost(lost: int, gained: int, images: int) -> tuple[float, float]:
    """The loss to expect on other images, and its standard error, both in percentage points.

    Args:
        lost: images that only the reference has right.
        gained: images that only the other model has right.
        images: all there are, 1 or more.

    >>> tuple(round(value, 2) for value in points_lost(30, 10, 1000))
    (2.0, 0.64)
    >>> tuple(round(value, 2) for value in points_lost(0, 0, 450))
    (0.0, 0.22)
    """
    total = images + 4 * ADDED
    more, less = lost + ADDED, gained + ADDED
    variance = (more + less) - (more - less) ** 2 / total
    return 100 * (more - less) / total, 100 * math.sqrt(variance) / total


@dataclass(frozen=True)
class Interval:
    """Between what a loss lies, in percentage points.

    Attributes:
        least: below it with no more than the rest of the confidence.
        most: above it likewise.
        confidence: that each bound holds, 0.5 to 1.
        images: that it was found on.
    """

    least: float
    most: float
    confidence: float
    images: int


def between(lost: int, gained: int, images: int, confidence: float) -> Interval:
    """The least and the most that is lost, in percentage points: each bound holds with this confidence.

    >>> found = between(30, 10, 1000, 0.95)
    >>> round(found.least, 2), round(found.most, 2)
    (0.95, 3.04)
    """
    expected, error = points_lost(lost, gained, images)
    wide = NormalDist().inv_cdf(confidence) * error
    return Interval(expected - wide, expected + wide, confidence, images)
