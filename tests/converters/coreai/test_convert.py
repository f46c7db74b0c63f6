"""Files written, read back, and run by Apple's runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import verify
from converters.errors import ToolError, UserError
from converters.facts import sha256, size_bytes
from converters.format import FORMATS
from converters.sizes import SizeModel, calibrated
from converters.targets import TARGETS
from tests.converters.coreai.conftest import NAMES
from tests.support.packages import LABELS, NORMALIZATION, Tiny, pixels, prepare, prunable, run

pytestmark = [pytest.mark.coreai, pytest.mark.xdist_group("coreai")]


def holding(model: nn.Module, path: Path) -> nn.Module:
    """The torch model with the constants that the file holds."""
    from converters.coreai import verification

    example = torch.zeros(1, 3, 32, 32)
    weights = {name: w.value for name, w in verification.decoded_weights(path, model, example).items()}
    return verification.holding(model, example, weights, half="float32" not in path.stem)


@pytest.mark.parametrize("name", NAMES)
def test_apples_runtime_computes_what_torch_does_with_the_stored_numbers(name, files, tiny):
    from converters import coreai
    from converters.coreai.verification import normalized_in_float16

    images = pixels(8, 32)
    loaded = coreai.load(files[name].path)
    inputs = normalized_in_float16(images, NORMALIZATION)
    if "float32" in name:
        inputs = verify.normalized(images, NORMALIZATION)
    wanted = run(holding(tiny, files[name].path), inputs)
    got = loaded.predict(images)
    assert loaded.input.range == (0.0, 255.0)
    assert loaded.input.labels == LABELS
    assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, float(np.abs(wanted).max()))
    as_it_is = coreai.load(files[name].path, activations="float16").predict(images)
    assert np.abs(as_it_is - wanted).max() <= 2e-2 * float(np.abs(wanted).max())


@pytest.mark.parametrize("name", NAMES)
def test_the_zeros_of_the_model_and_no_others(name, files, tiny):
    from converters import coreai

    modules, weights = dict(tiny.named_modules()), coreai.decode(files[name].path)
    pruned = prunable(tiny)
    assert {layer.name for layer in files[name].layers} >= set(pruned)
    for layer, weight in zip(files[name].layers, weights, strict=True):
        own = modules[layer.name].weight.detach().numpy().reshape(weight.value.shape)
        assert not weight.value[own == 0].any()
        # Nothing is zeroed but what rounds to zero: less than half a step of int8, or of float16.
        lost = np.abs(own[(weight.value == 0) & (own != 0)])
        assert lost.max(initial=0) <= np.abs(own).max() / 127 / 2 * 1.01
        if layer.name in pruned and weight.value.size > 1000:
            assert weight.encoding.startswith("sparse")
        if layer.name not in pruned:
            assert not weight.encoding.startswith("sparse")


def test_each_target_is_smaller_than_the_one_before(files):
    order = ("coreai-ios27-float32", "coreai-ios27", "coreai-ios27-int8")
    bytes_ = [files[name].bytes for name in order]
    assert bytes_ == sorted(bytes_, reverse=True)
    assert all(file.bytes == size_bytes(file.path) for file in files.values())


def test_the_same_model_gives_the_same_bytes(files, tiny, tmp_path):
    from converters import coreai

    metadata = {"author": "Ada", "license": "Apache-2.0", "short_description": "ten things", "note": "a"}
    again = coreai.convert(
        tiny,
        torch.zeros(1, 3, 32, 32),
        tmp_path / "again.aimodel",
        labels=LABELS,
        normalization=NORMALIZATION,
        metadata=metadata,
    )
    assert sha256(again.path) == sha256(files["coreai-ios27"].path)


def test_what_a_file_says_of_itself(files):
    from converters import coreai

    found = coreai.inspect(files["coreai-ios27-int8"].path)
    wanted = {"author": "Ada", "license": "Apache-2.0", "short_description": "ten things", "note": "a"}
    assert wanted.items() <= found.metadata.items()
    assert "sparse int8" in found.metadata["compression"]
    assert found.input.labels == LABELS
    assert found.input.shape == (3, 32, 32)
    assert found.lowest_os.startswith("iOS 27")
    facts = FORMATS["coreai"].inspect(files["coreai-ios27-int8"].path)
    assert [layer.encoding for layer in facts.layers] == [layer.encoding for layer in found.layers]


def test_apples_own_reader_sees_the_same(files):
    from coreai.authoring import AIModelAsset

    asset = AIModelAsset.load(files["coreai-ios27"].path)
    assert (asset.metadata.author, asset.metadata.license) == ("Ada", "Apache-2.0")
    assert asset.summary().function_names == ["main"]


@pytest.mark.parametrize("name", NAMES)
def test_size_model_is_within_one_percent(name, files, tiny, tmp_path):
    from converters import coreai

    torch.manual_seed(0)
    wide = prepare(Wide(), zeros=0)
    prepared = coreai.prepare(wide, torch.zeros(1, 3, 32, 32))
    model = calibrated(coreai.write(prepared, name, tmp_path / "dense.aimodel"))
    pruned = prepare(Wide(), zeros=0.75)
    written = coreai.convert(pruned, torch.zeros(1, 3, 32, 32), tmp_path / "x.aimodel", target=name)
    kept = [(1 - fact.zero_fraction) * np.prod(fact.shape) for fact in written.layers]
    assert isinstance(model, SizeModel)
    assert int(model.bytes(kept)) == pytest.approx(written.bytes, rel=0.01)


class Wide(nn.Module):
    """Wide enough that its weights are most of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
        self.layers = nn.Sequential(*[nn.Sequential(nn.Conv2d(i, o, 1), nn.ReLU()) for i, o in PAIRS])
        self.classifier = nn.Linear(512, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.layers(self.stem(x)).mean((2, 3)))


