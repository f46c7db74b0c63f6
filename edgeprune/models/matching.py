"""Which tensor of a state dict belongs where in a model, whatever its names are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeprune.errors import UserError

COUNTER = "num_batches_tracked"
COMPILED = "_orig_mod."  # torch.compile puts it before any module's names.
HARMLESS = (  # Of no use to the model as it is, and safe to leave out.
    (r"(^|\.)num_batches_tracked$", "counters of batch norms"),
    (r"(^|\.)n_averaged$", "counters of averaging"),
    (r"(^|\.)total_(ops|params)$", "a profiler's counters"),
    (r"_COREML_", "marks of coremltools' pruners"),
    (r"^(aux1|aux2|AuxLogits)\.", "auxiliary heads, which training alone has"),
    (r"(fake_quant|activation_post_process|observer)", "ranges of quantisation-aware training"),
)
SAME_NAMES_FRACTION = 0.5  # From here on names are believed; below, the order is tried.
MOST_SHOWN = 3


@dataclass(frozen=True)
class Match:
    """A state dict under a model's own names.

    Attributes:
        state: what fits, by the model's names, as stored.
        renamed: (name in the file, name in the model), where tensors were matched by their order.
        prefix: what was before the model's names in the file.
        others: names in the file that are neither the model's nor known to be harmless.
        dropped: how many names were left out as harmless, by what they are.
        outside: names in the file without the prefix that the model's have.
    """

    state: dict[str, Tensor]
    renamed: tuple[tuple[str, str], ...]
    prefix: str
    others: tuple[str, ...]
    dropped: dict[str, int]
    outside: tuple[str, ...]

    def fits(self, wanted: Mapping[str, Tensor]) -> int:
        """How many tensors have the name and shape of one of the model's."""
        return sum(1 for key, value in self.state.items() if _same(wanted.get(key), value))


def best(
    states: Mapping[str, Mapping[str, Tensor]], wanted: Mapping[str, Tensor], head: Iterable[str] = ()
) -> tuple[str, Match]:
    """The state dict that fits a model best, running averages before what they are averages of.

    Args:
        states: by place in the file, as `checkpoint_file.state_dicts` gives them.
        wanted: the model's own state dict.
        head: names in it whose first width may be another.

    Returns:
        The place, and the tensors under the model's names.
    """
    matches = {place: match(state, wanted, tuple(head)) for place, state in states.items()}
    place = max(matches, key=lambda place: (matches[place].fits(wanted), "ema" in place.lower()))
    return place, matches[place]


def match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: Sequence[str] = ()) -> Match:
    """Bring a state dict under a model's names: without prefixes, or by the order of its tensors."""
    plain = whole({key.replace(COMPILED, ""): value for key, value in state.items()})
    prefix = _prefix(plain, wanted)
    own = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
    outside = tuple(key for key in plain if not key.startswith(prefix))
    needed = [key for key in wanted if not key.endswith(COUNTER)]
    renamed: tuple[tuple[str, str], ...] = ()
    if sum(key in own for key in needed) < SAME_NAMES_FRACTION * len(needed):
        renamed = in_order(own, wanted, head)
        own = {ours: own[theirs] for theirs, ours in renamed} if renamed else own
    left = [key for key in own if key not in wanted]
    why = {key: _harmless(key) for key in [*left, *outside]}
    counts = [reason for reason in why.values() if reason is not None]
    return Match(
        state={key: value for key, value in own.items() if key in wanted},
        renamed=renamed,
        prefix=prefix,
        others=tuple(key for key in left if why[key] is None),
        dropped={reason: counts.count(reason) for reason in dict.fromkeys(counts)},
        outside=tuple(key for key in outside if why[key] is None),
    )


