"""Both files of a model with an early exit, of two formats, run one into the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters import coreml, litert
from converters.coreml.package import read_package
from converters.facts import Converted, Normalization
from converters.format import FORMATS
from converters.litert import metadata
from converters.litert.graph import read_file
from converters.targets import TARGETS
from edgeprune import pruning
from edgeprune.data.dataset import InMemory
from edgeprune.errors import UserError
from edgeprune.evaluation.early_exit_files import NEVER, Chain, measure, open_pair, write_pair
from edgeprune.evaluation.paired import points_lost
from edgeprune.models.early_exit import ExitHead, Front, split

CLASSES = ("ant", "bee", "cow", "doe", "eel")
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
SIZE_PX = 32
TARGET_NAMES = ("litert-arm64", "coreml-ios16")
# Of float32, and of float16 weights.
TOLERANCE = {"litert-arm64": 1e-4, "coreml-ios16": 5e-3}


def network() -> nn.Module:
    """A map that is not square, and of as many channels as rows, goes from one half to the other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, (2, 1), 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, len(CLASSES)),
    )
    pruning.prune(model, pruning.Block(1, 4), 0.75)
    return model.eval()


@dataclass(frozen=True)
class Made:
    """A model with an exit, its files, and the whole model in one."""

    model: nn.Module
    front: Front
    pair: tuple[Converted, Converted]
    full: Converted


def written(target: str, folder: Path, threshold: float | None, place: str = "3") -> Made:
    model = network()
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    halves = split(model, place, example)
    head = ExitHead(halves.channels, len(CLASSES), 8)
    head[-1].weight.data.mul_(30)  # An untrained head gives all images nearly the same answer.
    front = Front(halves.front, head).eval()
    format = FORMATS[TARGETS[target].format]
    names = [folder / f"{half}{format.suffix}" for half in ("front", "rest", "full")]
    pair = write_pair(
        halves, front, TARGETS[target], (names[0], names[1]),
        example=example, normalization=NORMALIZATION, threshold=threshold, labels=CLASSES,
    )  # fmt: skip
    prepared = format.prepare(model, example, NORMALIZATION)
    full = format.write(prepared, TARGETS[target], names[2], labels=CLASSES)
    return Made(model, front, pair, full)


@pytest.fixture(scope="module", params=TARGET_NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return written(request.param, tmp_path_factory.mktemp(request.param), 0.25)


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, SIZE_PX, SIZE_PX), generator=torch.Generator().manual_seed(3))


def as_input(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (NORMALIZATION.mean, NORMALIZATION.std))
    return (images / 255 - mean) / std


def chain_of(made: Made, threshold: float | None) -> Chain:
    return open_pair(made.pair[0].path, made.pair[1].path, threshold)


def off(found: np.ndarray, wanted: Tensor) -> float:
    return float(np.abs(found - wanted.detach().numpy()).max() / wanted.detach().abs().max())


def test_each_file_computes_its_half_and_one_takes_what_the_other_gives(made: Made) -> None:
    images = pixels(3)
    first, second = (FORMATS[TARGETS[c.target].format].load(c.path) for c in made.pair)
    given, wanted = first.predict_all(images.float().numpy()), made.front(as_input(images))
    assert first.outputs == ("scores", "features")
    assert first.input.range == (0.0, 255.0)
    assert second.input.range is None
    assert second.input.shape == (16, 16, 32) == given["features"].shape[1:]
    assert second.input.labels == CLASSES
    for name in ("scores", "features"):
        assert off(given[name], wanted[name]) <= TOLERANCE[made.pair[0].target]
    assert off(second.predict(given["features"]), made.model(as_input(images))) <= TOLERANCE[made.full.target]


def test_the_files_hand_the_map_over_in_the_layout_they_have_inside(made: Made) -> None:
    """An app copies the buffer of one to the other: names, shapes and order are the same."""
    if made.full.target.startswith("litert"):
        front, rest = (read_file(converted.path) for converted in made.pair)
        assert [front.name(int(t)) for t in front.subgraph.outputs] == ["scores", "features"]
        assert [entry.name.decode() for entry in front.model.signatureDefs[0].outputs] == [
            "scores",
            "features",
        ]
        shapes = [front.shape(int(front.subgraph.outputs[1])), rest.shape(int(rest.subgraph.inputs[0]))]
        assert shapes == [(1, 16, 32, 16)] * 2
        moves = {front.op_name(op) for op in front.ops} | {rest.op_name(op) for op in rest.ops}
        assert "TRANSPOSE" not in moves
    else:
        front, rest = (read_package(converted.path).spec.description for converted in made.pair)
        assert [feature.name for feature in front.output] == ["scores", "features"]
        (taken,) = rest.input
        assert (taken.name, taken.shortDescription) == ("features", "feature map of the package before")
        assert list(taken.type.multiArrayType.shape) == [1, 16, 16, 32]
        assert list(front.output[1].type.multiArrayType.shape) in ([], [1, 16, 16, 32])
        assert front.output[1].shortDescription == "feature map, as the other package takes it"


