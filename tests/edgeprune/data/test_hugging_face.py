from pathlib import Path

import pytest
import torch
from rich.console import Console

from edgeprune.data import hugging_face, image_folder, sources
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import write_folder

datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
PREPARE = Preprocessing(32)
QUIET = Progress(Console(quiet=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The images of a folder in a parquet file for each split, their labels with names."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    root, parquet = write_folder(tmp_path / "images", train=4, held_out=2), tmp_path / "parquet"
    classes = ["blue", "green", "red"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    parquet.mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((root / split).rglob("*.jpg"))
        table = {
            "image": [str(file) for file in files],
            "label": [classes.index(file.parent.name) for file in files],
        }
        datasets.Dataset.from_dict(table, features=features).to_parquet(parquet / f"{name}-00000.parquet")
    return parquet


def test_parquet_files_hold_what_the_folder_holds(tmp_path, folder):
    held = image_folder.load(tmp_path / "images", PREPARE, QUIET)
    data = hugging_face.load(folder, PREPARE, QUIET)
    assert data.classes == held.classes
    assert torch.equal(data.train.images, held.train.images)
    assert torch.equal(data.held_out.labels, held.held_out.labels)
    assert sources.source(folder, LabelKind.CLASS) is hugging_face
    assert len(hugging_face.held_out(folder, PREPARE, 3)) == 3


def test_a_set_without_images_is_refused(tmp_path, folder):
    for split in ("train", "validation"):
        table = datasets.Dataset.from_dict({"text": ["a", "b"], "class": [0, 1]})
        table.to_parquet(folder / f"{split}-00000.parquet")
    with pytest.raises(UserError) as caught:
        hugging_face.load(folder, PREPARE, QUIET)
    assert "no column of images; there is text, class" in caught.value.problems[0]
    assert "no column label or labels" in caught.value.problems[1]


def test_what_cannot_be_had_is_one_message(folder, monkeypatch):
    (folder / "validation-00000.parquet").unlink()
    with pytest.raises(UserError, match="there is train"):
        hugging_face.load(folder, PREPARE, QUIET)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"hf:edgeprune/nowhere: cannot be loaded .*; without a network, give"
    ):
        hugging_face.load(Path("hf:edgeprune/nowhere"), PREPARE, QUIET)
