"""Models by name, and weights from a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.errors import UserError

# torchvision's MobileNetV3 asks for 0.01, with which a short training never sees settled statistics.
BATCH_NORM_MOMENTUM = 0.1
DEFAULT_IMAGE_SIZE_PX = 224


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
    """Build an untrained model, a classifier (n, classes) or one that gives maps (n, classes, h, w).

    Args:
        name: a torchvision classification or segmentation model, or "timm/NAME".
        classes: outputs, 2 or more.
        image_size_px: side of the square images; only a model made for one size, as most vision transformers
            are, depends on it.
        padding: "same", TensorFlow's, for a timm model that has the choice; None: the model's own.

    Raises:
        UserError: no such model, and the message lists near names; or one without a choice of padding.
    """
    if name.startswith("timm/"):
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
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return model


def _from_timm(name: str, classes: int, image_size_px: int, padding: str | None) -> nn.Module:
    import timm

    names = timm.list_models()
    if name not in names:
        raise UserError(f"unknown model timm/{name}: {_near(name, names)}")
    configuration = timm.models.get_pretrained_cfg(name)
    fixed = configuration is not None and configuration.fixed_input_size
    options: dict[str, Any] = {"img_size": image_size_px} if fixed else {}
    if padding is not None:
        options["pad_type"] = padding
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **options)
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