def in_order(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], head: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Pairs (name in `state`, name in `wanted`) where the same tensors come in the same order; else none.

    Every tensor must have the shape of its partner, and the last part of its name ("weight", "running_var"):
    four vectors of a batch norm have one shape. Tensors of the `head` may differ in their first width.
    """
    theirs = [key for key in state if _harmless(key) is None]
    ours = [key for key in wanted if not key.endswith(COUNTER)]
    pairs = tuple(zip(theirs, ours, strict=False))
    alike = all(
        _leaf(mine) == _leaf(other) and _alike(state[other], wanted[mine], mine in head)
        for other, mine in pairs
    )
    return pairs if alike and len(theirs) == len(ours) else ()


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each weight that is kept in parts (pruned, weight-normed) as the one they stand for.

    Pairs NAME_orig and NAME_mask are `torch.nn.utils.prune`'s; NAME_g and NAME_v, or
    parametrizations.NAME.original0 and original1, a length and a direction (Salimans & Kingma 2016).
    """
    result = dict(state)
    for key in state:
        name = key.removesuffix("_orig")
        if name != key and f"{name}_mask" in state:
            result[name] = state[key] * state[f"{name}_mask"]
            for ending in ("_orig", "_mask", "_amount"):
                result.pop(name + ending, None)
        parts = _weight_norm(key)
        if parts is not None and parts[1] in state:
            name, direction = parts
            result[name] = _scaled(state[direction], state[key])
            del result[key], result[direction]
    # Where there were parts, each whole weight takes the place of the first of them: the order may matter.
    if len(result) == len(state):
        return result
    return {key: result[key] for key in dict.fromkeys(map(_whole_name, state)) if key in result} | result


def _whole_name(key: str) -> str:
    parts = _weight_norm(key)
    return parts[0] if parts is not None else key.removesuffix("_orig")


def _weight_norm(key: str) -> tuple[str, str] | None:
    """Of the name of a length: the whole weight's, and the direction's."""
    found = re.fullmatch(r"(.*\.|)parametrizations\.(\w+)\.original0", key)
    if found:
        return found.group(1) + found.group(2), key[:-1] + "1"
    return (key.removesuffix("_g"), f"{key.removesuffix('_g')}_v") if key.endswith("_g") else None


def _scaled(direction: Tensor, length: Tensor) -> Tensor:
    """Weights of these directions and lengths; the length is of every index along its one wide axis."""
    kept = [axis for axis, width in enumerate(length.shape) if width > 1]
    axes = [axis for axis in range(direction.ndim) if axis not in kept]
    norm: Tensor = torch.linalg.vector_norm(direction.float(), dim=axes, keepdim=True)
    return direction * (length / norm)


def _prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What to take off the names so that most of them are the model's; the shortest that does."""
    candidates = {"": 0}
    for key in state:
        parts = key.split(".")
        for count in range(len(parts)):
            if ".".join(parts[count:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:count])
                candidates[prefix] = candidates.get(prefix, 0) + 1
    return max(candidates, key=lambda prefix: (candidates[prefix], -len(prefix)))


def _harmless(key: str) -> str | None:
    """What a tensor is that no model needs; None for any other."""
    return next((reason for pattern, reason in HARMLESS if re.search(pattern, key)), None)


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _same(ours: Tensor | None, theirs: Tensor) -> bool:
    return ours is not None and ours.shape == theirs.shape


def _alike(theirs: Tensor, ours: Tensor, is_head: bool) -> bool:
    return theirs.shape == ours.shape or (is_head and theirs.shape[1:] == ours.shape[1:])


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def share(match: Match, wanted: Mapping[str, Tensor]) -> str:
    """How much of a model the tensors that fit are, for people."""
    needed = [key for key in wanted if not key.endswith(COUNTER)]
    fitting = sum(key in match.state and _same(wanted[key], match.state[key]) for key in needed)
    return f"{fitting} of {len(needed)} tensors ({100 * fitting / max(len(needed), 1):.0f} %)"


def refuse_not_finite(state: Mapping[str, Tensor], told: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        UserError: names some of them.
    """
    bad = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{told}: NaN or infinite values in {shown(bad)}")
