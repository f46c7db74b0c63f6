import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from edgeprune.errors import ToolError, UserError
from edgeprune.pruning import resize, shrink, shrink_transformer

EXAMPLE = torch.zeros(1, 3, 32, 32)


def vit(**settings) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=32, depth=2, **settings
    ).eval()


def test_heads_and_widths_are_really_gone_and_the_model_runs():
    model = vit()
    assert shrink_transformer(model, EXAMPLE, heads=0.34, width=0.5) == {
        "blocks.0.attn.qkv": (576, 384),
        "blocks.1.attn.qkv": (576, 384),
        "blocks.0.mlp.fc1": (768, 384),
        "blocks.1.mlp.fc1": (768, 384),
    }
    assert model.blocks[0].attn.num_heads == 2
    assert model.blocks[0].attn.proj.weight.shape == (192, 128)
    assert model.blocks[1].mlp.fc2.weight.shape == (192, 384)
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 5)
    model(images).sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.shape == (384, 192)


def test_heads_that_do_nothing_go_and_nothing_changes():
    model = vit()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for block, head in zip(model.blocks, (0, 2), strict=True):
            part = slice(64 * head, 64 * (head + 1))
            block.attn.qkv.weight.view(3, 192, 192)[:, part] = 0
            block.attn.proj.weight[:, part] = 0
            block.mlp.fc1.weight[::2] = 0
            block.mlp.fc2.weight[:, ::2] = 0
        before = model(images)
        shrink_transformer(model, EXAMPLE, heads=0.34, width=0.5)
        assert torch.allclose(model(images), before, atol=1e-5)


def test_a_fresh_model_takes_the_saved_heads():
    model, fresh = vit(), vit()
    shrink(model, EXAMPLE, 0.5)
    resize(fresh, model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert fresh.blocks[0].attn.num_heads == model.blocks[0].attn.num_heads == 2
    assert torch.equal(fresh(images), model(images))


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "wanda", "random"])
def test_heads_can_be_ranked_by_other_criteria(criterion):
    model = vit()
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    shrunk = shrink(model, EXAMPLE, 0.5, criterion=criterion, calibration=batches)
    assert len(shrunk) == 4


def test_blocks_to_keep_stay():
    model = vit()
    shrunk = shrink_transformer(
        model, EXAMPLE, heads=0.5, width=0.5, keep=["blocks.0.attn", "blocks.1.mlp.fc1"]
    )
    assert set(shrunk) == {"blocks.1.attn.qkv", "blocks.0.mlp.fc1"}


def test_normalised_queries_and_keys_are_taken_along():
    model = vit(qk_norm=True)
    shrink_transformer(model, EXAMPLE, heads=0.5, width=0.0)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)


BAD = {
    "fraction of heads 1 is not in [0, 1)": {"heads": 1.0, "width": 0.5},
    "fraction of width -0.5 is not in [0, 1)": {"heads": 0.5, "width": -0.5},
    "no block 'head.3' to keep": {"heads": 0.5, "width": 0.5, "keep": ["head.3"]},
    "ranks single channels": {"heads": 0.5, "width": 0.5, "criterion": "fpgm"},
    "unknown criterion 'size'": {"heads": 0.5, "width": 0.5, "criterion": "size"},
}


@pytest.mark.parametrize("message", BAD)
def test_mistakes_are_refused_and_change_nothing(message):
    model = vit()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        shrink_transformer(model, EXAMPLE, **BAD[message])
    assert message in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_too_small_a_fraction_is_told():
    with pytest.raises(ToolError, match="no head or MLP feature could be removed"):
        shrink_transformer(vit(), EXAMPLE, heads=0.3, width=0.001)


def test_other_attention_is_left_whole_and_the_rest_shrinks():
    model = VisionTransformer(32, 16, 1, 4, 32, 64, num_classes=5).eval()
    widths = shrink(model, EXAMPLE, 0.5)
    assert widths == {"encoder.layers.encoder_layer_0.mlp.0": (64, 32)}
    assert widths.left["conv_proj"] == "a normalisation across channels reads it"
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match="no attention or MLP blocks of timm's plain kind"):
        shrink_transformer(model, EXAMPLE, heads=0.5, width=0.5)
