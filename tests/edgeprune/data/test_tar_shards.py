import tarfile

import pytest
import torch
from rich.console import Console

from edgeprune.data import image_folder, loading, sources, tar_shards
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import add_file, write_folder, write_shards

PREPARE = Preprocessing(32)
QUIET = Progress(Console(quiet=True))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path):
    return write_shards(write_folder(tmp_path / "images", train=4, held_out=2), tmp_path / "shards")


def test_shards_hold_what_the_folder_holds(tmp_path, shards, monkeypatch):
    held = image_folder.load(tmp_path / "images", PREPARE, QUIET)
    data = tar_shards.load(shards, PREPARE, QUIET)
    assert data.classes == held.classes
    order = torch.cat([torch.arange(0, 12, 2), torch.arange(1, 12, 2)])
    assert torch.equal(data.train.images, held.train.images[order])
    assert torch.equal(data.train.labels, held.train.labels[order])
    assert torch.equal(data.held_out.images, held.held_out.images)
    assert sources.source(shards, LabelKind.CLASS) is tar_shards
    assert len(tar_shards.held_out(shards, PREPARE, 3)) == 3
    monkeypatch.setattr(loading, "IN_MEMORY_FRACTION", 1e-9)
    streamed = tar_shards.load(shards, PREPARE, QUIET)
    (images, _), = streamed.train.batches([torch.tensor([3, 11])])  # fmt: skip
    assert torch.equal(images, data.train.images[[3, 11]])


def test_where_images_lie_is_kept_until_a_shard_changes(shards, monkeypatch):
    before = tar_shards.load(shards, PREPARE, QUIET)
    opened = []
    open_tar = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *given: opened.append(given) or open_tar(*given))
    assert tar_shards.load(shards, PREPARE, QUIET).sha256 == before.sha256
    assert opened == []
    with open_tar(shards / "train-0001.tar", "a") as archive:
        add_file(archive, "more.jpg", b"not an image")
        add_file(archive, "more.cls", b"1")
    with pytest.raises(UserError, match=r"train-0001\.tar, more: not an image that can be read"):
        tar_shards.load(shards, PREPARE, QUIET)
    assert [given[0].name for given in opened] == ["train-0001.tar"]


def cut_short(folder):
    shard = folder / "train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:900])


def replaced(folder):
    (folder / "val-0000.tar").write_bytes(b"<html>not found</html>" * 100)


def without_label(folder):
    with tarfile.open(folder / "val-0000.tar", "a") as archive:
        add_file(archive, "alone.jpg", b"x")


def with_an_odd_label(folder):
    with tarfile.open(folder / "val-0000.tar", "a") as archive:
        add_file(archive, "odd.json", b'{"class": 3}')


def without_held_out(folder):
    (folder / "val-0000.tar").unlink()


BROKEN = {
    cut_short: "train-0001.tar: not a tar file that can be read (unexpected end of data)",
    replaced: "val-0000.tar: not a tar file that can be read",
    without_label: "val-0000.tar, alone: no .cls or .json beside it",
    with_an_odd_label: 'val-0000.tar, odd.json: expected an object with "label"',
    without_held_out: "expected train-*.tar, and val-*.tar or test-*.tar; found train-0000.tar",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__)
def test_broken_shards_are_refused_with_what_is_wrong(shards, break_it):
    break_it(shards)
    with pytest.raises(UserError) as caught:
        tar_shards.load(shards, PREPARE, QUIET)
    assert BROKEN[break_it] in str(caught.value)