def test_zeros_stay_sparse_in_both(made: Made) -> None:
    pruned = {layer.name: layer for converted in made.pair for layer in converted.layers}
    assert {"body.3", "5", "7"} <= set(pruned)
    for name in ("body.3", "5", "7"):
        assert pruned[name].zero_fraction >= 0.7
    assert "sparse" in pruned["7"].encoding
    assert "sparse" in {layer.name: layer for layer in made.full.layers}["7"].encoding
    assert ("sparse" in pruned["body.3"].encoding) == (
        "sparse" in {layer.name: layer for layer in made.full.layers}["3"].encoding
    )


def test_the_files_say_how_they_belong_together(made: Made) -> None:
    if made.full.target.startswith("litert"):
        told = [metadata.read(read_file(converted.path))["metadata"] for converted in made.pair]
    else:
        told = [read_package(converted.path).spec.description.metadata.userDefined for converted in made.pair]
    assert [one["early_exit_half"] for one in told] == ["front", "rest"]
    assert [one["early_exit_partner"] for one in told] == [c.path.name for c in reversed(made.pair)]
    assert [float(one["early_exit_threshold"]) for one in told] == [0.25, 0.25]
    assert "scores: class scores" in told[0]["early_exit_outputs"]
    assert told[1]["early_exit_input"] == "features of the partner"


@pytest.mark.parametrize("threshold", [None, 0.0, 1.1])
def test_a_threshold_at_either_end(made: Made, threshold: float | None) -> None:
    images = pixels(4)
    answers = chain_of(made, threshold).run(images.float().numpy())
    wanted = made.front(as_input(images))["scores"] if threshold == 0 else made.model(as_input(images))
    assert answers.exited.tolist() == [threshold == 0.0] * 4
    assert off(answers.scores, wanted) <= TOLERANCE[made.full.target]


def test_the_chain_does_what_torch_says(made: Made) -> None:
    images = pixels(32) * torch.linspace(0.1, 1, 32).view(-1, 1, 1, 1)
    scores = made.front(as_input(images))["scores"]
    sure = scores.softmax(1).max(1).values
    middle = sure.sort().values[5:-5]
    widest = int(middle.diff().argmax())  # Rounding decides nothing there.
    threshold = float(middle[widest : widest + 2].detach().mean())
    answers = chain_of(made, threshold).run(images.float().numpy())
    out = sure >= threshold
    assert answers.exited.tolist() == out.tolist()
    wanted = torch.where(out[:, None], scores, made.model(as_input(images)))
    assert off(answers.scores, wanted) <= TOLERANCE[made.full.target]
    assert answers.predictions.tolist() == wanted.argmax(1).tolist()
    assert off(answers.front_scores, scores) <= TOLERANCE[made.full.target]


def test_accuracies_are_counted_through_the_files(made: Made) -> None:
    images, labels = pixels(70), torch.arange(70) % len(CLASSES)
    answers = chain_of(made, 0.25).run(images.float().numpy())
    done: list[int] = []
    split = InMemory(images.to(torch.uint8), labels)
    found = measure(chain_of(made, 0.25), made.full.path, split, CLASSES, NORMALIZATION, done.append)
    model = made.model(as_input(images)).argmax(1)
    assert done == [64, 70]
    assert found.images == 70
    assert found.full == pytest.approx(float((model == labels).float().mean()))
    assert found.combined == (answers.predictions == labels.numpy()).mean()
    assert found.front == (answers.front_scores.argmax(1) == labels.numpy()).mean()
    assert found.continues == (~answers.exited).mean()
    both = torch.from_numpy(answers.predictions)
    lost, gained = (int(((a == labels) & (b != labels)).sum()) for a, b in ((model, both), (both, model)))
    assert found.error_points == points_lost(lost, gained, 70)[1]


def test_files_that_do_not_belong_together_are_refused(made: Made) -> None:
    front, rest = (converted.path for converted in made.pair)
    with pytest.raises(UserError, match="not scores and features"):
        open_pair(rest, front, 0.5)
    with pytest.raises(UserError, match=r"takes \(3, 32, 32\), and .* gives features of \(16, 16, 32\)"):
        open_pair(front, made.full.path, 0.5)


def test_of_a_map_of_one_pixel_channels_are_all_there_is(tmp_path: Path) -> None:
    for target in TARGET_NAMES:
        made = written(target, tmp_path, None, place="9")
        answers = chain_of(made, None).run(pixels(2).float().numpy())
        assert off(answers.scores, made.model(as_input(pixels(2)))) <= TOLERANCE[target]
    told = metadata.read(read_file(tmp_path / "front.tflite"))["metadata"]
    assert told["early_exit_threshold"] == NEVER


def test_labels_in_another_order_are_noticed(made: Made) -> None:
    split = InMemory(pixels(2).to(torch.uint8), torch.tensor([0, 1]))
    with pytest.raises(Exception, match="names its classes in another order"):
        measure(chain_of(made, 0.5), made.full.path, split, CLASSES[::-1], NORMALIZATION, lambda _: None)


def test_several_outputs_are_given_by_name_only(made: Made) -> None:
    loaded = (litert if made.full.target.startswith("litert") else coreml).load(made.pair[0].path)
    with pytest.raises(UserError, match="gives scores, features: `predict_all` returns them by name"):
        loaded.predict(pixels(1).float().numpy())
