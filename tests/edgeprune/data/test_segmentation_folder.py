"""A folder of images and masks: read as it is, and every fault of it told at once."""

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from rich.console import Console

from edgeprune.data import memory
from edgeprune.data import segmentation_folder as masks
from edgeprune.data.labels import IGNORED
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import COLOURS, write_masks


def load(path, size_px=32):
    return masks.load(path, Preprocessing(size_px), Progress(Console(quiet=True)))


def save_mask(root, name, indices, split="train"):
    Image.fromarray(np.asarray(indices, np.uint8)).save(root / split / "masks" / f"{name}.png")


def test_a_folder_is_read_with_its_maps(tmp_path):
    folder = load(write_masks(tmp_path))
    assert folder.classes == ("grey", *COLOURS)
    assert (len(folder.train), len(folder.held_out)) == (24, 8)
    assert folder.train.labels.shape == (24, 32, 32)
    for image, classes in zip(folder.train.images.float(), folder.train.labels, strict=True):
        shown = [COLOURS[folder.classes[label]] for label in classes.unique().tolist() if label]
        for colour in shown:
            inside = image[:, classes > 0].mean(1)
            assert torch.allclose(inside, torch.tensor(colour).float(), atol=25)


def test_masks_are_cut_out_as_their_images_are(tmp_path):
    """The mask of an image that shows its own mask still says what each pixel shows."""
    write_masks(tmp_path, train=6, held_out=2)
    for split in ("train", "val"):
        for file in sorted((tmp_path / split / "masks").iterdir()):
            shown = Image.fromarray(np.asarray(Image.open(file)) * 60).resize(
                (90, 61), Image.Resampling.NEAREST
            )
            Image.fromarray(np.asarray(shown) // 60).save(file)
            (tmp_path / split / "images" / f"{file.stem}.jpg").unlink()
            shown.save(tmp_path / split / "images" / f"{file.stem}.png")
    found = load(tmp_path).train
    # Edges are blended in the image, not in the mask: there, and nowhere else, they may differ.
    assert float(((found.images[:, 0] / 60).round() == found.labels).double().mean()) > 0.93


def test_palettes_numbers_for_names_and_pixels_that_do_not_count(tmp_path):
    write_masks(tmp_path, names=False)
    indices = np.asarray(Image.open(tmp_path / "train" / "masks" / "000.png")).copy()
    indices[:20] = 255
    mask = Image.fromarray(indices, "P")
    mask.putpalette(list(range(256)) * 3)
    mask.save(tmp_path / "train" / "masks" / "000.png")
    folder = load(tmp_path)
    assert folder.classes == ("0", "1", "2", "3")
    assert (folder.train.labels[0, :15] == IGNORED).all()
    assert not (folder.train.labels[0, 17:] == IGNORED).any()


def in_two_colours(root, other, mode="L", names=None):
    """Masks with the first two classes alone, the second drawn as `other`."""
    write_masks(root, names=False)
    for file in [*root.glob("*/masks/*.png")]:
        drawn = np.where(np.asarray(Image.open(file)) > 0, other, 0).astype(np.uint8)
        Image.fromarray(drawn).convert(mode).save(file)
    if names:
        (root / "classes.txt").write_text("\n".join(names))
    return root


@pytest.mark.parametrize("mode", ["L", "1"])
@pytest.mark.parametrize("names", [None, ("wall", "cat")])
def test_masks_in_black_and_white_have_two_classes(tmp_path, mode, names):
    folder = load(in_two_colours(tmp_path, 255, mode, names))
    assert folder.classes == (names or ("background", "foreground"))
    for split in (folder.train, folder.held_out, masks.held_out(tmp_path, Preprocessing(32), 3)):
        assert split.labels.unique().tolist() == [0, 1]
    # The background is grey: there all colours are the same, but for noise.
    spread = folder.train.images.float().std(1)
    assert spread[folder.train.labels == 1].mean() > 2 * spread[folder.train.labels == 0].mean()


def test_white_does_not_count_where_masks_have_other_values_too(tmp_path):
    write_masks(in_two_colours(tmp_path / "a", 255).parent / "b")
    ordinary = tmp_path / "b"
    indices = np.asarray(Image.open(ordinary / "train" / "masks" / "000.png"))
    save_mask(ordinary, "000", np.where(indices > 0, 255, 0))
    assert load(ordinary).train.labels[0].unique().tolist() == [IGNORED, 0]


def test_classes_that_no_training_pixel_has_are_refused(tmp_path):
    with pytest.raises(UserError, match="127 of 129 classes have no pixel in the training masks: 1, 2, 3, 4"):
        load(in_two_colours(tmp_path / "grey", 128))
    with pytest.raises(UserError, match="1 of 3 classes have no pixel in the training masks: dog"):
        load(in_two_colours(tmp_path / "named", 1, names=("wall", "cat", "dog")))
    with pytest.raises(UserError, match="1 of 2 classes have no pixel in the training masks: 1"):
        load(in_two_colours(tmp_path / "one", 0))


def test_images_turned_by_their_camera_fit_masks_that_are_upright(tmp_path):
    write_masks(tmp_path)
    image = tmp_path / "train" / "images" / "000.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.open(image).transpose(Image.Transpose.ROTATE_90).save(image, exif=exif)
    assert len(load(tmp_path).train) == 24


def test_a_few_held_out_images_are_read_alone(tmp_path):
    write_masks(tmp_path)
    for image in (tmp_path / "train" / "images").iterdir():
        image.write_bytes(b"nobody looks at it")
    found = masks.held_out(tmp_path, Preprocessing(32), 3)
    assert found.labels.shape == (3, 32, 32)


def broken_no_masks(root):
    (root / "val" / "masks").rename(root / "val" / "labels")


def broken_missing_mask(root):
    (root / "train" / "masks" / "003.png").unlink()


def broken_missing_image(root):
    (root / "train" / "images" / "003.jpg").unlink()


def broken_size(root):
    save_mask(root, "003", np.zeros((40, 40)))


def broken_index(root):
    save_mask(root, "003", np.full((40, 47), 9))


def broken_colours(root):
    save_mask(root, "003", np.zeros((40, 47, 3)))


def broken_mask(root):
    (root / "val" / "masks" / "003.png").write_bytes(b"x")


def broken_image(root):
    (root / "val" / "images" / "003.jpg").write_bytes(b"x")


def broken_nothing_counts(root):
    save_mask(root, "003", np.full((40, 47), 255))


def broken_two_of_a_name(root):
    Image.new("RGB", (47, 40)).save(root / "train" / "images" / "003.png")


def broken_other_file(root):
    (root / "train" / "images" / "notes.txt").write_text("x")


def broken_classes(root):
    (root / "classes.txt").write_text("grey\ngrey\n")


BROKEN = {
    broken_no_masks: "val/masks: no such folder",
    broken_missing_mask: "train/images/003.jpg: no mask",
    broken_missing_image: "train/masks/003.png: no image of this name",
    broken_size: "train/masks/003.png: 40x40 pixels, its image has 47x40",
    broken_index: "train/masks/003.png: indices 9 of classes, of which there are 4 (0 to 3)",
    broken_colours: "train/masks/003.png: its mode is RGB: expected grey or palette",
    broken_mask: "val/masks/003.png: not an image that can be read (unknown format)",
    broken_image: "val/images/003.jpg: not an image that can be read (unknown format)",
    broken_nothing_counts: "train/masks/003.png: no pixel counts, all are 255",
    broken_two_of_a_name: "two images of this name",
    broken_other_file: "train/images/notes.txt: not a .jpg or .png",
    broken_classes: "classes.txt: 2 names: expected 2 to 255 different ones",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_folder_is_refused_with_what_is_wrong(tmp_path, break_it):
    break_it(write_masks(tmp_path))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert BROKEN[break_it] in str(caught.value)
    assert len(caught.value.problems) == 1


def test_all_faults_come_in_one_message(tmp_path):
    write_masks(tmp_path)
    for break_it in (broken_missing_mask, broken_mask, broken_image, broken_other_file):
        break_it(tmp_path)
    save_mask(tmp_path, "005", np.full((40, 47), 77))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == 5


def test_maps_that_would_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    write_masks(tmp_path)
    # Enough for the images and masks, not for the maps of all held-out images.
    monkeypatch.setattr(memory, "DECODED_LIMIT_FRACTION", 400_000 / psutil.virtual_memory().total)
    with pytest.raises(UserError, match="maps of 4 classes for 8 held-out images at 32 px"):
        load(tmp_path)
