"""Lottery tickets: prune what training shows to be small, take the rest back to where it began, train again.

Frankle & Carbin, 2019; back to an early epoch rather than to the start: Frankle et al., 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeprune.errors import UserError
from edgeprune.pruning.patterns import NofM
from edgeprune.pruning.schedule import OneShot
from edgeprune.pruning.select import Rule
from edgeprune.pruning.sparsifier import Sparsifier

# Trains a model in place; calls `step()` of the sparsifier after every optimizer step.
Train = Callable[[nn.Module, Sparsifier | None], None]


def find_ticket(
    model: nn.Module,
    rules: Sequence[Rule],
    rounds: int,
    train: Train,
    *,
    start: Mapping[str, Tensor] | None = None,
    criterion: str = "magnitude",
) -> Sparsifier:
    """Train, prune a share of what is left, rewind; round after round, until the rules' sparsity is reached.

    Each round drops the same share of the weights that the one before left. What is pruned stays pruned.

    Args:
        model: in the state of `start`; comes back rewound, its zeros in place, for a last training.
        rules: final sparsities.
        rounds: 1 or more; each is one whole training.
        train: see `Train`.
        start: state to rewind to, as `snapshot` gives it, of the initial model or of an early epoch; None:
            the model as it comes.
        criterion: a name in `CRITERIA` that needs the weights alone.

    Returns:
        Holds the masks: step it during the last training, finalize it at the end.

    Raises:
        UserError: no round; see `Sparsifier`.
    """
    if rounds < 1:
        raise UserError(f"{rounds} rounds of rewinding: 1 or more")
    start = snapshot(model) if start is None else start
    held: Sparsifier | None = None
    for number in range(1, rounds + 1):
        train(model, held)
        due = rules_of_round(rules, number, rounds)
        chooser = Sparsifier(model, due, OneShot(), criterion=criterion)
        chooser.finalize()
        masks = chooser.state_dict()["masks"]
        rewind(model, start)
        held = hold(model, due, masks)
    assert held is not None
    return held


def rules_of_round(rules: Sequence[Rule], number: int, rounds: int) -> list[Rule]:
    """The rules of a round: so many of the same shares of what is left have been dropped by then.

    >>> from edgeprune.pruning import Unstructured
    >>> [rules_of_round([Rule(Unstructured(), 0.875)], n, 3)[0].sparsity for n in (1, 2, 3)]
    [0.5, 0.75, 0.875]
    """
    return [
        rule  # N of M has one sparsity.
        if isinstance(rule.pattern, NofM)
        else replace(rule, sparsity=1 - (1 - rule.sparsity) ** (number / rounds))
        for rule in rules
    ]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights, biases and statistics, to `rewind` to."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def rewind(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Give a model back the very values it had, in place."""
    model.load_state_dict(start)


def hold(model: nn.Module, rules: Sequence[Rule], masks: Sequence[Tensor]) -> Sparsifier:
    """A sparsifier that keeps to these masks, which are applied at once.

    Args:
        model: any with the layers that the masks are of: also a fresh one, for the control of a ticket.
        rules: that select those layers.
        masks: as a sparsifier of the same rules has them under "masks" in its `state_dict()`.
    """
    held = Sparsifier(model, rules, OneShot())
    held.load_state_dict({"step": 1, "masks": masks})
    with torch.no_grad():
        held.step()
    return held
