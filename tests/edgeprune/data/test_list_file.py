import json

import pytest
from rich.console import Console

from edgeprune.data import list_file, sources
from edgeprune.data.labels import LabelKind
from edgeprune.data.preprocessing import Preprocessing
from edgeprune.errors import UserError
from edgeprune.progress import Progress
from tests.support.images import write_folder

PREPARE = Preprocessing(32)


def load(path):
    return list_file.load(path, PREPARE, Progress(Console(quiet=True)))


@pytest.fixture
def rows(tmp_path):
    root = write_folder(tmp_path, train=4, held_out=2)
    files = sorted(root.rglob("*.jpg"))
    return [
        {"path": str(file.relative_to(root)), "label": file.parent.name, "split": file.parent.parent.name}
        for file in files
    ]


def as_csv(folder, rows, name="list.csv"):
    columns = list(rows[0])
    lines = [",".join(columns), *(",".join(row[column] for column in columns) for row in rows)]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_a_list_is_read_as_csv_and_as_json_lines(tmp_path, rows):
    lines = tmp_path / "list.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = load(as_csv(tmp_path, rows))
    assert table.classes == ("blue", "green", "red")
    assert (len(table.train), len(table.held_out)) == (12, 6)
    reds = table.train.images[table.train.labels == 2].float().mean((0, 2, 3))
    assert int(reds.argmax()) == 0
    assert load(lines).sha256 == table.sha256
    assert sources.source(lines, LabelKind.CLASS) is list_file
    assert len(list_file.held_out(lines, PREPARE, 3)) == 3


def test_numbers_are_put_in_their_order(tmp_path, rows):
    numbers = {"blue": "10", "green": "9", "red": "0"}
    data = load(as_csv(tmp_path, [{**row, "label": numbers[row["label"]]} for row in rows]))
    assert data.classes == ("0", "9", "10")


def without_column(rows):
    return [{"path": row["path"], "class": row["label"], "split": row["split"]} for row in rows]


def with_missing_images(rows):
    return [*rows, *({**rows[0], "path": f"gone/{number}.jpg"} for number in range(12))]


def with_another_split(rows):
    return [{**row, "split": row["split"].replace("val", "later")} for row in rows]


def with_one_class(rows):
    return [{**row, "label": "red"} for row in rows]


def with_a_class_of_one_split(rows):
    return [{**row, "label": "rot" if row == rows[-1] else row["label"]} for row in rows]


def with_an_empty_label(rows):
    return [*rows[:-1], {**rows[-1], "label": ""}]


BROKEN = {
    without_column: "no column label; there is path, class, split",
    with_missing_images: "gone/0.jpg: No such file or directory",
    with_another_split: "the column split has train, later; expected train, and val or test",
    with_one_class: "1 class: a classifier needs two or more",
    with_a_class_of_one_split: "classes of held-out images but of no training ones: rot",
    with_an_empty_label: "line 19: empty label",
}


@pytest.mark.parametrize("break_it", BROKEN, ids=lambda f: f.__name__)
def test_a_broken_list_is_refused_with_what_is_wrong(tmp_path, rows, break_it):
    with pytest.raises(UserError) as caught:
        load(as_csv(tmp_path, break_it(rows)))
    assert BROKEN[break_it] in str(caught.value)
    assert len(caught.value.problems) <= 11


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("list.csv", "", "no images; expected the columns path, label, split"),
        ("list.jsonl", "{not json\n", "cannot be read as a list"),
        ("list.jsonl", "[1]\n", "line 1: not an object with path, label, split"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        load(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / f"other-{name}")
