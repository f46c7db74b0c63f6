"""Weights of a model: read from a checkpoint, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.models.build import DEFAULT_IMAGE_SIZE_PX, build


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
    from edgeprune.models.resize import resize

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
