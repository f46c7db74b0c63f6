"""Images decoded as needed: the same pixels as in memory, faults told, the memory of labels alone."""

import dataclasses
import os

import pytest
import torch
from PIL import Image
from rich.console import Console

from edgeprune.data import image_folder, loading
from edgeprune.data.checked import keep_checked, was_checked
from edgeprune.data.dataset import Subset
from edgeprune.data.loading import Names
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.data.streamed import Streamed
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import write_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(loading, "IN_MEMORY_FRACTION", 1e-9)


def load(path, prepare=None):
    return image_folder.load(path, prepare or Preprocessing(32), Progress(Console(quiet=True)))


def test_images_decoded_as_needed_are_those_in_memory(tmp_path, monkeypatch):
    held = load(write_folder(tmp_path / "images"))
    monkeypatch.setattr(loading, "IN_MEMORY_FRACTION", 1e-9)
    streamed = load(tmp_path / "images")
    assert isinstance(streamed.train, Streamed)
    parts = torch.split(torch.randperm(len(held.train)), 20)
    for (images, labels), (others, names) in zip(
        held.train.batches(parts), streamed.train.batches(parts), strict=True
    ):
        assert torch.equal(images, others)
        assert torch.equal(labels, names)
    own = Subset(streamed.train, torch.tensor([5, 30]))
    (images, labels), = own.batches([torch.tensor([1])])  # fmt: skip
    assert torch.equal(images[0], held.train.images[30])
    assert torch.equal(streamed.held_out.batch(torch.tensor([3]))[0][0], held.held_out.images[3])


def test_reading_ahead_leaves_what_else_is_drawn_alone(tmp_path, little_memory):
    data = load(write_folder(tmp_path / "images"))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    assert len(list(data.train.batches(torch.arange(60).split(20)))) == 3
    assert torch.equal(torch.rand(3), expected)


def test_the_same_names_and_bytes_are_the_same_data_wherever_they_are(tmp_path, little_memory):
    one, other = (load(write_folder(tmp_path / name)) for name in ("one", "other"))
    assert one.sha256 == other.sha256
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "train" / "red" / "000.jpg")
    assert load(tmp_path / "other").sha256 != one.sha256


def spoil(root, count):
    for index in range(count):
        file = root / "train" / "red" / f"{index:03}.jpg"
        file.write_bytes(file.read_bytes()[:300])


def test_a_truncated_image_is_skipped_and_named_and_more_than_one_per_cent_are_fatal(tmp_path, little_memory):
    root = write_folder(tmp_path / "images", train=70)
    spoil(root, 2)
    data = load(root)
    parts = torch.arange(210).split(70)
    seen = [len(labels) for _, labels in data.train.batches(parts)]
    assert seen == [70, 70, 68]
    assert [fault.split(": ")[0][-16:] for fault in data.train.faults.values()] == [
        "rain/red/000.jpg",
        "rain/red/001.jpg",
    ]
    spoil(root, 3)
    with pytest.raises(UserError, match="more than 1% of the training images cannot be read") as caught:
        list(load(root).train.batches(parts))
    assert "train/red/002.jpg" in str(caught.value)


def test_a_held_out_image_is_never_skipped(tmp_path, little_memory):
    root = write_folder(tmp_path / "images")
    (root / "val" / "red" / "003.jpg").write_bytes(b"broken")
    with pytest.raises(
        UserError, match=r"val/red/003\.jpg: not an image that can be read \(unknown format\)"
    ):
        list(load(root).held_out.batches([torch.arange(24)]))


def test_checking_names_every_fault_and_what_was_checked_is_known_until_a_file_changes(
    tmp_path, little_memory
):
    root = write_folder(tmp_path / "images")
    train = load(root).train
    assert list(train.check()) == [64, 72]
    assert not was_checked(train.version)
    keep_checked(train.version)
    assert was_checked(load(root).train.version)
    file = root / "train" / "red" / "001.jpg"
    facts = file.stat()
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert not was_checked(load(root).train.version)
    spoil(root, 3)
    with pytest.raises(UserError) as caught:
        list(load(root).train.check())
    assert len(caught.value.problems) == 3


def test_what_is_decided_is_said(tmp_path, capsys, little_memory):
    image_folder.load(write_folder(tmp_path / "images"), Preprocessing(32), Progress(Console()))
    assert "96 images at 32 px are 0.00029 GB decoded" in capsys.readouterr().out


def test_names_are_packed():
    names = Names.of(["a/ä.jpg", "", "b"])
    assert [names[index] for index in range(len(names))] == ["a/ä.jpg", "", "b"]


def test_a_change_is_done_to_each_image_by_its_index(tmp_path, monkeypatch):
    held = load(write_folder(tmp_path / "images"))
    monkeypatch.setattr(loading, "IN_MEMORY_FRACTION", 1e-9)
    streamed = load(tmp_path / "images")
    for data in (held, streamed):
        (images, _), = data.train.batches([torch.tensor([7, 50])], brighter)  # fmt: skip
        assert torch.equal(
            images, (held.train.images[[7, 50]] // 4 + torch.tensor([7, 50])[:, None, None, None])
        )


def brighter(index, image):
    return (image // 4 + index).to(torch.uint8)


def test_data_says_what_it_is(tmp_path, little_memory):
    data = load(write_folder(tmp_path / "images"))
    assert [name for name, _ in loading.readable_splits(data)] == ["training", "held-out"]
    assert loading.readable_splits(dataclasses.replace(data, train=Subset(data.train, torch.arange(3))))


def test_what_a_cache_does_not_take_is_checked_again(tmp_path):
    """It has no room, say: here something is in the way of the file."""
    (tmp_path / "cache" / "edgeprune" / "checked" / ".v.new.tmp" / "in the way").mkdir(parents=True)
    keep_checked("v")
    assert not was_checked("v")
