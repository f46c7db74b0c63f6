"""Branches that run side by side in training only, merged into one convolution.

MobileOne, RepVGG, FastViT and RepViT have them; timm does the sums. Ding et al., "RepVGG: Making VGG-style
ConvNets Great Again", 2021 (arXiv:2101.03697).
"""

from __future__ import annotations

import copy

from torch import nn

from edgeprune.errors import UserError


def merged(model: nn.Module) -> nn.Module:
    """A copy that computes the same in eval mode, with every such block as the one convolution it amounts to.

    Zeros that are pruned into the branches would not survive the merging: merge first, then prune.

    Raises:
        UserError: there is nothing to merge.
    """
    from timm.utils.model import reparameterize_model

    # The convolutions that timm makes for it are in training mode.
    result: nn.Module = reparameterize_model(copy.deepcopy(model).eval(), inplace=True).eval()
    if result.state_dict().keys() == model.state_dict().keys():
        raise UserError("merge_branches: no block of this model has branches to merge: leave it out")
    return result


def has_branches(model: nn.Module) -> bool:
    """Whether `merged` would merge something."""
    try:
        merged(model)
    except UserError:
        return False
    return True
