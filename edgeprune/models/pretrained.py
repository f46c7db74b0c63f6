"""Published weights of torchvision and timm: fetched by their own code, through their own caches."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeprune.errors import UserError
from edgeprune.models.checkpoint_file import SUFFIXES

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


def hub_names(name: str) -> tuple[str, ...]:
    """What the published weights of a model are called, the default ones first."""
    if name.startswith("timm/"):
        import timm

        names = [full.partition(".")[2] for full in timm.list_pretrained(f"{name[5:]}.*")]
        configuration = timm.models.get_pretrained_cfg(name[5:])
        first = configuration.tag if configuration is not None and configuration.has_weights else None
        return tuple(dict.fromkeys([*([first] if first in names else []), *names]))
    kinds = torchvision_weights(name)
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
    kind = torchvision_kind(name, source)
    try:
        return dict(kind.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        import torch

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"weights {source} of {name}: {Path(kind.url).name} cannot be fetched ({_reason(error)}); "
            f"without a network, put that file into {folder}, {LOCAL}"
        ) from None


def torchvision_weights(name: str) -> Any | None:
    """torchvision's enumeration of the published weights of a model; None where there are none."""
    from torchvision import models

    try:
        return models.get_model_weights(name)
    except ValueError:
        return None


def torchvision_kind(name: str, source: str) -> Any:
    """The published weights called `source`; of a file, those published under its name, else the default."""
    kinds: Any = torchvision_weights(name)
    called = source.rpartition(".")[2]
    by_file = {Path(kind.url).name: kind for kind in kinds}
    return kinds.__members__.get(called) or by_file.get(Path(source).name) or kinds.DEFAULT


def timm_configuration(name: str, source: str) -> Any:
    """timm's configuration of the published weights called `source`, else of its default ones."""
    import timm

    tag = source.rpartition(".")[2]
    own = timm.models.get_pretrained_cfg(f"{name}.{tag}") if tag in hub_names(f"timm/{name}") else None
    return own or timm.models.get_pretrained_cfg(name)


def _from_timm(name: str, source: str, image_size_px: int) -> dict[str, Tensor]:
    import timm

    configuration = timm_configuration(name, source)
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


def cached() -> list[tuple[str, int]]:
    """Weights in the caches of torch's and Hugging Face's hubs: the name of each, and its bytes."""
    import torch
    from huggingface_hub import constants

    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    files = sorted(file for file in checkpoints.glob("*") if file.suffix in SUFFIXES)
    found = [(file.name, file.stat().st_size) for file in files]
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        newest = {
            file.name: file.stat().st_size
            for file in sorted(folder.glob("snapshots/*/*"))
            if file.suffix in SUFFIXES and file.exists()
        }
        name = folder.name.removeprefix("models--").replace("--", "/")
        found += [(f"{name}, {file}", size_bytes) for file, size_bytes in newest.items()]
    return found


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"{type(error).__name__}: {text[:80]}".rstrip(": ")