PAIRS = ((32, 256), (256, 256), (256, 512), (512, 512))


def test_verify_agrees_and_tells_both_ways_of_running(files, tiny):
    result = verify.verify(files["coreai-ios27-4bit"].path, pixels(4, 32), tiny, normalization=NORMALIZATION)
    assert result.agrees, result
    assert [check.runtime for check in result.checks] == ["core-ai", "core-ai-float16"]
    assert result.checks[0].max_relative_error < 1e-4


def test_a_file_too_slow_as_it_is_is_verified_without(files, tiny, monkeypatch):
    from converters.coreai import verification

    monkeypatch.setattr(verification, "SECONDS_PER_IMAGE", 0.0)
    said: list[str] = []
    result = verify.verify(
        files["coreai-ios27"].path, pixels(2, 32), tiny, normalization=NORMALIZATION, say=said.append
    )
    assert [check.runtime for check in result.checks] == ["core-ai"]
    assert result.agrees
    assert said[-1].startswith("core-ai-float16: left out, an image takes")


def test_core_ml_and_core_ai_agree_step_by_step(files, tiny, tmp_path):
    from converters import coreml
    from converters.side_by_side import side_by_side

    example = torch.zeros(1, 3, 32, 32)
    package = coreml.convert(tiny, example, tmp_path / "x.mlpackage", normalization=NORMALIZATION).path
    found = side_by_side((package, files["coreai-ios27"].path), pixels(4, 32), tiny, NORMALIZATION)
    assert found.apart is not None
    assert found.apart < 2e-3
    assert (found.same_class, found.parting) == (1, None)
    assert len(found.steps) >= 8
    # Another normalisation: apart from the image on.
    swapped = type(NORMALIZATION)(NORMALIZATION.mean[::-1], NORMALIZATION.std[::-1])
    wrong = coreml.convert(tiny, example, tmp_path / "y.mlpackage", normalization=swapped).path
    found = side_by_side((wrong, files["coreai-ios27"].path), pixels(4, 32), tiny, NORMALIZATION)
    assert found.parting is not None
    assert found.parting.place == "the image"


def test_a_program_that_is_not_the_models_is_refused_and_the_place_named(monkeypatch, tmp_path):
    """A fault that no weight shows: coreai-torch is made to trace a model whose activation is another."""
    from converters import coreai
    from converters.coreai import conversion

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(36, 2)
    )
    honest = conversion.Deployed

    def planted(given, normalization, results):
        deployed = honest(given, normalization, results)
        deployed.model[1] = nn.Sigmoid()
        return deployed

    monkeypatch.setattr(conversion, "Deployed", planted)
    with pytest.raises(ToolError, match=r"does not compute what the model does.*part: 1 \(relu\)"):
        coreai.convert(model.eval(), torch.rand(1, 3, 8, 8), tmp_path / "x.aimodel")
    assert list(tmp_path.iterdir()) == []


