"""SSDLite: boxes with their classes from the feature maps of a backbone (Sandler et al., 2018: MobileNetV2).

A detector gives its raw heads, (n, boxes, 4 + 1 + classes): for each of its anchors how the box differs from
it, then the logits of the background and of the classes. In channels-last files a row is a part of a
convolution's output as it lies there, so that no value is moved but for the joining of the levels. What turns
rows into boxes gains nothing from sparse or quantised kernels: the app does it, see `anchors.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.models.anchors import TORCHVISION_SSDLITE, ssdlite

BOX_VALUES = 4
STRIDES = (8, 16, 32)
PROBE_PX = 128
EXTRA_CHANNELS = (512, 256, 256)  # Of the levels behind the backbone.
INITIAL_DEVIATION = 0.03  # Of new weights, as torchvision's SSDLite has it.


class RawHeads(nn.Module):
    """What every detector has: boxes of a cell, how many classes, and its heads' outputs as rows.

    Attributes:
        CLASSIFIER: a layer whose width is that of all classes of a cell's boxes, the background's too.
        each: boxes of a cell.
    """

    CLASSIFIER: str
    each: int
    classes: int

    def classes_of(self, width: int) -> int:
        """How many classes there are where `CLASSIFIER` has this width."""
        return width // self.each - 1

    def rows(self, boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
        """Outputs (n, values * each, h, w) of the heads of all levels -> (n, boxes, 4 + 1 + classes)."""
        parts = []
        for maps in (boxes, scores):
            # (n, each * values, h, w) -> (n, h, w, each * values) -> (n, h * w * each, values)
            values = maps[0].shape[1] // self.each
            parts.append(torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, values) for m in maps], 1))
        return torch.cat(parts, 2)


class Detector(RawHeads):
    """SSDLite on three feature maps of a backbone.

    Attributes:
        ADDED: modules that no classifier's weights have.
    """

    ADDED = ("extras", "boxes", "scores")
    CLASSIFIER = "scores.0.3"
    each = ssdlite(PROBE_PX).each  # At any size.

    def __init__(self, backbone: nn.Module, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = classes
        widths = [*channels, *EXTRA_CHANNELS]
        self.extras = nn.ModuleList(
            _extra(*pair) for pair in zip(widths[len(channels) - 1 : -1], EXTRA_CHANNELS, strict=True)
        )
        self.boxes = nn.ModuleList(_head(width, self.each * BOX_VALUES) for width in widths)
        self.scores = nn.ModuleList(_head(width, self.each * (1 + classes)) for width in widths)
        for part in (self.extras, self.boxes, self.scores):
            _initialize(part)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, boxes, 4 + 1 + classes)."""
        maps = list(self.backbone(images))
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return self.rows(
            [head(of) for head, of in zip(self.boxes, maps, strict=True)],
            [head(of) for head, of in zip(self.scores, maps, strict=True)],
        )


class TorchvisionDetector(RawHeads):
    """torchvision's SSDLite as its raw heads; layers keep their names, so that its checkpoints fit."""

    CLASSIFIER = "head.classification_head.module_list.0.1"
    each = TORCHVISION_SSDLITE.each

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.backbone, self.head = (model.get_submodule(name) for name in ("backbone", "head"))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, boxes, 4 + 1 + classes)."""
        maps = list(self.backbone(images).values())
        heads = (self.head.regression_head, self.head.classification_head)
        boxes, scores = (
            [layer(of) for layer, of in zip(head.module_list, maps, strict=True)]  # type: ignore[union-attr,arg-type]
            for head in heads
        )
        return self.rows(boxes, scores)


class Stages(nn.Module):
    """The `features` of a torchvision model, which gives the last map of each of some sizes.

    Args:
        features: of the model; they keep their names.
        at: places in it whose results are given.
    """

    def __init__(self, features: nn.Module, at: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        self.at = tuple(at)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(n, 3, h, w) -> maps, the largest first."""
        maps = []
        for place, block in enumerate(cast(nn.Sequential, self.features)):
            images = block(images)
            if place in self.at:
                maps.append(images)
        return maps


@torch.no_grad()
def stages(name: str, model: nn.Module) -> tuple[Stages, list[int]]:
    """The backbone of a torchvision classifier that has `features`, and the channels of its maps.

    Raises:
        UserError: it has none, or no maps of the sizes that are wanted.
    """
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential):
        raise UserError(f"model {name}: a backbone must have `features`, as MobileNets have; or take timm's")
    last: dict[int, tuple[int, int]] = {}
    maps = torch.zeros(1, 3, PROBE_PX, PROBE_PX)
    training = features.training
    features.eval()
    for place, block in enumerate(features):
        maps = block(maps)
        last[PROBE_PX // maps.shape[-1]] = (place, maps.shape[1])
    features.train(training)
    if any(stride not in last for stride in STRIDES):
        raise UserError(
            f"model {name}: its maps are {', '.join(map(str, last))} times smaller than the image; "
            f"a detector reads those of {', '.join(map(str, STRIDES))}"
        )
    places, channels = zip(*(last[stride] for stride in STRIDES), strict=True)
    return Stages(features, places), list(channels)


def _extra(in_: int, out: int) -> nn.Sequential:
    """A map of half the size: narrowed, moved over, widened."""
    between = out // 2
    return nn.Sequential(
        *_normed(nn.Conv2d(in_, between, 1, bias=False)),
        *_normed(nn.Conv2d(between, between, 3, 2, 1, groups=between, bias=False)),
        *_normed(nn.Conv2d(between, out, 1, bias=False)),
    )


def _head(in_: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *_normed(nn.Conv2d(in_, in_, 3, 1, 1, groups=in_, bias=False)), nn.Conv2d(in_, out, 1)
    )


def _normed(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6()


def _initialize(part: nn.Module) -> None:
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
