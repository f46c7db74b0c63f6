"""A known image becomes the same pixels everywhere: here, in torchvision, in timm and in the web page."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from edgeprune.data import image_folder
from edgeprune.data.preprocessing import INTERPOLATIONS, Preprocessing
from edgeprune.training.predict import normalized

PIXELS = Path(__file__).parents[3] / "sample_apps" / "web" / "src" / "pixels.js"
SIZES = {"wide": (157, 90), "tall": (83, 211), "small": (40, 31)}


def picture(size):
    """Ramps, waves and noise, so that every filter and every offset shows."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height, width))
    channels = [(3 * x + y) % 256, 127 + 127 * np.sin(x * y / 40), noise]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_is_what_torchvision_does(size, interpolation):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(
        crop_size=48, resize_size=56, interpolation=InterpolationMode(interpolation), mean=(0.4, 0.5, 0.6)
    )
    image = picture(SIZES[size])
    ours = Preprocessing(48, 56, interpolation, (0.4, 0.5, 0.6))
    pixels = torch.from_numpy(np.asarray(ours.fitted(image)).transpose(2, 0, 1).copy())[None]
    torch.testing.assert_close(normalized(pixels, ours.normalization)[0], theirs(image))


def test_it_is_what_timm_does():
    from timm.data import create_transform

    theirs = create_transform(
        (3, 48, 48), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.875
    )
    image = picture(SIZES["wide"])
    ours = Preprocessing(48, int(48 / 0.875), "bicubic", (0.5,) * 3, (0.5,) * 3)
    pixels = torch.from_numpy(np.asarray(ours.fitted(image)).transpose(2, 0, 1).copy())[None]
    torch.testing.assert_close(normalized(pixels, ours.normalization)[0], theirs(image))


def test_without_weights_it_is_the_largest_square_as_ever():
    image = picture(SIZES["wide"])
    fitted = ImageOps.fit(image, (64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(Preprocessing().fitted(image)), np.asarray(fitted))


def test_a_folder_is_read_by_it(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            picture(SIZES["wide"]).save(tmp_path / split / name / "0.png")
    prepare = Preprocessing(48, 56, "bicubic")
    found = image_folder.held_out(tmp_path, prepare, 2).images
    assert torch.equal(
        found[0], torch.from_numpy(np.asarray(prepare.fitted(picture(SIZES["wide"])))).permute(2, 0, 1)
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize_px", [None, 56])
@pytest.mark.parametrize("size", SIZES)
def test_the_web_page_does_the_same(size, resize_px, interpolation, tmp_path):
    image = picture(SIZES[size])
    (tmp_path / "rgba").write_bytes(image.convert("RGBA").tobytes())
    options = json.dumps({"resizePx": resize_px, "interpolation": interpolation})
    script = (
        f"import {{ fit }} from {json.dumps(PIXELS.as_uri())}; import {{ readFileSync }} from 'node:fs';"
        f"const image = {{ data: readFileSync({json.dumps(str(tmp_path / 'rgba'))}), "
        f"width: {image.width}, height: {image.height} }};"
        f"process.stdout.write(fit(image, 48, 48, {options}));"
    )
    command = ["node", "--input-type=module", "--eval", script]
    told = subprocess.run(command, capture_output=True, check=True).stdout
    theirs = np.frombuffer(told, np.uint8).reshape(48, 48, 3).astype(int)
    ours = np.asarray(Preprocessing(48, resize_px, interpolation).fitted(image)).astype(int)
    # Pillow's shares are fixed-point numbers, and from version 13 on it goes down before it goes across where
    # that is less work: what is rounded between the two differs then.
    assert abs(theirs - ours).max() <= 2
    assert abs(theirs - ours).mean() < 0.05


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (Preprocessing(64, 32), "resize_px 32: at least image_size_px, 64"),
        (Preprocessing(interpolation="cubic"), "interpolation 'cubic': choose from nearest, bilinear"),
        (Preprocessing(std=(0.2, 0.0, 0.2)), "each above 0"),
    ],
)
def test_what_makes_no_sense_is_named(wrong, problem):
    assert problem in wrong.problems()[0]


def test_an_app_is_told_what_to_do():
    told = json.loads(Preprocessing(224, 256, "bicubic").to_metadata()["preprocessing"])
    assert (told["resize_px"], told["crop_px"], told["interpolation"]) == (256, 224, "bicubic")
    assert told["in_words"] == "shorter side to 256 px (bicubic), middle 224 x 224 px"
