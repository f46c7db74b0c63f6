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
    (root / "val").rename(root / "validation")
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


BROKEN = {
    broken_missing: "no such folder; expected train/ and val/ (or test/)",
    broken_empty: "no train/ and no val/ or test/; found nothing, it is empty",
    broken_file: "not a folder",
    broken_one_class: "one class, 'blue'; a classifier needs two or more",
    broken_truncated: "val/red/003.jpg: not an image that can be read (",
    broken_text: "train/red/notes.txt: not an image that can be read (unknown format)",
    broken_no_held_out: "no val/ or test/; found train, validation",
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
