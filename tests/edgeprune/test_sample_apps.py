"""Test vectors written from a real run: what apps feed a file is what the run measured it with."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import litert
from edgeprune.recipe import Recipe
from edgeprune.tasks.detection.suppression import suppressed

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sample_apps" / "vectors" / "write_vectors.py"
NODE_TEST = ROOT / "sample_apps" / "web" / "test" / "vectors.test.mjs"


@pytest.fixture(scope="module")
def images(image_folder: Path) -> list[Path]:
    return [image_folder / "val" / name / "000.jpg" for name in ("blue", "green")]


@pytest.fixture(scope="module")
def vectors(finished_run: Path, images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors")
    files = sorted(map(str, (finished_run / "files").glob("dense*.tflite")))
    command = [sys.executable, str(SCRIPT), str(out), *files, "--images", *map(str, images)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # Pictures of one name are told apart by their folders here.
    names = [shutil.copy(image, out / f"{image.parent.name}.jpg") for image in images]
    command[-len(images) :] = map(str, names)
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return out / "vectors.json"


def test_a_file_is_fed_what_the_run_measured_it_with(
    vectors: Path, small_recipe: Recipe, images: list[Path]
) -> None:
    told: dict[str, Any] = json.loads(vectors.read_text())
    assert len(told["answers"]) == 2 * len(images)
    by_name = {f"{image.parent.name}.jpg": image for image in images}
    for answer in told["answers"]:
        pixels = small_recipe.preprocessing.read(by_name[answer["image"]]).astype(np.float32)
        fed = np.frombuffer(base64.b64decode(answer["tensor"]), "<f4").reshape(pixels.shape)
        assert answer["channels_last"]
        np.testing.assert_array_equal(fed, pixels)
        given = litert.load(answer["file"], apart=False).predict(pixels.transpose(2, 0, 1)[None])[0]
        np.testing.assert_allclose(answer["values"], given, rtol=1e-4, atol=1e-4)
        likeliest = answer["top"][0]["name"]
        assert likeliest == ("blue", "green", "red")[int(given.argmax())]


def test_the_evaluator_suppresses_boxes_as_the_apps_must(vectors: Path) -> None:
    told: dict[str, Any] = json.loads(vectors.read_text())
    assert told["suppressions"]
    for case in told["suppressions"]:
        boxes = np.array(case["boxes"], np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        scores, classes = np.array(case["scores"]), np.array(case["classes"])
        kept = []
        for label in set(case["classes"]):
            order = np.argsort(-scores, kind="stable")
            order = order[classes[order] == label]
            kept += order[suppressed(boxes[order], case["iou_threshold"])].tolist()
        assert sorted(kept, key=lambda place: -scores[place]) == case["kept"]


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_the_web_page_computes_the_same(vectors: Path) -> None:
    done = subprocess.run(
        ["node", "--test", str(NODE_TEST)],
        env=os.environ | {"EDGEPRUNE_VECTORS": str(vectors)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_node_test_fails_where_an_image_is_resized_otherwise(vectors: Path, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    told = json.loads(vectors.read_text())
    last = told["preparations"][-1]
    last["interpolation"] = "nearest" if last["interpolation"] != "nearest" else "bilinear"
    changed = tmp_path / "vectors.json"
    changed.write_text(json.dumps(told))
    done = subprocess.run(
        ["node", "--test", str(NODE_TEST)],
        env=os.environ | {"EDGEPRUNE_VECTORS": str(changed)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
