import shutil
from types import SimpleNamespace

import pytest

from converters.errors import ToolError, UserError
from converters.files import TEMPORARY, replacing, told_when_full, write_text


def write_half(temporary):
    temporary.write_text("hal")


def write_half_a_folder(temporary):
    temporary.mkdir()
    (temporary / "one").write_text("hal")


@pytest.mark.parametrize("write", [write_half, write_half_a_folder])
def test_what_fails_half_way_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "model"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012 - it is what fails half way
        write(temporary)
        raise RuntimeError
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    path = tmp_path / "model"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_temporary_name_is_known_for_one(tmp_path):
    with replacing(tmp_path / "model") as temporary:
        temporary.write_text("x")
        assert list(tmp_path.glob(TEMPORARY)) == [temporary]


def test_a_refusal_names_the_file_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*; choose another folder"):
        write_text(tmp_path / "file" / "model", "text")


def test_a_tool_that_fails_on_a_full_disk_is_told_apart(tmp_path, monkeypatch):
    """The full disk itself is `benchmarks/robustness_disk.py`'s, which mounts one."""

    def fail(free_bytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
        with told_when_full(tmp_path):
            raise ToolError("could not convert: unknown error")

    with pytest.raises(
        UserError, match=r"unknown error; the disk of .* has 65,536 bytes left: free some spac"
    ):
        fail(65_536)
    with pytest.raises(ToolError, match=r"^could not convert: unknown error$"):
        fail(1 << 30)
