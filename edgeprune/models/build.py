"""Models by name, and weights from a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.errors import UserError
from edgeprune.models.anchors import TORCHVISION_SSDLITE, Anchors, ssdlite
from edgeprune.models.architecture import DETECTOR, backbone_of

# torchvision's MobileNetV3 asks for 0.01, with which a short training never sees settled statistics.
BATCH_NORM_MOMENTUM = 0.1
DEFAULT_IMAGE_SIZE_PX = 224
# In training they give the answers of auxiliary heads beside their own, which no loss here reads.
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
TORCHVISION_DETECTOR = "ssdlite320_mobilenet_v3_large"


class Mapper(nn.Module):
    """A segmentation model of torchvision's that gives its map alone, not a dict; layers keep their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.classifier = (model.get_submodule(name) for name in ("backbone", "classifier"))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, classes, h, w)."""
        features = self.backbone(images)
        # LR-ASPP's head reads two of the backbone's maps, those of FCN and DeepLab one.
        coarse = self.classifier(features if "low" in features else features["out"])
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)


def build(
    name: str, classes: int, image_size_px: int = DEFAULT_IMAGE_SIZE_PX, padding: str | None = None
) -> nn.Module:
    """Build an untrained model: a classifier (n, classes), one that gives maps (n, classes, h, w), or a
    detector (n, boxes, 4 + 1 + classes), see `edgeprune.models.detector`.

    Args:
        name: a torchvision classification or segmentation model, or "timm/NAME"; "ssdlite/" before one of
            these is a detector on it; torchvision's own SSDLite.
        classes: outputs, 2 or more.
        image_size_px: side of the square images; only a model made for one size, as most vision transformers
            are, depends on it.
        padding: "same", TensorFlow's, for a timm model that has the choice; None: the model's own.

    Raises:
        UserError: no such model, and the message lists near names; or one without a choice of padding.
    """
    if gives_boxes(name):
        model = _detector(name, classes, padding)
    elif name.startswith("timm/"):
        model = _from_timm(name[5:], classes, image_size_px, padding)
    else:
        model = _from_torchvision(name, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    return model


def gives_maps(name: str) -> bool:
    """Whether a model of this name gives a map of classes for an image: torchvision's segmentation models."""
    from torchvision import models

    return name in models.list_models(module=models.segmentation)


def gives_boxes(name: str) -> bool:
    """Whether a model of this name gives boxes with a class each: SSDLite on a backbone, or torchvision's."""
    return name.startswith(DETECTOR) or name == TORCHVISION_DETECTOR


def anchors_of(name: str, image_size_px: int) -> Anchors:
    """The anchors of a detector of this name that is made for images of this side."""
    return TORCHVISION_SSDLITE if name == TORCHVISION_DETECTOR else ssdlite(image_size_px)


def _detector(name: str, classes: int, padding: str | None) -> nn.Module:
    from torchvision import models

    from edgeprune.models.detector import STRIDES, Detector, TorchvisionDetector, stages

    if name == TORCHVISION_DETECTOR:
        untrained = {"weights": None, "weights_backbone": None}
        return TorchvisionDetector(models.get_model(name, num_classes=1 + classes, **untrained), classes)
    name = backbone_of(name)
    if not name.startswith("timm/"):
        backbone, channels = stages(name, _from_torchvision(name, classes))
        return Detector(backbone, channels, classes)
    whole = _from_timm(name[5:], classes, DEFAULT_IMAGE_SIZE_PX, padding, features_only=True)
    reductions: list[int] = whole.feature_info.reduction()  # type: ignore[operator,union-attr]
    if any(stride not in reductions for stride in STRIDES):
        raise UserError(
            f"model {name}: its maps are {', '.join(map(str, reductions))} times smaller than the image; "
            f"a detector reads those of {', '.join(map(str, STRIDES))}"
        )
    places = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
    model = _from_timm(
        name[5:], classes, DEFAULT_IMAGE_SIZE_PX, padding, features_only=True, out_indices=places
    )
    return Detector(model, model.feature_info.channels(), classes)  # type: ignore[operator,union-attr]


def _from_torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    maps = models.list_models(module=models.segmentation)
    names = models.list_models(module=models) + maps
    if name not in names:
        raise UserError(f"unknown model {name!r}: {_near(name, names)}; or timm/NAME")
    if name in maps:
        # Left to themselves these fetch trained weights for their backbone.
        untrained = {"weights": None, "weights_backbone": None}
        return Mapper(models.get_model(name, num_classes=classes, **untrained))
    options = {"aux_logits": False} if name in WITH_AUXILIARY_HEADS else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    return model


def _from_timm(name: str, classes: int, image_size_px: int, padding: str | None, **further: Any) -> nn.Module:
    import timm

    names = timm.list_models()
    if name not in names:
        raise UserError(f"unknown model timm/{name}: {_near(name, names)}")
    configuration = timm.models.get_pretrained_cfg(name)
    fixed = configuration is not None and configuration.fixed_input_size
    options: dict[str, Any] = {"img_size": image_size_px} if fixed else {}
    if not further:
        options["num_classes"] = classes
    if padding is not None:
        options["pad_type"] = padding
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, **options, **further)
    except TypeError as error:
        if padding is None:
            raise
        raise UserError(f"padding {padding}: timm/{name} has no choice of padding ({error})") from None
    return model


def _near(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=4, cutoff=0.4)
    return (
        f"did you mean {', '.join(near)}" if near else f"there are {len(names)}, e.g. {', '.join(names[:3])}"
    )
