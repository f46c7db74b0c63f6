"""What training alone needs, merged into plain convolutions: branches side by side, computed weights.

MobileOne, RepVGG, FastViT and RepViT have branches; timm does the sums. Ding et al., "RepVGG: Making
VGG-style ConvNets Great Again", 2021 (arXiv:2101.03697). NFNet, NF-RegNet and BiT standardise their weights.
"""

from __future__ import annotations

import copy

from torch import nn

from edgeprune.errors import UserError
from edgeprune.models.computed import made_plain


def merged(model: nn.Module) -> nn.Module:
    """A copy that computes the same in eval mode, with every such block as the one convolution it amounts to.

    A convolution that computes its weight holds the computed one instead. Zeros that are pruned before would
    not survive: merge first, then prune.

    Raises:
        UserError: there is nothing to merge.
    """
    result, found = _merged(model)
    if found is None:
        raise UserError(
            "merge_branches: no block of this model has branches to merge, no layer computes its weight: "
            "leave it out"
        )
    return result


def mergeable(model: nn.Module) -> str | None:
    """What of a model `merged` would merge, in words; None where there is nothing.

    >>> mergeable(nn.Conv2d(3, 8, 3)) is None
    True
    """
    return _merged(model)[1]


def _merged(model: nn.Module) -> tuple[nn.Module, str | None]:
    from timm.utils.model import reparameterize_model

    # The convolutions that timm makes for it are in training mode.
    result: nn.Module = reparameterize_model(copy.deepcopy(model).eval(), inplace=True).eval()
    branches = result.state_dict().keys() != model.state_dict().keys()
    result, computed = made_plain(result)
    told = ["branches that training alone needs"] * branches
    told += ["weights that are computed whenever it runs"] * bool(computed)
    return result, " and ".join(told) or None
