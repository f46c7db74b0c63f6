"""The attention and MLP blocks of vision transformers, as timm builds them."""

from __future__ import annotations

from torch import nn


def is_attention(module: nn.Module) -> bool:
    """Whether it is a timm attention block whose heads can be taken out one by one."""
    kind = type(module)
    # By name: timm need not be installed. Gates and scale norms run across heads.
    return (
        (kind.__module__, kind.__name__) == ("timm.layers.attention", "Attention")
        and hasattr(module, "attn_dim")
        and getattr(module, "gate", None) is None
        and isinstance(module.norm, nn.Identity)
    )


def is_mlp(module: nn.Module) -> bool:
    """Whether it is a timm MLP of two linear layers."""
    kind = type(module)
    return (
        (kind.__module__, kind.__name__) == ("timm.layers.mlp", "Mlp")
        and isinstance(module.fc1, nn.Linear)
        and isinstance(module.norm, nn.Identity)
    )


def set_heads(attention: nn.Module) -> None:
    """Make a block's count of heads agree with the width of its `qkv`, in place."""
    qkv, head_dim = attention.qkv, attention.head_dim
    attention.attn_dim = qkv.out_features // 3  # type: ignore[union-attr,operator,assignment]
    attention.num_heads = attention.attn_dim // head_dim  # type: ignore[operator]


def attention_blocks(model: nn.Module) -> list[str]:
    """Names of everything in `model` that looks like attention."""
    return [name for name, module in model.named_modules() if "Attention" in type(module).__name__]
