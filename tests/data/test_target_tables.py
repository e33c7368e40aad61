"""Several labels or real values an image: what decides it, what is read, and what is said."""

import math

import pytest
import torch
from PIL import Image

from selfsup.data import load_splits
from selfsup.data.labels import read_labels
from selfsup.data.targets import Asked, decide, has_targets
from selfsup.errors import UserError
from selfsup.registry import sources

FILES = [f"{number}.png" for number in range(6)]


def _folder(tmp_path, text):
    for number, name in enumerate(FILES):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(text, "utf-8")


def _load(tmp_path, **given):
    chosen = {"image_size": 4, "holdout": 0.0, "test_fraction": 0.0, "labels": str(tmp_path / "labels.csv"), **given}
    return load_splits(sources["image_folder"].config(root=str(tmp_path), **chosen))


@pytest.mark.parametrize(
    ("columns", "asked", "kind", "values"),
    [
        ({"a": ["1", "0", ""], "b": ["0", "true", ""]}, {}, "multilabel", [(1, 0), (0, 1), None]),
        ({"a": ["1.0", "", "0.0"], "b": ["0.0", "", "1.0"]}, {}, "multilabel", [(1, 0), None, (0, 1)]),
        ({"a": ["1", "0"], "b": ["0.5", "3"]}, {}, "real", [(1.0, 0.5), (0.0, 3.0)]),
        ({"a": ["x|y", "y", None, "|"]}, {}, "multilabel", [(1, 1), (0, 1), None, (0, 0)]),
        ({"a": ["x; y", "['z', 'x']"]}, {}, "multilabel", [(1, 1, 0), (1, 0, 1)]),
        ({"a": [["x"], [], float("nan")]}, {}, "multilabel", [(1,), (0,), None]),
        ({"a": ["x y", "y"]}, {}, "classes", ["x y", "y"]),
        ({"a": ["x y", "y"]}, {"separator": " "}, "multilabel", [(1, 1), (0, 1)]),
        ({"a": ["1.5", "NA", "2"]}, {}, "real", [(1.5,), None, (2.0,)]),
        ({"a": ["1", "2"]}, {}, "classes", ["1", "2"]),
        ({"a": ["1", "2"]}, {"kind": "real"}, "real", [(1.0,), (2.0,)]),
        ({"a": ["1", "0"]}, {"kind": "multilabel"}, "multilabel", [(1,), (0,)]),
        ({"a": ["x", "y"]}, {"kind": "multilabel"}, "multilabel", [(1, 0), (0, 1)]),
    ],
)
def test_the_rule(columns, asked, kind, values):
    rows = FILES[: len(next(iter(columns.values())))]
    found = decide(columns, Asked(**asked), "data.labels: x", rows)
    assert (found.kind, found.values) == (kind, values)


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        (
            {"a": ["1", "x", "y"], "b": ["0", "1", "1"]},
            {"kind": "multilabel"},
            "2 cells hold something else",
        ),
        (
            {"a": ["1.5", "inf"]},
            {"kind": "real"},
            "1 cells .* than numbers, 'inf' in the column a of 1.",
        ),
        ({"a": ["1.5", "2.5", "unclear"]}, {}, "'unclear' in the column a of 2.png for one; empty them where"),
        ({"a": ["", "1"], "b": ["1", ""]}, {}, "no row has a value in every column"),
        ({"a": ["1"], "b": ["2"]}, {"kind": "classes"}, "classes are one column"),
        ({"a": ["x|y"]}, {"kind": "classes"}, "an image has several"),
        ({"a": [f"{n};{n}a" for n in range(60)]}, {}, "120 names for 60 images"),
    ],
)
def test_what_is_of_no_kind(columns, asked, message):
    rows = [f"{number}.png" for number in range(60)][: len(next(iter(columns.values())))]
    with pytest.raises(UserError, match=message):
        decide(columns, Asked(**asked), "data.labels: x", rows)


