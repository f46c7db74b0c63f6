import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from edgeprune.data import files, image_folder
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import write_folder


def load(path, size_px=32):
    return image_folder.load(path, Preprocessing(size_px), Progress(Console(quiet=True)))


def test_a_folder_is_read_with_its_labels(tmp_path):
    folder = load(write_folder(tmp_path))
    assert folder.classes == ("blue", "green", "red")
    assert (len(folder.train), len(folder.held_out)) == (72, 24)
    means = [folder.train.images[folder.train.labels == label].float().mean((0, 2, 3)) for label in range(3)]
    assert [int(mean.argmax()) for mean in means] == [2, 1, 0]


def test_test_folder_serves_where_there_is_no_val(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert len(load(tmp_path).held_out) == 24


@pytest.mark.parametrize(("train", "held_out"), [("Train", "valid"), ("training", "Validation")])
def test_folders_by_other_usual_names_are_understood(tmp_path, train, held_out):
    write_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / train)
    (tmp_path / "val").rename(tmp_path / held_out)
    assert len(load(tmp_path).train) == 72


def test_classes_may_keep_their_images_in_a_folder_of_that_name(tmp_path):
    """As Tiny-ImageNet does, with a file of boxes beside it."""
    write_folder(tmp_path)
    for folder in [*(tmp_path / "train").iterdir()]:
        files_of = list(folder.iterdir())
        (folder / "images").mkdir()
        (folder / f"{folder.name}_boxes.txt").write_text("000.jpg 0 0 9 9")
        for file in files_of:
            file.rename(folder / "images" / file.name)
    found = load(tmp_path)
    assert (len(found.train), len(found.held_out)) == (72, 24)
    (tmp_path / "train" / "red" / "extra.jpg").touch()
    with pytest.raises(UserError, match=r"train/red: images both in it and in images/: extra\.jpg"):
        load(tmp_path)


def test_names_as_long_as_a_file_system_takes(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "val"):
        (tmp_path / split / "red").rename(tmp_path / split / ("r" * 255))
        image = tmp_path / split / "blue" / "000.jpg"
        image.rename(image.with_name("b" * 251 + ".jpg"))
    assert load(tmp_path).classes == ("blue", "green", "r" * 255)


def test_grey_and_transparent_images_become_rgb_and_hidden_files_are_passed_over(tmp_path):
    write_folder(tmp_path)
    Image.new("L", (50, 40), 128).save(tmp_path / "train" / "red" / "grey.png")
    Image.new("RGBA", (40, 50), (255, 0, 0, 10)).save(tmp_path / "train" / "red" / "clear.png")
    (tmp_path / "train" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "red" / ".DS_Store").write_text("x")
    assert len(load(tmp_path).train) == 74


def test_photographs_are_turned_upright(tmp_path):
    write_folder(tmp_path)
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was upside down
    Image.fromarray(pixels).save(tmp_path / "train" / "blue" / "000.jpg", exif=exif)
    image = load(tmp_path).train.images[0].float()
    assert image[:, :10].mean() < 10
    assert image[:, -10:].mean() > 245


def broken_missing(root):
    return root / "nowhere"


def broken_empty(root):
    return root


def broken_file(root):
    (root / "file").write_text("x")
    return root / "file"


def broken_one_class(root):
    return write_folder(root, classes=1)


def broken_truncated(root):
    write_folder(root)
    image = root / "val" / "red" / "003.jpg"
    image.write_bytes(image.read_bytes()[:400])
    return root


def broken_text(root):
    write_folder(root)
    (root / "train" / "red" / "notes.txt").write_text("not an image")
    return root


def broken_no_held_out(root):
    write_folder(root)
    (root / "val").rename(root / "checking")
    return root


def broken_classes_differ(root):
    write_folder(root)
    (root / "val" / "red").rename(root / "val" / "rot")
    return root


def broken_class_without_images(root):
    write_folder(root)
    (root / "train" / "yellow").mkdir()
    (root / "val" / "yellow").mkdir()
    return root


def broken_loose_file(root):
    write_folder(root)
    (root / "train" / "labels.csv").write_text("a,b")
    return root


def renamed(root, name):
    write_folder(root)
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / os.fsdecode(name))
    return root


def broken_not_utf8(root):
    return renamed(root, b"caf\xe9")


def broken_line_break(root):
    return renamed(root, b"red\nwine")


def broken_case(root):
    return renamed(root, b"Blue")


def broken_two_trainings(root):
    write_folder(root)
    (root / "Train").mkdir()
    return root


def broken_heic(root):
    write_folder(root)
    (root / "train" / "red" / "IMG_1.HEIC").write_bytes(b"x")
    return root


def broken_link(root):
    write_folder(root)
    loop = root / "train" / "red" / "loop.jpg"
    loop.symlink_to(loop)
    return root


BROKEN = {
    broken_not_utf8: "class folder 'caf\\udce9': its name is not UTF-8",
    broken_line_break: "class folder 'red\\nwine': its name is not UTF-8, or has a line break",
    broken_case: "class folders Blue, blue: they differ in upper and lower case only",
    broken_two_trainings: "Train and train: which of them? Rename one",
    broken_heic: "train/red/IMG_1.HEIC: HEIF images are not read: convert them to JPEG",
    broken_link: "train/red/loop.jpg: Too many levels of symbolic links",
    broken_missing: "no such folder; expected train/ and val/ (or test/)",
    broken_empty: "no train/ and no val/ or test/; found nothing, it is empty",
    broken_file: "not a folder",
    broken_one_class: "one class, 'blue'; a classifier needs two or more",
    broken_truncated: "val/red/003.jpg: not an image that can be read (",
    broken_text: "train/red/notes.txt: not an image that can be read (unknown format)",
    broken_no_held_out: "no val/ or test/; found checking, train",
    broken_classes_differ: "classes in train/ but not in val/: red",
    broken_class_without_images: "train/yellow: no images",
    broken_loose_file: "files beside the class folders: labels.csv",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_folder_is_refused_with_what_is_wrong(tmp_path, break_it):
    with pytest.raises(UserError) as caught:
        load(break_it(tmp_path))
    assert BROKEN[break_it] in str(caught.value)


def test_many_broken_images_are_named_in_one_message(tmp_path):
    write_folder(tmp_path)
    for index in range(13):
        (tmp_path / "train" / "red" / f"{index:03}.jpg").write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert len(caught.value.problems) == files.PROBLEMS_SHOWN + 1
    assert caught.value.problems[-1] == "and 3 more"
