"""`edgeprune recipes`, and a recipe run by its name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli import main

ROOT = Path(__file__).parents[3]


def test_every_script_is_listed_with_what_it_is(capsys: Any) -> None:
    assert main(["recipes", "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert [recipe["name"] for recipe in listed] == sorted(path.stem for path in ROOT.glob("recipes/*.py"))
    for recipe in listed:
        assert recipe["summary"].endswith(("files.", "models."))
        assert Path(recipe["path"]).is_file()


def test_a_copy_is_the_script_and_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "new" / "mine"
    assert main(["recipes", "copy", "vit_tiny", str(folder)]) == 0
    copied = folder / "vit_tiny.py"
    assert copied.read_bytes() == (ROOT / "recipes" / "vit_tiny.py").read_bytes()
    assert f"python {copied} --help" in capsys.readouterr().out
    copied.write_text("# changed\n")
    assert main(["recipes", "copy", "vit_tiny", str(folder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert copied.read_text() == "# changed\n"
    with pytest.raises(SystemExit) as stopped:
        main(["recipes", "copy", "vit_huge"])
    assert stopped.value.code == 2
    assert "mobilenet_v3_small" in capsys.readouterr().err


def test_run_takes_a_name_and_says_which_there_are(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "mobilenet_v3_smal"]) == 2
    told = capsys.readouterr().err
    assert "unknown recipe 'mobilenet_v3_smal': choose from efficientnet_lite0, " in told
    assert "edgeprune run runs/mine/recipe.toml" in told
    assert main(["run", "some/mine.py"]) == 2
    assert "python some/mine.py" in capsys.readouterr().err
    # Refused for its data, so the fields behind the name were read and the script's own recipe was found.
    assert main(["run", "mobilenet_v3_small", "--data", "nowhere", "--output", "x"]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not Path("x").exists()


@pytest.mark.slow
def test_a_name_and_its_script_are_the_same_recipe() -> None:
    """Of every field: what either shows as help, with the recipe's own values in it."""
    script = [sys.executable, "recipes/mobilenet_v3_small.py", "--help"]
    name = [sys.executable, "-m", "edgeprune", "run", "mobilenet_v3_small", "--help"]
    told = [
        subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n", 1)
        for words in (script, name)
    ]
    assert told[0][1].split("options", 1)[1] == told[1][1].split("options", 1)[1]
    assert "--variants.block80.sparsity" in told[0][1]
