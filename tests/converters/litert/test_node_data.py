"""What Model Explorer lays over a `.tflite`: by its own reader where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from converters import litert
from converters.facts import FileFacts
from converters.litert.accelerators import DENSIFY
from converters.litert.format import LiteRT
from edgeprune.cli import main
from edgeprune.commands.inspect import write_node_data
from edgeprune.errors import UserError
from tests.support.runs import write_network


@pytest.fixture
def overlays(tmp_path: Path) -> dict[str, Any]:
    file = write_network(tmp_path / "a.tflite", width=32, zeros=(0.0, 0.8))
    assert main(["inspect", str(file), "--node-data", str(tmp_path / "overlays"), "--json", "-"]) == 0
    found = sorted((tmp_path / "overlays").glob("*.json"))
    assert [path.stem for path in found] == ["bits", "litert-gpu", "zeros"]
    return {path.stem: json.loads(path.read_text())["main"]["results"] for path in found}


def test_each_weight_has_its_zeros_and_bits(overlays: dict[str, Any], tmp_path: Path) -> None:
    layers = litert.inspect(tmp_path / "a.tflite").layers
    assert [node["value"] for node in overlays["zeros"].values()] == [layer.zero_fraction for layer in layers]
    bits = [layer.bits_per_weight for layer in layers]
    assert [node["value"] for node in overlays["bits"].values()] == bits
    told = {node["value"] for node in overlays["litert-gpu"].values()}
    assert told - {DENSIFY} == {"runs"}


def test_each_op_has_its_error_to_the_torch_model(tmp_path: Path) -> None:
    """A layer that the file has wrong is the first that stands out."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)).eval()
    path = tmp_path / "a.tflite"
    litert.convert(model, torch.zeros(1, 3, 8, 8), path)
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    right = LiteRT().error_overlays(path, image, model, image)["error"]["main"]["results"]
    assert len(right) >= 3
    assert max(node["value"] for node in right.values()) < 1e-5
    with torch.no_grad():
        second.bias += 0.05
    wrong = LiteRT().error_overlays(path, image, model, image)["error"]["main"]["results"]
    values = [node["value"] for node in wrong.values()]
    assert values[0] < 1e-5
    assert max(values[1:]) > 1e-3


def test_other_formats_have_none(tmp_path: Path) -> None:
    facts = FileFacts(Path("a.mlpackage"), (), {}, (), {})
    with pytest.raises(UserError, match=r"nothing to lay over a \.mlpackage"):
        write_node_data(facts, tmp_path / "overlays")
    assert not (tmp_path / "overlays").exists()


def test_model_explorer_finds_every_node(overlays: dict[str, Any], tmp_path: Path) -> None:
    adapter = pytest.importorskip("ai_edge_model_explorer_adapter")
    text = adapter.ConvertFlatbufferDirectlyToJson(adapter.VisualizeConfig(), str(tmp_path / "a.tflite"))
    (graph,) = json.loads(text)[0]["subgraphs"]
    attributes = [entry for node in graph["nodes"] for entry in node.get("outputsMetadata", ())]
    names = {attr["value"] for entry in attributes for attr in entry["attrs"] if attr["key"] == "tensor_name"}
    assert graph["id"] == "main"
    for overlay in overlays.values():
        assert set(overlay) <= names
