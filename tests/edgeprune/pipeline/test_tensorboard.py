"""The logs of a training, read back from TensorBoard's own event files."""

import importlib.util
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from edgeprune.errors import UserError
from edgeprune.pipeline.tensorboard import log, refuse_without_package


def events(folder):
    """Every event below a folder: each stands between its length with a checksum, and its own checksum."""
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def test_each_epoch_is_logged_and_what_comes_again_is_dropped(tmp_path):
    with log(tmp_path / "dense", 0) as write:
        write({"epoch": 1.0, "loss": 0.5, "top1": 0.75})
        write({"epoch": 2.0, "loss": 0.25, "top1": 0.875})
    with log(tmp_path / "dense", 1) as write:
        write({"epoch": 2.0, "loss": 0.25, "top1": 0.875})
    found = list(events(tmp_path / "dense"))
    told = {(event.step, value.tag): value.simple_value for event in found for value in event.summary.value}
    assert told == {(1, "loss"): 0.5, (1, "top1"): 0.75, (2, "loss"): 0.25, (2, "top1"): 0.875}
    assert 2 in [event.step for event in found if event.HasField("session_log")]


def test_nothing_is_logged_unless_asked(tmp_path):
    with log(None, 0) as write:
        write({"epoch": 1.0, "loss": 0.5})
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'edgeprune\[tensorboard\]'"):
        refuse_without_package()