def test_values_that_float16_does_not_hold_are_refused(tmp_path):
    from converters import coreai

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(2000)
        model[4].weight.mul_(1e-6)
    prepared = coreai.prepare(model.eval(), torch.rand(1, 3, 8, 8))
    with pytest.raises(UserError, match=r"its activations reach .*float16"):
        coreai.write(prepared, "coreai-ios27", tmp_path / "x.aimodel")
    assert coreai.write(prepared, "coreai-ios27-float32", tmp_path / "x.aimodel").bytes


def test_a_padded_maximum_is_not_taken_for_values_too_large(tmp_path):
    """ResNet's: it is padded with minus infinity."""
    from converters import coreai

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 4, 1)).eval()
    images = torch.rand(1, 3, 16, 16)
    coreai.convert(model, images, tmp_path / "model.aimodel")
    answer = coreai.load(tmp_path / "model.aimodel").predict(images.numpy())
    np.testing.assert_allclose(answer, model(images).detach().numpy(), atol=2e-3)


def test_layers_of_one_shape_are_named_by_their_weights(tmp_path):
    """Two layers of one shape, of which the second is written first: shapes and order name them wrongly."""
    from converters import coreai

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, 2)
            self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.a(x).mean((2, 3)) - 2 * self.b(x).mean((2, 3))

    torch.manual_seed(0)
    model = Crossed().eval()
    with torch.no_grad():
        model.b.weight.view(-1)[:200] = 0
    file = coreai.convert(model, torch.rand(1, 3, 9, 9), tmp_path / "x.aimodel")
    zeros = {layer.name: layer.zero_fraction for layer in file.layers}
    assert set(zeros) == {"stem", "a", "b"}
    assert (zeros["a"], zeros["b"]) == (0, 200 / 256)


def test_all_mistakes_are_told_at_once(tiny, tmp_path):
    from converters import coreai

    with pytest.raises(UserError) as caught:
        coreai.convert(Tiny(), torch.zeros(1, 1, 32, 32), tmp_path / "x.tflite")
    assert len(caught.value.problems) >= 3
    prepared = coreai.prepare(tiny, torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="9 labels for a model of 10 classes"):
        coreai.write(prepared, "coreai-ios27", tmp_path / "x.aimodel", labels=LABELS[:-1])
    with pytest.raises(UserError, match="unknown target"):
        coreai.convert(tiny, torch.zeros(1, 3, 32, 32), tmp_path / "x.aimodel", target="coreai-ios26")
    assert list(tmp_path.iterdir()) == []


def test_images_of_another_size_are_refused(files):
    from converters import coreai

    with pytest.raises(UserError, match=r"takes images of shape \(n, 3, 32, 32\)"):
        coreai.load(files["coreai-ios27"].path).predict(pixels(1, 40))


def test_a_detector_gives_its_rows_and_names_its_classes(tmp_path):
    from converters import coreai

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 2 * (4 + 1 + 2), 5, 4, 2)

        def forward(self, images):
            return self.head(images).permute(0, 2, 3, 1).reshape(len(images), -1, 4 + 1 + 2)

    torch.manual_seed(0)
    model, example = Rows().eval(), torch.zeros(1, 3, 16, 16)
    told = {"labels": ["cell", "platelet"], "metadata": {"boxes": "{}"}}
    file = coreai.convert(model, example, tmp_path / "rows.aimodel", normalization=NORMALIZATION, **told)
    loaded, images = coreai.load(file.path), pixels(2, 16)
    wanted = run(model, verify.normalized(images, NORMALIZATION))
    assert loaded.input.labels == ("cell", "platelet")
    assert np.abs(loaded.predict(images) - wanted).max() <= 2e-3 * np.abs(wanted).max()
    with pytest.raises(UserError, match="4 labels for rows of 7 values"):
        coreai.convert(model, example, tmp_path / "other.aimodel", labels=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("mode", "target", "tolerance"), [("nearest", "-float32", 1e-5), ("bilinear", "", 1e-3)]
)
def test_a_network_of_maps_gives_maps(mode, target, tolerance, tmp_path):
    from converters import coreai

    torch.manual_seed(0)
    resize = nn.Upsample(scale_factor=2, mode=mode)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), resize, nn.Conv2d(8, 4, 1))
    file = coreai.convert(
        model.eval(), torch.zeros(1, 3, 16, 16), tmp_path / "x.aimodel", target=f"coreai-ios27{target}"
    )
    images = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    np.testing.assert_allclose(coreai.load(file.path).predict(images), run(model, images), atol=tolerance)


def test_targets_are_of_the_format():
    assert {dataclasses.replace(TARGETS[name]).format for name in NAMES} == {"coreai"}
