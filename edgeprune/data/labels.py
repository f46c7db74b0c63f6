"""What the labels of images can be."""

from enum import Enum

IGNORED = -100
"""The label of a pixel that does not count: what torch's cross entropy leaves out."""


class LabelKind(str, Enum):
    """What the labels of a source are, which decides the tasks that can learn from it."""

    CLASS = "a class for each image"
    MAP = "a class for each pixel"
    BOXES = "boxes with a class each"
