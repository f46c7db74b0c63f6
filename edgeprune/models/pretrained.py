"""Published weights of torchvision and timm: fetched by their own code, and their way to prepare images."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from edgeprune.data.preprocessing import INTERPOLATIONS, Preprocessing
from edgeprune.errors import UserError
from edgeprune.models.checkpoint_file import SUFFIXES

if TYPE_CHECKING:
    from edgeprune.recipe import Recipe

DEFAULT = "default"
LOCAL = "or give a file: --weights FILE"


def as_path(name: str, source: str) -> Path | None:
    """The file that `source` names; None where it is "default" or a hub's name.

    Raises:
        UserError: it is neither a file nor a name that the hub of the model `name` has.
    """
    path = Path(source).expanduser()
    if source != DEFAULT and (
        path.suffix in SUFFIXES or path.exists() or source.startswith((".", os.sep, "~"))
    ):
        return path
    known = hub_names(name)
    if source == DEFAULT and not known:
        raise UserError(f"weights default: there are no published ones of {name}; {LOCAL}")
    if source != DEFAULT and source.rpartition(".")[2] not in known:
        there = ", ".join(known) or "none"
        raise UserError(f"weights {source}: no such file, and of {name} the hub has {there} (or say default)")
    return None


def file_of(recipe: Recipe) -> Path | None:
    """The file that a recipe's weights are in; None where they are published ones, or there are none."""
    return None if recipe.weights is None else as_path(recipe.model, recipe.weights)


def hub_names(name: str) -> tuple[str, ...]:
    """What the published weights of a model are called, the default ones first."""
    if name.startswith("timm/"):
        import timm

        names = [full.partition(".")[2] for full in timm.list_pretrained(f"{name[5:]}.*")]
        configuration = timm.models.get_pretrained_cfg(name[5:])
        first = configuration.tag if configuration is not None and configuration.has_weights else None
        return tuple(dict.fromkeys([*([first] if first in names else []), *names]))
    kinds = _torchvision_weights(name)
    if kinds is None:
        return ()
    return tuple(dict.fromkeys([kinds.DEFAULT.name, *kinds.__members__]))


def fetch(name: str, source: str, image_size_px: int) -> dict[str, Tensor]:
    """Published weights as a state dict, from the hub's own cache or over the network.

    Raises:
        UserError: they cannot be fetched; the message says which file goes where.
    """
    if name.startswith("timm/"):
        return _from_timm(name[5:], source, image_size_px)
    kind = _torchvision_kind(name, source)
    try:
        return dict(kind.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        import torch

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"weights {source} of {name}: {Path(kind.url).name} cannot be fetched ({_reason(error)}); "
            f"without a network, put that file into {folder}, {LOCAL}"
        ) from None


def own_preprocessing(name: str, source: str) -> tuple[Preprocessing, str]:
    """How the images of published weights were prepared, and whose words these are.

    A file says nothing of it: the weights published under the same file name are taken to be the same, else
    the model's default ones to be like it.
    """
    if name.startswith("timm/"):
        return _timm_preprocessing(name[5:], source)
    kinds = _torchvision_weights(name)
    if kinds is None:
        return Preprocessing(), "the default"
    kind = _torchvision_kind(name, source)
    preset = kind.transforms()
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
    """The recipe with its preprocessing filled in, from its weights or the defaults, and what to say of it.

    Raises:
        UserError: no such weights; or a field of the preprocessing does not go with those of the weights.
    """
    if recipe.weights is None:
        own, origin = Preprocessing(), "the default"
    else:
        as_path(recipe.model, recipe.weights)  # Refuses weights that there are none of.
        own, origin = own_preprocessing(recipe.model, recipe.weights)
    size_px, resize_px = recipe.image_size_px or own.image_size_px, recipe.resize_px
    if resize_px is None and own.resize_px is not None:
        resize_px = own.resize_px * size_px // own.image_size_px  # The same share of the image is seen.
    filled = dataclasses.replace(
        recipe,
        image_size_px=size_px,
        resize_px=resize_px,
        interpolation=recipe.interpolation or own.interpolation,
        mean=recipe.mean or own.mean,
        std=recipe.std or own.std,
    )
    if recipe.weights is None:
        return filled, []
    given = [
        field.name for field in dataclasses.fields(Preprocessing) if getattr(recipe, field.name) is not None
    ]
    but = f", but for {', '.join(given)}" if given else ""
    told = filled.preprocessing
    normal = f"mean {_rounded(told.mean)}, std {_rounded(told.std)}"
    return filled, [f"preprocessing is {origin}{but}: {told.in_words()}, {normal}"]


def _rounded(values: tuple[float, float, float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _torchvision_weights(name: str) -> Any | None:
    from torchvision import models

    try:
        return models.get_model_weights(name)
    except ValueError:
        return None


def _torchvision_kind(name: str, source: str) -> Any:
    """The published weights called `source`; of a file, those published under its name, else the default."""
    kinds: Any = _torchvision_weights(name)
    called = source.rpartition(".")[2]
    by_file = {Path(kind.url).name: kind for kind in kinds}
    return kinds.__members__.get(called) or by_file.get(Path(source).name) or kinds.DEFAULT


def _timm_configuration(name: str, source: str) -> Any:
    import timm

    tag = source.rpartition(".")[2]
    own = timm.models.get_pretrained_cfg(f"{name}.{tag}") if tag in hub_names(f"timm/{name}") else None
    return own or timm.models.get_pretrained_cfg(name)


def _timm_preprocessing(name: str, source: str) -> tuple[Preprocessing, str]:
    from timm.data import resolve_data_config

    configuration = _timm_configuration(name, source)
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


def _from_timm(name: str, source: str, image_size_px: int) -> dict[str, Tensor]:
    import timm

    configuration = _timm_configuration(name, source)
    full = f"{name}.{configuration.tag}" if configuration.tag else name
    size = {"img_size": image_size_px} if configuration.fixed_input_size else {}
    try:
        return dict(timm.create_model(full, pretrained=True, **size).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        hub = configuration.hf_hub_id
        file = f"model.safetensors of {hub}" if hub else Path(str(configuration.url)).name
        raise UserError(
            f"weights {source} of timm/{name}: {file} cannot be fetched ({_reason(error)}); without a "
            f"network, fetch it elsewhere and give it: --weights {Path(file.split()[0]).name}; or copy that "
            f"machine's folder {_hub_folder(hub)}"
        ) from None


def _hub_folder(hub: str | None) -> Path:
    """Where the hub's own code keeps what it fetched."""
    if not hub:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{hub.replace('/', '--')}"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text[:80]}".rstrip(": ")


def _side(size: Any) -> int:
    return int(size[0]) if isinstance(size, (list, tuple)) else int(size)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
