"""What is called a confusion, which images are shown, and when what was found out still holds."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from edgeprune.cli import main, run_recipe
from edgeprune.evaluation import errors as examining
from edgeprune.evaluation.errors import confusions, samples
from edgeprune.evaluation.records import Examination, thumbnail
from edgeprune.pipeline.run_folder import Run
from edgeprune.pipeline.store import analysis_of
from edgeprune.report import records
from edgeprune.tasks import TASKS

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def copied_run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "copy")


def outputs(*classes: int, sure: float = 5.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(classes), 3).float()


def test_the_most_frequent_confusions_come_first():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([1, 0, 1, 1, 2, 1, 2])
    dense = torch.tensor([1, 0, 0, 2, 1, 1, 2])
    worst, other = confusions(predicted, dense, labels, CLASSES)
    assert (worst.label, worst.predicted) == ("ant", "bee")
    assert (worst.images, worst.dense_images, worst.label_images) == (3, 1, 4)
    assert worst.places == (2, 3, 0), "what the dense model gets wrong in the same way comes last"
    assert (other.label, other.predicted, other.places) == ("bee", "cat", (4,))
    assert confusions(labels, dense, labels, CLASSES) == ()


def test_samples_are_those_that_differ():
    said, dense = outputs(0, 1, 2, 1), outputs(0, 1, 1, 0)
    found = samples(said, dense, torch.tensor([0, 1, 2, 0]), CLASSES)
    assert [sample.place for sample in found[:2]] == [2, 3]
    assert (found[0].label, found[0].dense, found[0].predicted) == ("cat", "bee", "cat")
    assert found[0].confidence == pytest.approx(float(said[2].softmax(0).max()))
    assert len(found) == examining.AGREEING_SAMPLES, "filled up with images on which they agree"
    many = torch.arange(60) % 2
    differing = samples(outputs(*many.tolist()), outputs(*(1 - many).tolist()), many, CLASSES)
    assert len(differing) == examining.SAMPLES
    assert (differing[0].place, differing[-1].place) == (0, 59)


def test_where_nothing_differs_the_least_sure_are_shown():
    said = torch.cat([outputs(0, 1, 2, 0, 1), outputs(2, sure=0.1)])
    found = samples(said, outputs(0, 1, 2, 0, 1, 2), torch.tensor([0, 1, 2, 0, 1, 2]), CLASSES)
    assert len(found) == examining.AGREEING_SAMPLES
    assert found[0].place == 5
    assert all(sample.dense == sample.predicted for sample in found)


def test_a_run_examines_every_variant_and_keeps_the_pictures(finished_run):
    report = records.read(finished_run)
    assert [examination.variant for examination in report.of(Examination)] == ["dense", "block80", "channels"]
    for examination, training in zip(report.of(Examination), report.trainings, strict=True):
        assert examination.images == 24
        right = examination.both_right + examination.only_variant_right
        assert right / 24 == pytest.approx(training.score)
        assert examination.robustness.top1 == pytest.approx(training.score), (
            "all held-out images are looked at"
        )
        assert examination.robustness.image_source == "all held-out images"
        mistakes = 24 - right
        assert sum(confusion.images for confusion in examination.confusions) <= mistakes
        shown = {place for confusion in examination.confusions for place in confusion.places}
        for place in shown | {sample.place for sample in examination.samples}:
            assert Image.open(finished_run / thumbnail(place)).size == (32, 32)
    page = (finished_run / "report.html").read_text()
    assert page.count("data:image/jpeg") >= examining.AGREEING_SAMPLES
    assert "are no longer in the run folder" not in page


def test_the_page_is_made_again_without_the_images(copied_run, tmp_path, capsys):
    """Whatever the page shows is in the run folder: the recipe's images may be gone."""
    before = {name: (copied_run / name).read_bytes() for name in ("report.html", "report.md", "report.json")}
    recipe = copied_run / "recipe.toml"
    text = recipe.read_text()
    data = next(line for line in text.splitlines() if line.startswith("data = "))
    for name in before:
        (copied_run / name).unlink()
    recipe.write_text(text.replace(data, f'data = "{tmp_path / "gone"}"'))
    assert main(["report", str(copied_run)]) == 0
    recipe.write_text(text)
    assert main(["report", str(copied_run)]) == 0
    assert {name: (copied_run / name).read_bytes() for name in before} == before


def test_a_run_of_an_earlier_version_renders_and_says_what_is_missing(copied_run, small_recipe, capsys):
    shutil.rmtree(copied_run / "examinations")
    shutil.rmtree(copied_run / "thumbnails")
    assert main(["report", str(copied_run)]) == 0
    report = records.read(copied_run)
    assert report.analyses == ()
    assert list(report.not_examined) == ["dense", "block80", "channels"]
    assert (
        "Not measured for dense, block80, channels: the run folder" in (copied_run / "report.md").read_text()
    )

    capsys.readouterr()
    assert run_recipe(small_recipe, "", ["--output", str(copied_run)]) == 0
    assert "training" not in capsys.readouterr().out
    assert len(records.read(copied_run).of(Examination)) == 3


def test_other_weights_are_examined_anew(copied_run):
    folder = Run(copied_run)
    assert analysis_of(folder, "block80", TASKS["classification"]) is not None
    weights = folder.weights("block80")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert analysis_of(folder, "block80", TASKS["classification"]) is None
    assert analysis_of(folder, "channels", TASKS["classification"]) is not None
    shutil.copy(weights, folder.weights("dense"))
    assert analysis_of(folder, "channels", TASKS["classification"]) is None, (
        "it was held against other dense weights"
    )


def test_what_is_not_an_examination_is_refused(copied_run, capsys):
    path = Run(copied_run).examination("block80")
    plain = json.loads(path.read_text())
    del plain["confusions"]
    path.write_text(json.dumps(plain))
    assert main(["report", str(copied_run)]) == 2
    assert "block80.json lacks 'confusions'" in capsys.readouterr().err
    path.write_text("{")
    assert main(["report", str(copied_run)]) == 2
    assert "delete it, and the same command makes it again" in capsys.readouterr().err
