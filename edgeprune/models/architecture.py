"""Which model: all that decides its layers but the number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

DETECTOR = "ssdlite/"  # Before the name of a backbone.


def backbone_of(name: str) -> str:
    """The classifier that a detector on a backbone is made of; any other name is its own.

    >>> backbone_of("ssdlite/timm/mobilenetv2_100")
    'timm/mobilenetv2_100'
    """
    return name.removeprefix(DETECTOR)


@dataclass(frozen=True)
class Architecture:
    """A model before it is built.

    Attributes:
        name: as `build` takes it.
        image_size_px: as `build` takes it.
        padding: as `build` takes it.
    """

    name: str
    image_size_px: int
    padding: str | None = None

    def build(self, classes: int) -> nn.Module:
        """The untrained model for so many classes; see `edgeprune.models.build.build`."""
        from edgeprune.models.build import build

        return build(self.name, classes, self.image_size_px, self.padding)
