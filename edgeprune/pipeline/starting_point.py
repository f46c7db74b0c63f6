"""What a recipe starts from: its weights, and how their images were prepared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import INTERPOLATIONS, Preprocessing
from edgeprune.models import pretrained
from edgeprune.models.architecture import backbone_of
from edgeprune.recipe import ERDOS_RENYI, UNIFORM, Recipe, Variant
from edgeprune.tasks import TASKS
from edgeprune.training.config import AUTO, Augment

DETECTOR_PX = 320  # Of torchvision's SSDLite.


def file_of(recipe: Recipe) -> Path | None:
    """The file that a recipe's weights are in; None where they are published ones, or there are none."""
    return None if recipe.weights is None else pretrained.as_path(backbone_of(recipe.model), recipe.weights)


def own_preprocessing(name: str, source: str) -> tuple[Preprocessing, str]:
    """How the images of published weights were prepared, and whose words these are.

    A file says nothing of it: the weights published under the same file name are taken to be the same, else
    the model's default ones to be like it.
    """
    if name.startswith("timm/"):
        return _timm_preprocessing(name[5:], source)
    kinds = pretrained.torchvision_weights(name)
    if kinds is None:
        return Preprocessing(), "the default"
    kind = pretrained.torchvision_kind(name, source)
    preset = kind.transforms()
    if not hasattr(preset, "resize_size"):  # A detector's: what the model itself does is not told here.
        half = (0.5, 0.5, 0.5)
        return Preprocessing(DETECTOR_PX, mean=half, std=half), f"that of torchvision's {name}"
    resize_px = _side(preset.resize_size)
    found = Preprocessing(
        image_size_px=_side(getattr(preset, "crop_size", preset.resize_size)),
        resize_px=resize_px,
        interpolation=preset.interpolation.value,
        mean=_triple(preset.mean),
        std=_triple(preset.std),
    )
    return found, f"that of torchvision's {kind}"


def resolved(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with preprocessing and augmentation filled in, from its weights or the defaults, and what to
    say of them.

    Raises:
        UserError: no such weights; or a field of the preprocessing does not go with those of the weights.
    """
    if recipe.weights is None:
        own, origin = Preprocessing(), "the default"
    else:
        name = backbone_of(recipe.model)
        pretrained.as_path(name, recipe.weights)  # Refuses weights that there are none of.
        own, origin = own_preprocessing(name, recipe.weights)
    size_px, resize_px = recipe.image_size_px or own.image_size_px, recipe.resize_px
    if resize_px is None and own.resize_px is not None and not recipe.preprocessing.whole_image:
        resize_px = own.resize_px * size_px // own.image_size_px  # The same share of the image is seen.
    filled = dataclasses.replace(
        recipe,
        image_size_px=size_px,
        resize_px=resize_px,
        interpolation=recipe.interpolation or own.interpolation,
        mean=recipe.mean or own.mean,
        std=recipe.std or own.std,
        augment=_augment(recipe),
        variants={name: _allocated(variant, recipe) for name, variant in recipe.variants.items()},
    )
    if recipe.weights is None:
        return filled, []
    given = [
        field.name for field in dataclasses.fields(Preprocessing) if getattr(recipe, field.name) is not None
    ]
    but = f", but for {', '.join(given)}" if given else ""
    told = filled.preprocessing
    normal = f"mean {_rounded(told.mean)}, std {_rounded(told.std)}"
    said = [f"preprocessing is {origin}{but}: {told.in_words()}, {normal}"]
    if filled.augment != recipe.augment:
        said.append(f"augmentation is {filled.augment.preset}; augment.preset chooses another")
    shared = [
        name
        for name, variant in filled.variants.items()
        if (recipe.variants[name].allocation, variant.allocation) == (AUTO, ERDOS_RENYI)
    ]
    if shared:
        said.append(
            f"zeros of {', '.join(shared)} are shared out by {ERDOS_RENYI}; allocation chooses another"
        )
    return filled, said


def _augment(recipe: Recipe) -> Augment:
    """A preset instead of auto: random crops keep pretrained weights from learning few images by heart."""
    if recipe.augment.preset != AUTO:
        return recipe.augment
    preset = "standard" if _is_pretrained_classifier(recipe) else "light"
    return dataclasses.replace(recipe.augment, preset=preset)


def _allocated(variant: Variant, recipe: Recipe) -> Variant:
    """An allocation instead of auto: layers of pretrained weights differ too much for the same zeros."""
    from edgeprune.pruning.allocation.layers import MAXIMUM_SPARSITY

    if variant.allocation != AUTO:
        return variant
    can_be_shared = not variant.layers and 0 < variant.sparsity <= MAXIMUM_SPARSITY
    shared = can_be_shared and _is_pretrained_classifier(recipe)
    return dataclasses.replace(variant, allocation=ERDOS_RENYI if shared else UNIFORM)


def _is_pretrained_classifier(recipe: Recipe) -> bool:
    return recipe.weights is not None and TASKS[recipe.task].labels is LabelKind.CLASS


def _rounded(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _timm_preprocessing(name: str, source: str) -> tuple[Preprocessing, str]:
    from timm.data import resolve_data_config

    configuration = pretrained.timm_configuration(name, source)
    if configuration is None:
        return Preprocessing(), "the default"
    told = resolve_data_config(pretrained_cfg=configuration.to_dict())
    size_px = int(told["input_size"][-1])
    found = Preprocessing(
        image_size_px=size_px,
        resize_px=int(size_px / told["crop_pct"]),
        interpolation=told["interpolation"] if told["interpolation"] in INTERPOLATIONS else "bicubic",
        mean=_triple(told["mean"]),
        std=_triple(told["std"]),
    )
    tag = f".{configuration.tag}" if configuration.tag else ""
    mode = told["crop_mode"]
    but = f" (which asks for crop mode {mode}; here the middle is cropped)" if mode != "center" else ""
    return found, f"that of timm's {name}{tag}{but}"


def _side(size: Any) -> int:
    return int(size[0]) if isinstance(size, (list, tuple)) else int(size)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
