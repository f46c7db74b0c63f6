"""What was found out about a detector, as records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassPrecision:
    """One class, found by a variant and by the dense model.

    Attributes:
        name: of the class.
        boxes: of it there are in all held-out images, crowds left out.
        dense_map: of the dense model, average precision over IoUs from 0.50 to 0.95, 0 to 1; None: there is
            no such box.
        map: of the variant, likewise.
        dense_map50: of the dense model at IoU 0.50, likewise.
        map50: of the variant, likewise.
        missed: boxes that the variant does not find with the least score that an app shows.
        false_alarms: boxes that it then shows where there is none.
    """

    name: str
    boxes: int
    dense_map: float | None
    map: float | None
    dense_map50: float | None
    map50: float | None
    missed: int
    false_alarms: int


@dataclass(frozen=True)
class DetectionExamination:
    """The boxes of one torch variant, beside those of the dense model in the same held-out images.

    Attributes:
        variant: its name.
        weights_sha256: of its weights in the run folder.
        dense_sha256: of the dense model's.
        images: all held-out images.
        map: mean over classes and over IoUs from 0.50 to 0.95, 0 to 1.
        map50: mean over classes at IoU 0.50.
        map_small: mean over classes of boxes below 32 px squared; None: there are none.
        map_medium: from there to 96 px squared, likewise.
        map_large: above, likewise.
        least_score: from which on a box counts as shown.
        classes: in the order of the classes.
        pictures: of the images with most misses and false alarms, in the run folder: what is there, what the
            dense model shows, what the variant shows.
    """

    variant: str
    weights_sha256: str
    dense_sha256: str
    images: int
    map: float
    map50: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    least_score: float
    classes: tuple[ClassPrecision, ...]
    pictures: tuple[str, ...]