def test_several_labels_of_a_folder_are_said_with_numbers(tmp_path):
    _folder(tmp_path, "file,tags\n0.png,cat|dog\n1.png,dog\n2.png,\n3.png,|\ngone.png,cat\n4\n5.png,emu|cat|dog\n")
    splits = _load(tmp_path)
    train = splits.train
    assert train.labels is None
    assert train.targets.names == ("cat", "dog", "emu")
    rows = [[1, 1, 0], [0, 1, 0], [-1] * 3, [0, 0, 0], [-1] * 3, [1, 1, 1]]
    assert train.targets.of(train.index).tolist() == rows
    assert has_targets(train.targets.values).tolist() == [True, True, False, True, False, True]
    assert train.subset(torch.tensor([5, 0])).targets.of(torch.tensor([5, 0])).tolist() == [rows[5], rows[0]]
    line = next(line for line in splits.found.lines() if line.startswith("labels: "))
    assert line == (
        "labels: 3 labels from column tags of labels.csv, as a cell can hold several names (cat, dog, emu), several an "
        "image: 1.5 on average, 1 image with none of them; 2 images have none"
    )
    notes = " ".join(splits.found.notes)
    assert "1 row of" in notes
    assert "gone.png for one" in notes
    assert "left out, without the columns of labels, 4 for one" in notes
    assert splits.found.to_json()["targets"]["of_each"] == {"cat": 2, "dog": 3, "emu": 1}
    assert _load(tmp_path, labelled=False).train.targets is None
    assert len(_load(tmp_path, labelled=True).train) == 6


def test_real_values_of_a_folder(tmp_path):
    lines = ["file,weight,note,age", "0.png,0.5,a,1", "1.png,1.5,b,", "2.png,2.5,c,3", "3.png,,d,", "5.png,1e1,e,5"]
    _folder(tmp_path, "\n".join(lines))
    with pytest.raises(UserError, match=r"data\.label_column is not set; .* or to several, \[A,B\],"):
        _load(tmp_path)
    splits = _load(tmp_path, label_column=["weight", "age"])
    values = splits.train.targets.values
    assert (values.dtype, splits.train.targets.kind) == (torch.float64, "real")
    assert values[[0, 2, 5]].tolist() == [[0.5, 1], [2.5, 3], [10, 5]]
    assert values[[1, 3, 4]].isnan().all()
    assert "weight 0.5 to 10, mean 4.333, age 1 to 5, mean 3); 3 images have none" in " ".join(splits.found.lines())
    assert "1 rows have some cells empty or NaN, 1.png for one" in " ".join(splits.found.notes)
    one = _load(tmp_path, label_column="weight").train
    assert [value for (value,) in one.targets.values.tolist() if not math.isnan(value)] == [0.5, 1.5, 2.5, 10]
    with pytest.raises(UserError, match=r"5 cells .* than numbers, 'a' in the column note of 0\.png"):
        _load(tmp_path, label_column=["weight", "note"])


def test_columns_that_can_be_nothing_else_are_targets_without_a_setting(tmp_path):
    _folder(tmp_path, "file,cat,dog\n" + "".join(f"{n}.png,{n % 2},{int(n > 2)}\n" for n in range(6)))
    for given in ({}, {"resident_limit_mb": 0}):
        splits = _load(tmp_path, holdout=0.4, test_fraction=0.5, **given)
        assert splits.train.targets.names == ("cat", "dog")
        for part in (splits.train, splits.holdout, splits.test):
            red = part.read(torch.arange(len(part)))[:, 0, 0, 0].tolist()  # the number of the image
            assert part.targets.of(part.index).tolist() == [[n % 2, int(n > 2)] for n in red]
    _folder(tmp_path, "file,cat,dog\n0.png,1,0\n0.png,0,0\n")
    with pytest.raises(UserError, match=r"gives 0\.png two rows that differ; give it one"):
        _load(tmp_path)


def test_folders_say_classes_alone(tmp_path):
    _folder(tmp_path, "")
    with pytest.raises(UserError, match=r"data\.targets is real, but folders say classes; name a table"):
        _load(tmp_path, labels=None, targets="real")


def test_the_very_path_goes_before_files_that_end_like_it(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n1.png,x\na/1.png,y\n", "utf-8")
    assert read_labels(tmp_path / "labels.csv", ["a/1.png", "1.png"]).decided.values == ["y", "x"]
