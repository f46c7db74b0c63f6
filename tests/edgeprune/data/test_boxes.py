"""Boxes read from three formats: the same tensors, and everything that is wrong in one message."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.sources import SOURCES, source
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.boxes import CLASSES, SIZE, picture, voc_xml, write_coco, write_voc, write_yolo

WRITERS = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
WHOLE = Preprocessing(32, whole_image=True)


def load(folder, prepare=WHOLE):
    return source(folder, LabelKind.BOXES).load(folder, prepare, Progress(Console(quiet=True)))


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_is_known_by_its_layout(name, tmp_path):
    assert source(WRITERS[name](tmp_path / name), LabelKind.BOXES) is SOURCES[name]


def test_the_same_boxes_in_three_formats_are_the_same_tensors(tmp_path):
    coco, voc, yolo = (load(write(tmp_path / name)) for name, write in WRITERS.items())
    assert coco.classes == voc.classes == yolo.classes == CLASSES
    for other in (voc, yolo):
        for ours, theirs in ((coco.train, other.train), (coco.held_out, other.held_out)):
            assert torch.equal(ours.images, theirs.images)
            for one, two in zip(ours.labels, theirs.labels, strict=True):
                assert torch.allclose(one.corners, two.corners, atol=1e-4)
                assert torch.equal(one.classes, two.classes)
    assert coco.sha256 == voc.sha256
    # 64 x 48 squeezed to 32 x 32.
    first = coco.train.labels[0]
    assert first.corners.tolist() == [[2, 4, 10, 20], pytest.approx([15, 20 / 3, 30.25, 80 / 3])]
    assert first.classes.tolist() == [0, 1]
    assert len(coco.train.labels[1]) == 0


def test_boxes_are_cropped_with_their_pixels(tmp_path):
    cropped = load(write_coco(tmp_path), Preprocessing(32)).train.labels
    # The middle 48 x 48 of 64 x 48: 8 pixels go on the left; what has its centre there is not seen.
    assert cropped[0].corners.tolist() == [
        pytest.approx([0, 4, 8, 20], abs=1e-4),
        pytest.approx([22 / 1.5, 20 / 3, 32, 80 / 3], abs=1e-4),
    ]
    assert cropped[2].corners.tolist() == [[0, 0, 32, 32]]


def test_a_few_held_out_images(tmp_path):
    split = SOURCES["voc"].held_out(write_voc(tmp_path), WHOLE, 1)
    assert len(split) == 1
    assert split.labels[0].classes.tolist() == [1]


BAD_BOXES = {
    "outside": ([60, 10, 20, 10], "box 60, 10, 80, 20: it is outside the image of 64x48 pixels"),
    "empty": ([10, 10, 0, 10], "box 10, 10, 10, 20: it is empty"),
    "not a number": ([float("nan"), 10, 5, 5], "not all numbers are finite"),
    "turned round": ([20, 10, -10, 10], "box 20, 10, 10, 20: its right is left of its left"),
    "three numbers": ([1, 2, 3], "bbox [1, 2, 3]: expected four numbers"),
}


def test_all_that_is_wrong_with_coco_is_in_one_message(tmp_path):
    folder = write_coco(tmp_path)
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    one = content["annotations"][0]
    content["annotations"] += [
        {**one, "id": 100 + place, "bbox": box} for place, (box, _) in enumerate(BAD_BOXES.values())
    ]
    content["annotations"] += [{**one, "id": 200, "category_id": 9}, {**one, "id": 201, "image_id": 77}]
    content["images"] += [{"id": 9, "file_name": "gone.png", "width": 64, "height": 48}]
    content["images"][1]["width"] = 640
    file.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load(folder)
    for place, (_, told) in enumerate(BAD_BOXES.values()):
        assert any(f"annotation {100 + place}: " in line and told in line for line in error.value.problems)
    text = str(error.value)
    assert "annotation 200: there is no category 9" in text
    assert "annotation 201: there is no image 77" in text
    assert "there is no image" in text
    assert "gone.png" in text
    assert "image 2: 640x48 pixels, the image" in text


def test_all_that_is_wrong_with_voc_is_in_one_message(tmp_path):
    folder = write_voc(tmp_path)
    (folder / "Annotations" / "a.xml").write_text(
        voc_xml([(60, 10, 80, 20, 0), (10, 10, 10, 20, 1), (20, 10, 10, 20, 2)], (*CLASSES, "newt"))
    )
    (folder / "Annotations" / "b.xml").write_text("<annotation><object>")
    (folder / "Annotations" / "stray.xml").write_text(voc_xml([]))
    (folder / "JPEGImages" / "c.png").unlink()
    with pytest.raises(UserError) as error:
        load(folder)
    text = str(error.value)
    for told in (
        "a.xml: object 1: box 60, 10, 80, 20: it is outside",
        "a.xml: object 2: box 10, 10, 10, 20: it is empty",
        "a.xml: object 3: there is no class 'newt': choose from cell, platelet",
        "b.xml: cannot be read as XML",
        "stray.xml: there is no image of this name",
        "c.xml: there is no image",
    ):
        assert told in text


def test_all_that_is_wrong_with_yolo_is_in_one_message(tmp_path):
    folder = write_yolo(tmp_path)
    (folder / "labels" / "train" / "a.txt").write_text(
        "0 0.9 0.5 0.5 0.5\n7 0.5 0.5 0.1 0.1\n0 0.5 nan 0.1 0.1\n0 0.5\n0 0.5 0.5 0 0.1\n"
    )
    (folder / "labels" / "val" / "stray.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError) as error:
        load(folder)
    text = str(error.value)
    for told in (
        "line 1: box 41.6, 12, 73.6, 36: it is outside the image of 64x48",
        "line 2: class 7: there are 2, counted from 0",
        "line 3: box",
        "line 4: '0 0.5': expected a class and four numbers",
        "line 5: box 32, 21.6, 32, 26.4: it is empty",
        "stray.txt: there is no image of this name",
    ):
        assert told in text


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "has the layout of none of coco, voc, yolo"),
        (lambda folder: (folder / "Annotations").mkdir(), "no ImageSets/Main/train.txt"),
        (lambda folder: (folder / "labels").mkdir(), "no images/train and no images/val"),
        (lambda folder: picture(folder / "train" / "labels" / "a.png"), "no images/train and no images/val"),
    ],
)
def test_a_folder_that_is_not_whole_is_told_so(make, told, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=told):
        load(tmp_path)


def test_a_set_without_any_box_teaches_nothing(tmp_path):
    folder = write_yolo(tmp_path)
    for file in (folder / "labels" / "train").iterdir():
        file.write_text("")
    with pytest.raises(UserError, match="no training image has a box"):
        load(folder)


def test_the_whole_image_is_seen_when_it_is_squeezed():
    assert WHOLE.window(SIZE) == (0, 0, 64, 48)
    assert Preprocessing(32).window(SIZE) == (8, 0, 48, 48)
    # To 128 x 96, of which the middle 96 x 96.
    assert Preprocessing(96, resize_px=96).window(SIZE) == (8, 0, 48, 48)
    assert Preprocessing(64, resize_px=96).window(SIZE) == (16, 8, 32, 32)
    assert WHOLE.to_metadata()["preprocessing"].startswith('{"whole_image":true,')
