"""Weights of a model: a finished one's checkpoint, or those that training starts from, whoever wrote them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.models import checkpoint_file, matching, pretrained
from edgeprune.models.architecture import Architecture, backbone_of
from edgeprune.models.build import DEFAULT_IMAGE_SIZE_PX, build
from edgeprune.models.detector import Detector, RawHeads
from edgeprune.models.matching import COUNTER, Match, refuse_not_finite, shown

OTHER_CLASSES = 2  # Two models that differ in these alone show which weights are the head.
BACKBONE = "backbone."  # Before the names of a classifier's weights in a detector.
NEW_HEAD_STD = 0.01
TABLE_ROWS = 3  # At either end of a table of what was matched.


@dataclass(frozen=True)
class Loaded:
    """What was taken from where.

    Attributes:
        notes: for people, a line each.
        renamed: (name in the file, name in the model, shape) of each tensor that was matched by its order.
        new_head: names in the model that were not loaded, to be trained from nothing.
    """

    notes: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    new_head: tuple[str, ...] = ()


def load_checkpoint(model: nn.Module, path: Path) -> Loaded:
    """Load a finished model's weights into `model`, in place; every tensor must be there and fit.

    Args:
        model: as `build` made it.
        path: what `torch.save` or safetensors wrote: a state dict, or whatever a training loop keeps one in,
            with whatever prefixes before the names; see `matching.match`.

    Returns:
        What was taken and what was left out.

    Raises:
        UserError: no such file, not a checkpoint, or one of another model or number of classes.
    """
    wanted = model.state_dict()
    place, match = matching.best(checkpoint_file.state_dicts(path), wanted)
    problems = _misfits(model, match)
    if any(_shapes(match, wanted)):
        problems.append(
            "is it of a model with another number of classes? The data's class folders decide how many"
        )
    if match.others:
        problems.append(f"{len(match.others)} weights are not of this model, e.g. {shown(match.others)}")
    if problems:
        raise UserError(
            [
                f"checkpoint {path} does not fit the model, of which it has {matching.share(match, wanted)}:",
                *(f"  {problem}" for problem in problems),
            ]
        )
    refuse_not_finite(match.state, f"checkpoint {path}")
    return _filled(model, match, f"checkpoint {path}", place)


def from_checkpoint(
    name: str, path: Path, image_size_px: int = DEFAULT_IMAGE_SIZE_PX, padding: str | None = None
) -> nn.Module:
    """Build a model by name with a checkpoint's weights, widths and number of classes, in eval mode.

    Unlike `load_checkpoint` it takes what pruning leaves: layers that are narrower than the model's own, and
    the pairs NAME_orig and NAME_mask of `torch.nn.utils.prune` (coremltools' pruners write the same).

    Args:
        name: as `build` takes it.
        path: as `load_checkpoint` takes it.
        image_size_px: as `build` takes it.
        padding: as `build` takes it.

    Raises:
        UserError: no such model or file; or a checkpoint of another architecture, or with NaN or infinity.
    """
    from edgeprune.models.resize import resize

    told = f"checkpoint {path}"
    states = checkpoint_file.state_dicts(path)
    full = build(name, 2, image_size_px, padding)
    head = _last_layer(full)
    _, match = matching.best(states, full.state_dict(), _under(full, head))
    refuse_not_finite(match.state, told)
    if f"{head}.weight" not in match.state:
        raise UserError(
            f"{told} has no {head}.weight: it is not of {name}, of which it has "
            f"{matching.share(match, full.state_dict())}"
        )
    width = len(match.state[f"{head}.weight"])
    classes = full.classes_of(width) if isinstance(full, RawHeads) else width
    model = build(name, classes, image_size_px, padding)
    own = model.state_dict()
    state = {key: value for key, value in own.items() if key.endswith(COUNTER)}
    state |= {key: _as(value, own[key]) for key, value in match.state.items()}
    state |= dict.fromkeys(match.others, torch.empty(0))  # Named by `resize` as what the model has not.
    try:
        resize(model, state)
    except UserError as error:
        raise UserError([f"{told} does not fit {name}: {line}" for line in error.problems]) from None
    return model.eval()


def load_weights(model: nn.Module, architecture: Architecture, source: str, head: str = "auto") -> Loaded:
    """Load the weights that training starts from into `model`, in place.

    Args:
        model: as `architecture` builds it, for the classes of the images.
        architecture: of the model.
        source: "default", a name that torchvision or timm have for published weights, or a path.
        head: "auto": a head of another width stays untrained; "keep": that is refused; "new": it always stays
            untrained.

    Returns:
        What was taken and what was left out.

    Raises:
        UserError: no such weights, no network to fetch them over, or weights of another architecture.
    """
    name = backbone_of(architecture.name)
    told = f"weights {source}"
    path = pretrained.as_path(name, source)
    if path is not None:
        states = checkpoint_file.state_dicts(path, "weights")
    else:
        states = {"": pretrained.fetch(name, source, architecture.image_size_px)}
    wanted, own_head = model.state_dict(), head_names(model, architecture)
    place, match = matching.best(states, wanted, own_head)
    added: tuple[str, ...] = ()
    if isinstance(model, Detector) and not any(key in match.state for key in _of_parts(model)):
        # A classifier's weights, for the backbone alone.
        place, match = _of_backbone(states, model, architecture)
        added = _of_parts(model)
    differs = [key for key in own_head if key in match.state and match.state[key].shape != wanted[key].shape]
    if differs and head == "keep":
        there = match.state[differs[0]].shape[0]
        raise UserError(
            f"{told}: their head has {there} classes, the images have {wanted[differs[0]].shape[0]}: "
            "give images of the same classes, or leave out --head keep for a new head"
        )
    new_head = added or (own_head if differs or head == "new" else ())
    state = {key: value for key, value in match.state.items() if key not in new_head}
    kept = Match(**{**vars(match), "state": state})
    problems = _misfits(model, kept, new_head)
    if problems:
        raise UserError(
            [
                f"{told}: they are not of {name}: {matching.share(match, wanted)} have the name and shape "
                "of one of its own:",
                *(f"  {problem}" for problem in problems),
            ]
        )
    refuse_not_finite(state, told)
    loaded = _filled(model, kept, told, place)
    if not new_head:
        return loaded
    _begin_small(model, new_head)
    widths = [len(match.state[key]) for key in differs[:1]]
    why = f"; theirs has {widths[0]}" if widths and not isinstance(model, RawHeads) else ""
    classes = model.classes if isinstance(model, RawHeads) else wanted[new_head[0]].shape[0]
    line = f"  a new head for {classes} classes, {shown(new_head)}, is trained from nothing{why}"
    return Loaded((*loaded.notes, line), loaded.renamed, new_head)


def _of_parts(model: Detector) -> tuple[str, ...]:
    """The weights of a detector that no classifier has."""
    return tuple(key for key in model.state_dict() if key.partition(".")[0] in model.ADDED)


def _of_backbone(
    states: Mapping[str, Mapping[str, Tensor]], model: Detector, architecture: Architecture
) -> tuple[str, Match]:
    """The best of some classifiers' weights, under the names that they have in a detector."""
    classifier = Architecture(
        backbone_of(architecture.name), architecture.image_size_px, architecture.padding
    )
    whole = classifier.build(OTHER_CLASSES)
    place, match = matching.best(states, whole.state_dict(), head_names(whole, classifier))
    inside = {f"{BACKBONE}{key}": value for key, value in match.state.items()}
    own = model.state_dict()
    left = tuple(key for key in match.state if f"{BACKBONE}{key}" not in own and not key.endswith(COUNTER))
    return place, Match(
        **{
            **vars(match),
            "state": {key: value for key, value in inside.items() if key in own},
            "renamed": tuple(
                (theirs, f"{BACKBONE}{ours}") for theirs, ours in match.renamed if f"{BACKBONE}{ours}" in own
            ),
            "others": (*match.others, *left),
        }
    )


@torch.no_grad()
def _begin_small(model: nn.Module, head: Sequence[str]) -> None:
    """Have the fully connected layers of a new head begin with no opinion, in place.

    Architectures begin theirs as a training from nothing wants it: timm's EfficientNets with weights up to
    0.45 for five classes, which on trained features gives a loss of 4.4 where guessing gives 1.6.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and f"{name}.weight" in head:
            nn.init.normal_(module.weight, std=NEW_HEAD_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def head_names(model: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """The weights of `model` whose shapes depend on the number of classes, in order."""
    # Found out rather than known: every architecture calls its head something else, and some have two.
    widths = {key: value.shape for key, value in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        other = architecture.build(OTHER_CLASSES).state_dict()
        if all(other[key].shape == shape for key, shape in widths.items() if key in other):
            other = architecture.build(OTHER_CLASSES + 1).state_dict()
    return tuple(key for key, shape in widths.items() if key in other and other[key].shape != shape)


def _last_layer(model: nn.Module) -> str:
    """The layer whose width tells the number of classes."""
    if isinstance(model, RawHeads):
        name: str = model.CLASSIFIER
        return name
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return str(layers[-1])


def _under(model: nn.Module, module: str) -> tuple[str, ...]:
    return tuple(key for key in model.state_dict() if key.rpartition(".")[0] == module)


def _misfits(model: nn.Module, match: Match, untrained: Sequence[str] = ()) -> list[str]:
    """Weights of `model` that are not there or have another shape, a line each."""
    buffers = {key for key, _ in model.named_buffers() if not key.endswith(("running_mean", "running_var"))}
    missing = [
        key
        for key in model.state_dict()
        if key not in match.state and key not in untrained and key not in buffers
    ]
    problems = _shapes(match, model.state_dict())
    more = len(problems) - matching.MOST_SHOWN
    problems = problems[: matching.MOST_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    if missing:
        problems.append(f"{len(missing)} weights are missing, e.g. {shown(missing)}")
    return problems


def _shapes(match: Match, wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{key}: the checkpoint has {tuple(value.shape)}, the model {tuple(wanted[key].shape)}"
        for key, value in match.state.items()
        if value.shape != wanted[key].shape
    ]


def _filled(model: nn.Module, match: Match, told: str, place: str) -> Loaded:
    """Put what fits into `model`, and say so."""
    wanted = model.state_dict()
    model.load_state_dict({key: _as(value, wanted[key]) for key, value in match.state.items()}, strict=False)
    renamed = tuple((theirs, ours, tuple(wanted[ours].shape)) for theirs, ours in match.renamed)
    return Loaded((*_notes(match, wanted, told, place), *table(renamed)), renamed)


def _notes(match: Match, wanted: Mapping[str, Tensor], told: str, place: str) -> list[str]:
    """What was taken and what was left out, a line each."""
    origin = f", from {place}" if place else ""
    prefix = f", without the prefix {match.prefix!r}" if match.prefix else ""
    notes = [f"{told}: {matching.share(match, wanted)}{origin}{prefix}"]
    other_types = Counter(
        str(value.dtype).removeprefix("torch.")
        for key, value in match.state.items()
        if value.dtype != wanted[key].dtype and not key.endswith(COUNTER)
    )
    notes += [f"  {count} tensors were {kind}" for kind, count in other_types.items()]
    left_out = [
        f"{count} {reason}"
        for reason, count in match.dropped.items()
        if not reason.startswith("counters of b")
    ]
    others = (*match.others, *match.outside)
    left_out += [f"{len(others)} that are not the model's ({shown(others)})"] if others else []
    return notes + ([f"  left out: {'; '.join(left_out)}"] if left_out else [])


def table(renamed: Sequence[tuple[str, str, tuple[int, ...]]]) -> list[str]:
    """Both ends of the table of what was matched by order, a line each."""
    if not renamed:
        return []
    left, middle = (max(len(row[place]) for row in renamed) for place in (0, 1))
    rows = [f"    {theirs:{left}}  {ours:{middle}}  {shape}" for theirs, ours, shape in renamed]
    more = len(rows) - 2 * TABLE_ROWS
    if more > 0:
        rows = [*rows[:TABLE_ROWS], f"    ... {more} more", *rows[-TABLE_ROWS:]]
    return [
        "  other names, the same tensors in the same order (theirs, the model's, shape):",
        *rows,
    ]


def _as(value: Tensor, wanted: Tensor) -> Tensor:
    return value.to(wanted.dtype)
