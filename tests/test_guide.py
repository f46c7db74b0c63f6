"""The guide's own lines: its Python runs, its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from edgeprune import recipe
from edgeprune.commands.parser import parse
from edgeprune.models import build as models
from edgeprune.models import cost
from edgeprune.models.weights import from_checkpoint

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


def blocks() -> list[str]:
    """The indented blocks, without their indentation."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    return ["\n".join(line[4:] for line in block.splitlines()).strip() for block in found]


def commands(program: str) -> list[list[str]]:
    """Every command line that starts with `program`, continued lines joined, comments left out."""
    lines = "\n".join(blocks()).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(program)]


PYTHON = [block for block in blocks() if "torch.save(" in block]


def test_the_guide_has_the_three_tools():
    assert len(PYTHON) == 3
    assert len(commands("edgeprune ")) >= 2
    assert len(commands("python recipes/")) == 2


@pytest.mark.parametrize("place", range(3))
def test_what_the_guide_saves_can_be_converted(place, tmp_path, monkeypatch):
    """The later blocks stand on the first one's imports, as a reader's session does."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(PYTHON[0].splitlines()[0] + "\n" + PYTHON[place], names)
    loaded = from_checkpoint("mobilenet_v3_small", tmp_path / "mine.pt")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), names["model"].eval()(images), rtol=1e-4, atol=1e-14)
    weights = sum(layer.weight.numel() for layer in loaded.modules() if hasattr(layer, "weight"))
    zeros = sum(int((p == 0).sum()) for n, p in loaded.named_parameters() if n.endswith("weight"))
    dense = cost.count_parameters(models.build("mobilenet_v3_small", 10))
    assert zeros > 0.7 * weights or cost.count_parameters(loaded) < 0.6 * dense


def test_the_commands_of_the_guide_parse():
    for command in commands("edgeprune "):
        if "..." not in command:
            assert parse(command[1:]).execute
    for command in commands("python recipes/"):
        name = Path(command[1]).stem
        assert (GUIDE.parents[1] / command[1]).is_file()
        start = recipe.Recipe(
            model=name,
            variants={"block80": recipe.Variant(sparsity=0.8), "channels": recipe.Variant(channels=0.3)},
        )
        assert recipe.from_command_line(start, "", command[2:]).model == name
