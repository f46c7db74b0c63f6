"""Files that give several named tensors, and files that take a feature map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from converters import litert
from converters.agreement import worst
from converters.errors import UserError
from converters.litert import checking, metadata
from converters.litert.graph import DamagedFileError, read_file
from converters.runtimes.environments import RUNTIMES
from converters.runtimes.running import FileRun, run_files

# Of float32, and of int8 weights; what is int8 throughout is cut off where its calibration ended.
TOLERANCE = {"litert-arm64": 1e-4, "litert-arm64-int8": 0.03, "litert-arm64-static-int8": 0.5}
LEAST_CORRELATION = 0.95
IMAGES = torch.rand(9, 3, 12, 16, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(9, 8, 8, 8, generator=torch.Generator().manual_seed(1))


class Front(nn.Module):
    """A map of 5 channels, 12 rows and 8 columns beside 4 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 5, 3, (1, 2), 1), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.body(x))
        return {"features": features, "scores": self.head(features.mean((2, 3)))}


def rest() -> nn.Module:
    """Of a map whose sides and channels are all 8: a file that mixes them up computes something else."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 6, (3, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 8, 4)).eval()


def assert_close(found: np.ndarray, wanted: Tensor, target: str) -> None:
    exact = wanted.detach().numpy()
    assert worst([found], [exact]) <= TOLERANCE[target]
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] >= LEAST_CORRELATION


@pytest.fixture(scope="module")
def front() -> nn.Module:
    torch.manual_seed(0)
    return Front().eval()


@pytest.fixture(scope="module", params=TOLERANCE)
def written(
    request: pytest.FixtureRequest, front: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("outputs") / f"{request.param}.tflite"
    litert.convert(front, IMAGES[:1], path, target=request.param, calibration=IMAGES.numpy())
    return path


def test_each_output_has_its_name_and_what_torch_gives(written: Path, front: nn.Module) -> None:
    loaded, wanted = litert.load(written), front(IMAGES)
    given = loaded.predict_all(IMAGES.numpy())
    assert loaded.outputs == tuple(given) == ("features", "scores")
    assert {name: part.shape for name, part in given.items()} == {"features": (9, 5, 12, 8), "scores": (9, 4)}
    for name, part in given.items():
        assert_close(part, wanted[name], written.stem)
    with pytest.raises(UserError, match="gives features, scores: `predict_all` returns them by name"):
        loaded.predict(IMAGES.numpy())


def test_the_signature_that_apps_read_has_the_names(written: Path) -> None:
    graph = read_file(written)
    outputs = [int(tensor) for tensor in graph.subgraph.outputs]
    entries = graph.model.signatureDefs[0].outputs
    assert {entry.name.decode(): entry.tensorIndex for entry in entries} == dict(
        zip(("features", "scores"), outputs, strict=True)
    )
    assert [graph.shape(tensor) for tensor in outputs] == [(1, 12, 8, 5), (1, 4)]
    assert len({graph.name(index) for index in range(len(graph.tensors))}) == len(graph.tensors)


def test_the_files_own_program_gives_both_too(written: Path) -> None:
    graph = read_file(written)
    exact = checking.references(graph, IMAGES[:2].numpy())
    found = checking.outputs_of(written.read_bytes(), graph, IMAGES[:2].numpy(), written.name)
    assert [part.shape for part in exact] == [part.shape for part in found] == [(2, 5, 12, 8), (2, 4)]
    assert worst(found, exact) <= (0.1 if "static" in written.stem else 1e-4)


def test_a_runtime_gives_all_values_in_order(written: Path) -> None:
    given = litert.load(written).predict_all(IMAGES[:2].numpy())
    task = FileRun(written, IMAGES[:2].permute(0, 2, 3, 1).numpy())
    (answer,) = run_files([task], RUNTIMES["host"]).answers
    assert answer.outputs is not None
    flat = [given["features"].transpose(0, 2, 3, 1).reshape(2, -1), given["scores"]]
    assert np.allclose(answer.outputs, np.concatenate(flat, 1), atol=1e-5)


@pytest.mark.parametrize("target", TOLERANCE)
def test_a_map_of_any_channels_is_taken_in_the_layout_that_the_file_says(target: str, tmp_path: Path) -> None:
    model, path = rest(), tmp_path / "rest.tflite"
    litert.convert(model, MAPS[:1], path, target=target, labels=list("abcd"), calibration=MAPS.numpy())
    loaded = litert.load(path)
    assert loaded.input.shape == (8, 8, 8)
    assert loaded.input.labels == tuple("abcd")
    assert_close(loaded.predict(MAPS.numpy()), model(MAPS), target)


def test_a_file_that_does_not_say_its_shape_must_take_an_image(tmp_path: Path) -> None:
    path = tmp_path / "rest.tflite"
    litert.convert(rest(), MAPS[:1], path)
    for shape in (None, [8, 8], [8, 8, "8"], [9, 8, 8], [8.0, 8, 8]):
        graph = read_file(path)
        metadata.write(graph, {"schema": 1, "input": {"shape": shape}})
        path.write_bytes(graph.to_bytes())
        with pytest.raises(UserError, match=r"takes \[1, 8, 8, 8\], which is not one image"):
            litert.load(path)


def test_a_file_that_gives_more_than_it_declares_is_refused(written: Path, tmp_path: Path) -> None:
    graph = read_file(written)
    graph.tensors[int(graph.subgraph.outputs[1])].shape = np.array([1, 3], np.int32)
    path = tmp_path / "less.tflite"
    path.write_bytes(graph.to_bytes())
    with pytest.raises((UserError, DamagedFileError)):
        litert.load(path)


def test_outputs_without_names_and_names_of_classes_are_refused(front: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels are for a classifier; this model gives 2 outputs"):
        litert.convert(front, IMAGES[:1], tmp_path / "x.tflite", labels=list("abcd"))
    assert not list(tmp_path.iterdir())
