"""Detectors by name: their rows go with their anchors, and weights find their places."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

from edgeprune.errors import UserError
from edgeprune.models.architecture import Architecture
from edgeprune.models.build import anchors_of, build, gives_boxes
from edgeprune.models.resize import resize
from edgeprune.models.weights import from_checkpoint, load_weights
from edgeprune.pruning import shrink
from edgeprune.tasks.detection.suppression import decoded

TORCHVISION = "ssdlite320_mobilenet_v3_large"
NAMES = ("ssdlite/mobilenet_v3_small", "ssdlite/timm/mobilenetv2_050", TORCHVISION)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_for_each_anchor(name):
    model = build(name, 3, 96).eval()
    with torch.no_grad():
        rows = model(torch.zeros(2, 3, 96, 96))
    assert rows.shape == (2, len(anchors_of(name, 96).boxes(96)), 4 + 1 + 3)
    assert gives_boxes(name)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ssdlite/timm/vit_tiny_patch16_224", "its maps are 16"),
        ("ssdlite/resnet18", "must have `features`"),
        ("ssdlite/mobilenet_v9", "did you mean"),
    ],
)
def test_a_backbone_that_cannot_be_one_is_refused(name, told):
    with pytest.raises(UserError, match=told):
        build(name, 3, 96)


def test_rows_are_what_torchvision_decodes():
    """The same weights in torchvision's own detector find the same boxes."""
    torch.manual_seed(0)
    whole = models.get_model(TORCHVISION, weights=None, weights_backbone=None, num_classes=4).eval()
    ours = build(TORCHVISION, 3, 320).eval()
    assert not ours.load_state_dict(whole.state_dict(), strict=False).missing_keys
    image = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        (theirs,) = whole(list(image))
        rows = ours((image - 0.5) / 0.5)[0].numpy()
    corners, scores = decoded(rows, anchors_of(TORCHVISION, 320), 320)
    assert len(theirs["boxes"]) > 20
    for box, label, score in zip(theirs["boxes"], theirs["labels"], theirs["scores"], strict=True):
        place = abs(scores[:, label - 1] - float(score)).argmin()
        if abs(corners[place] - box.numpy()).max() > 1e-2:  # Another has the same score.
            near = abs(corners - box.numpy()).max(1)
            assert abs(scores[near.argmin(), label - 1] - float(score)) < 1e-5
            assert near.min() < 1e-2


def test_a_classifiers_weights_go_to_the_backbone_by_name_or_by_order(tmp_path):
    classifier = build("mobilenet_v3_small", 10)
    named = classifier.state_dict()
    torch.save(named, tmp_path / "named.pt")
    torch.save(
        {f"w{i}.{key.rpartition('.')[2]}": v for i, (key, v) in enumerate(named.items())},
        tmp_path / "in_order.pt",
    )
    architecture = Architecture("ssdlite/mobilenet_v3_small", 96)
    for file in ("named.pt", "in_order.pt"):
        model = architecture.build(3)
        loaded = load_weights(model, architecture, str(tmp_path / file))
        assert torch.equal(
            model.backbone.features[3].block[0][0].weight, named["features.3.block.0.0.weight"]
        )
        assert {name.partition(".")[0] for name in loaded.new_head} == {"extras", "boxes", "scores"}
        assert "a new head for 3 classes" in loaded.notes[-1]


def test_a_detectors_weights_keep_all_but_the_classes(tmp_path):
    architecture = Architecture("ssdlite/mobilenet_v3_small", 96)
    torch.save(architecture.build(5).state_dict(), tmp_path / "five.pt")
    model = architecture.build(3)
    loaded = load_weights(model, architecture, str(tmp_path / "five.pt"))
    assert {name.partition(".")[0] for name in loaded.new_head} == {"scores"}
    same = architecture.build(5)
    assert load_weights(same, architecture, str(tmp_path / "five.pt")).new_head == ()


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(TORCHVISION, marks=pytest.mark.slow)])
def test_channels_go_through_backbone_extras_and_heads_but_for_the_answers(name, tmp_path):
    model, example = build(name, 3, 96).eval(), torch.zeros(1, 3, 96, 96)
    shrunk = shrink(model, example, 0.5)
    parts = {layer.partition(".")[0] for layer in shrunk}
    assert "backbone" in parts
    assert "extras" in parts or any("backbone.extra" in layer for layer in shrunk)
    with torch.no_grad():
        rows = model(example)
    assert rows.shape == (1, len(anchors_of(name, 96).boxes(96)), 8)
    torch.save(model.state_dict(), tmp_path / "narrow.pt")
    again = from_checkpoint(name, tmp_path / "narrow.pt", 96)
    with torch.no_grad():
        torch.testing.assert_close(again(example), rows)
    rebuilt = build(name, 3, 96).eval()
    resize(rebuilt, model.state_dict())
