"""Planted faults are caught; damaged files give one message, whatever they do to Apple's parser."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from converters import verify
from converters.errors import ToolError, UserError
from converters.targets import TARGETS
from edgeprune.data.dataset import InMemory
from edgeprune.evaluation import exported_file
from edgeprune.progress import Progress
from edgeprune.tasks import TASKS
from tests.support.packages import LABELS, NORMALIZATION, pixels

pytestmark = [pytest.mark.coreai, pytest.mark.xdist_group("coreai")]
NORMAL = NORMALIZATION


def relabel(told: dict, labels: list[str]) -> None:
    """Other class names in what edgeprune says, which is JSON in a text."""
    custom = told["creatorDefinedMetadata"]
    custom["edgeprune"] = json.dumps(json.loads(custom["edgeprune"]) | {"labels": labels})


def copied(path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(path, tmp_path / path.name)


def rewritten(path: Path, content: bytes) -> Path:
    """The program replaced, its digest made to fit: as one who means harm would do."""
    (path / "main.mlirb").write_bytes(content)
    (path / "main.hash").write_bytes(hashlib.sha256(content).digest())
    return path


@pytest.fixture
def checked_write(monkeypatch, tiny, tmp_path):
    """Write a file after the arrays to be stored were changed behind the converter's back."""
    from converters import coreai
    from converters.coreai import encoding

    def write(target: str, role: str, change) -> None:
        honest = encoding.write

        def planted(planned):
            if role in planned.stored and planned.stored[role].size > 8:
                changed = np.array(planned.stored[role])
                change(changed)
                stored = {**planned.stored, role: changed}
                planned = encoding.Planned(planned.encoding, stored, planned.value)
            return honest(planned)

        monkeypatch.setattr(encoding, "write", planted)
        coreai.convert(tiny, torch.zeros(1, 3, 32, 32), tmp_path / "x.aimodel", target=target)

    return write


def one_more(array: np.ndarray) -> None:
    array.reshape(-1)[7] += 1


def larger(array: np.ndarray) -> None:
    array *= array.dtype.type(1.01)


def swapped(array: np.ndarray) -> None:
    """Two bits of a mask that differ: the number of values stays right."""
    flat = array.reshape(-1)
    first = int(np.flatnonzero(flat != flat[0])[0])
    flat[0], flat[first] = flat[first], flat[0]


@pytest.mark.parametrize(
    ("target", "role", "change"),
    [
        ("coreai-ios27", "values", one_more),
        ("coreai-ios27", "mask", swapped),
        ("coreai-ios27-int8", "numbers", one_more),
        ("coreai-ios27-int8", "scales", larger),
        ("coreai-ios27-4bit", "indices", swapped),
    ],
)
def test_a_wrong_number_is_caught_before_anything_is_written(target, role, change, checked_write, tmp_path):
    with pytest.raises(ToolError, match="not stored as it was meant"):
        checked_write(target, role, change)
    assert not (tmp_path / "x.aimodel").exists()


def test_another_channel_order_normalisation_or_weight_is_caught_by_verify(files, tiny):
    path, images = files["coreai-ios27"].path, pixels(4, 32)

    def agrees(model: nn.Module, normalization=NORMAL, fed=images) -> bool:
        return verify.verify(path, fed, model, normalization=normalization).agrees

    assert agrees(tiny)
    swapped_channels = type(NORMAL)(NORMAL.mean[::-1], NORMAL.std[::-1])
    assert not agrees(tiny, swapped_channels)

    class OtherOrder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x.flip(1))

    assert not agrees(OtherOrder().eval())


def test_labels_in_another_order_are_told(files, tmp_path):
    from converters import coreai

    path = copied(files["coreai-ios27"].path, tmp_path)
    told = json.loads((path / "metadata.json").read_text())
    relabel(told, list(reversed(LABELS)))
    (path / "metadata.json").write_text(json.dumps(told))
    assert coreai.load(path).input.labels == tuple(reversed(LABELS))


def test_labels_in_another_order_are_seen_by_the_measured_accuracy(files, tiny, tmp_path):
    """What a report's row says: classes count by the names that the file gives them."""
    images = torch.from_numpy(pixels(40, 32)).to(torch.uint8)
    with torch.no_grad():
        outputs = tiny(torch.from_numpy(verify.normalized(images.numpy(), NORMAL)))

    def row(path: Path):
        return exported_file.measure(
            dataclasses.replace(files["coreai-ios27"], path=path),
            TARGETS["coreai-ios27"],
            variant="dense",
            folder=path.parent,
            task=TASKS["classification"],
            held_out=InMemory(images, outputs.argmax(1)),
            classes=LABELS,
            normalization=NORMAL,
            torch_outputs=outputs,
            dense_outputs=outputs,
            dense_score=1.0,
            progress=Progress(Console(quiet=True)),
        )

    assert row(copied(files["coreai-ios27"].path, tmp_path)).score == 1
    path = copied(files["coreai-ios27"].path, tmp_path / "swapped")
    told = json.loads((path / "metadata.json").read_text())
    relabel(told, [*LABELS[1:], LABELS[0]])
    (path / "metadata.json").write_text(json.dumps(told))
    swapped = row(path)
    assert swapped.score < 0.2
    assert swapped.agreement < 0.2
    relabel(told, [*LABELS[1:], "yak"])
    (path / "metadata.json").write_text(json.dumps(told))
    with pytest.raises(ToolError, match="the file names its classes"):
        row(path)


@pytest.mark.parametrize("damage", ["cut", "bit", "no hash", "no metadata", "text metadata", "list metadata"])
def test_a_damaged_folder_is_one_message(damage, files, tmp_path):
    from converters import coreai

    path = copied(files["coreai-ios27"].path, tmp_path)
    content = (path / "main.mlirb").read_bytes()
    if damage == "cut":
        (path / "main.mlirb").write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        (path / "main.mlirb").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "no hash":
        (path / "main.hash").unlink()
    elif damage == "no metadata":
        (path / "metadata.json").unlink()
    else:
        (path / "metadata.json").write_text("[1]" if damage == "list metadata" else "not JSON")
    with pytest.raises(UserError, match="not a usable Core AI model") as caught:
        coreai.load(path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("count", [6, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutated_programs_give_one_message_or_an_answer(count, files, tmp_path):
    from converters import coreai

    source = files["coreai-ios27-4bit"].path
    content = (source / "main.mlirb").read_bytes()
    images = pixels(1, 32)
    random = np.random.default_rng(0)
    answers = refused = 0
    for number in range(count):
        changed = bytearray(content)
        for place in random.integers(0, len(content), int(random.integers(1, 8))):
            changed[place] = int(random.integers(0, 256))
        path = rewritten(copied(source, tmp_path / str(number)), bytes(changed))
        try:
            coreai.inspect(path)
            outputs = coreai.load(path).predict(images)
        except UserError as error:
            refused += [str(path) in problem for problem in error.problems] == [True]
        else:
            assert len(outputs) == 1  # its program, as it is now, may give another number of values
            answers += 1
        shutil.rmtree(path)
    assert answers + refused == count
    assert refused
    assert coreai.load(source).predict(images).shape == (1, 10)
