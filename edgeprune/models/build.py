"""Models by name, and weights from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
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


def build(name: str, classes: int, image_size_px: int = DEFAULT_IMAGE_SIZE_PX) -> nn.Module:
    """Build an untrained model, a classifier (n, classes) or one that gives maps (n, classes, h, w).

    Args:
        name: a torchvision classification or segmentation model, or "timm/NAME".
        classes: outputs, 2 or more.
        image_size_px: side of the square images; only a model made for one size, as most vision transformers
            are, depends on it.

    Raises:
        UserError: no such model; the message lists near names.
    """
    if name.startswith("timm/"):
        model = _from_timm(name[5:], classes, image_size_px)
    else:
        model = _from_torchvision(name, classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    return model


def task(name: str) -> str:
    """The task of a model, of `edgeprune.recipe.TASKS`; classification where there is no such model."""
    from torchvision import models

    return "segmentation" if name in models.list_models(module=models.segmentation) else "classification"


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load a state dict into `model`, in place.

    Args:
        model: as `build` made it.
        path: `.safetensors`, or a `.pt`/`.pth` written by `torch.save(model.state_dict(), path)`; one that
            keeps the state dict under "state_dict" or "model" is understood too.

    Raises:
        UserError: no such file, not a checkpoint, or one of another model or number of classes.
    """
    state = _read_state(path)
    wanted = model.state_dict()
    problems = [
        f"{key}: the checkpoint has {tuple(state[key].shape)}, the model {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    if problems:
        problems.append(
            "is it of a model with another number of classes? The data's class folders decide how many"
        )
    if missing:
        problems.append(f"{len(missing)} weights are missing, e.g. {', '.join(missing[:3])}")
    if unknown:
        problems.append(f"{len(unknown)} weights are not of this model, e.g. {', '.join(unknown[:3])}")
    if problems:
        raise UserError(
            [f"checkpoint {path} does not fit the model:", *(f"  {problem}" for problem in problems)]
        )
    _refuse_not_finite(state, path)
    model.load_state_dict(state, strict=False)


def from_checkpoint(name: str, path: Path, image_size_px: int = DEFAULT_IMAGE_SIZE_PX) -> nn.Module:
    """Build a model by name with a checkpoint's weights, widths and number of classes, in eval mode.

    Unlike `load_checkpoint` it takes what pruning leaves: layers that are narrower than the model's own, and
    the pairs NAME_orig and NAME_mask of `torch.nn.utils.prune` (coremltools' pruners write the same).

    Args:
        name: as `build` takes it.
        path: as `load_checkpoint` takes it.
        image_size_px: as `build` takes it.

    Raises:
        UserError: no such model or file; or a checkpoint of another architecture, or with NaN or infinity.
    """
    from edgeprune.pruning import resize

    state = _masked(_read_state(path))
    _refuse_not_finite(state, path)
    head = [
        module_name
        for module_name, module in build(name, 2).named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ][-1]
    if f"{head}.weight" not in state:
        raise UserError(f"checkpoint {path} has no {head}.weight: it is not of {name}")
    model = build(name, len(state[f"{head}.weight"]), image_size_px)
    counters = {
        key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")
    }
    # Pruners of coremltools leave marks for its converter beside the weights.
    state = {key: value for key, value in state.items() if "_COREML_" not in key} | counters
    try:
        resize(model, state)
    except UserError as error:
        raise UserError(
            [f"checkpoint {path} does not fit {name}: {line}" for line in error.problems]
        ) from None
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Weights and biases."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of the convolutions and matrix products for `example`."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example)
    return int(counter.get_total_flops()) // 2


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


def _from_timm(name: str, classes: int, image_size_px: int) -> nn.Module:
    import timm

    names = timm.list_models()
    if name not in names:
        raise UserError(f"unknown model timm/{name}: {_near(name, names)}")
    configuration = timm.models.get_pretrained_cfg(name)
    fixed = configuration is not None and configuration.fixed_input_size
    size = {"img_size": image_size_px} if fixed else {}
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, **size)
    return model


def _near(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=4, cutoff=0.4)
    return (
        f"did you mean {', '.join(near)}" if near else f"there are {len(names)}, e.g. {', '.join(names[:3])}"
    )


def _refuse_not_finite(state: Mapping[str, Tensor], path: Path) -> None:
    bad = [
        key
        for key, tensor in state.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if bad:
        raise UserError(f"checkpoint {path}: NaN or infinite values in {', '.join(bad[:3])}")


def _masked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each NAME_orig and NAME_mask as the one NAME that they stand for."""
    pairs = {key[:-5] for key in state if key.endswith("_orig") and f"{key[:-5]}_mask" in state}
    beside = {f"{name}{ending}" for name in pairs for ending in ("_orig", "_mask", "_amount")}
    plain = {key: value for key, value in state.items() if key not in beside}
    return plain | {name: state[f"{name}_orig"] * state[f"{name}_mask"] for name in pairs}


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Each reader has many ways to say that a file is not its own.
        raise UserError(
            f"checkpoint {path}: not a checkpoint that can be read safely "
            f"({type(error).__name__}); save one with torch.save(model.state_dict(), path) or safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"checkpoint {path}: it holds no state dict; save one with torch.save(model.state_dict(), path)"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}
