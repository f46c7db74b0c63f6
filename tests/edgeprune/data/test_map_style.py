import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from edgeprune.cli import run_recipe
from edgeprune.data import image_folder, map_style
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from edgeprune.recipe import Recipe
from tests.support.images import write_folder

PREPARE = Preprocessing(32)
QUIET = Progress(Console(quiet=True))


class Pairs:
    """The plainest of datasets."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_torchvision_datasets_give_what_the_folder_gives(tmp_path):
    from torchvision.datasets import ImageFolder

    root = write_folder(tmp_path, train=4, held_out=2)
    held = image_folder.load(root, PREPARE, QUIET)
    data = map_style.load((ImageFolder(root / "train"), ImageFolder(root / "val")), PREPARE, QUIET)
    assert data.classes == ("blue", "green", "red")
    assert torch.equal(data.train.images, held.train.images)
    assert torch.equal(data.held_out.labels, held.held_out.labels)


def test_arrays_tensors_and_names_are_taken():
    grey = np.full((40, 50), 7, np.uint8)
    colours = np.zeros((40, 50, 3), np.uint8)
    colours[..., 1] = 200
    tensor = torch.from_numpy(colours).permute(2, 0, 1)
    items = [(grey, "b"), (colours, "a"), (tensor, "a"), (Image.fromarray(colours), np.str_("b"))]
    data = map_style.load((Pairs(items), Pairs(items[:2])), PREPARE, QUIET)
    assert data.classes == ("a", "b")
    assert data.train.labels.tolist() == [1, 0, 0, 1]
    assert torch.equal(data.train.images[1], data.train.images[2])
    assert data.train.images[:, :, 9, 9].tolist() == [[7, 7, 7], *[[0, 200, 0]] * 3]


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], "expected a dataset with a length"),
        ([(Image.new("RGB", (9, 9)),)], r"item 0: expected \(image, label\)"),
        ([(torch.rand(3, 9, 9), 0), (torch.rand(3, 9, 9), 1)], "expected uint8, not float32: leave ToTensor"),
    ],
)
def test_other_datasets_are_refused(items, told):
    with pytest.raises(UserError, match=told):
        map_style.load((Pairs(items), Pairs(items)), PREPARE, QUIET)


def test_a_script_gives_its_datasets_to_a_recipe(tmp_path, capsys):
    recipe = Recipe("mobilenet_v3_small", image_size_px=32, output=tmp_path / "run")
    items = Pairs([(Image.new("RGB", (40, 40)), name) for name in "abba"])
    assert run_recipe(recipe, "", [], datasets=(items, Pairs([*items.items, (items.items[0][0], "c")]))) == 2
    assert "classes of held-out images but of no training ones: c" in capsys.readouterr().err
    maps = ["--task", "segmentation", "--model", "lraspp_mobilenet_v3_large"]
    assert run_recipe(recipe, "", maps, datasets=(items, items)) == 2
    assert "datasets from Python have a class for each image" in capsys.readouterr().err
