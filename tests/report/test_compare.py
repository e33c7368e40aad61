import csv

import pytest

from selfsup.errors import UserError
from selfsup.eval import add_results
from selfsup.report import compare


def record(protocol="knn", value=0.5, metric="top1", split="test", **fields):
    defaults = {"data": "digits", "image_size": 8, "train_images": 100, "test_images": 50, "primary": True, "seed": 0}
    if protocol == "knn":
        defaults |= {"k": 20, "temperature": 0.07}
    return {"protocol": protocol, "split": split, "metric": metric, "value": value, **defaults, **fields}


def run(folder, records=(), config="method: {name: simclr}\nbackbone: {name: resnet18}\nseed: 3\n"):
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.yaml").write_text(config)
    if records:
        add_results(folder, records)
    return folder


def test_a_row_says_what_was_trained_and_what_came_of_it(tmp_path):
    folder = run(
        tmp_path / "first",
        [
            record(value=0.8125, epoch=20),
            record("linear_probe", 0.875, epoch=20),
            record("diagnostics", 12.34, "rank_me", split="train"),
            record("training", 61.5, "seconds", split="train"),
        ],
    )
    (row,) = compare([folder]).rows
    assert row == {
        "run": "first",
        "method": "simclr",
        "backbone": "resnet18",
        "data": "digits",
        "epochs": 20,
        "seed": 3,
        "split": "test",
        "kNN": 0.8125,
        "linear probe": 0.875,
        "RankMe": 12.34,
        "seconds": 61.5,
    }


def test_the_text_is_aligned_and_in_percent(tmp_path):
    table = compare([run(tmp_path / "a", [record(value=0.8125)]), run(tmp_path / "longer", [record(value=0.5)])])
    lines = str(table).splitlines()
    assert lines[0].startswith("run     method")
    place = lines[0].index("kNN")
    assert [line[place:].split("  ")[0].strip() for line in lines[2:4]] == ["81.2 %", "50.0 %"]
    assert "longer" in table.markdown().splitlines()[3]


def test_the_primary_number_of_the_latest_epoch_is_taken(tmp_path):
    folder = run(
        tmp_path / "a",
        [
            record(value=0.3, epoch=20),
            record(value=0.9, epoch=20, k=200, primary=False),
            record(value=0.2, epoch=10),
            record(value=0.99, epoch=30, split="holdout"),
        ],
    )
    (row,) = compare([folder]).rows
    assert (row["kNN"], row["split"], row["epochs"]) == (0.3, "test", 20)


def test_missing_results_are_a_dash_and_a_note(tmp_path):
    table = compare([run(tmp_path / "done", [record(), record("linear_probe")]), run(tmp_path / "fresh")])
    assert table.rows[1]["kNN"] is None
    assert "–" in str(table).splitlines()[3]
    assert any("fresh has no kNN and no linear probe result" in note for note in table.notes)
    assert not any("done" in note for note in table.notes)


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path):
    text = str(compare([run(tmp_path / "\x1b[31mred")]))
    assert "note: \\x1b[31mred has no" in text
    assert "\x1b" not in text


def test_a_baseline_without_a_config_is_a_run(tmp_path):
    folder = run(tmp_path / "raw_pixels", [record(value=0.7), record("linear_probe")], config=None)
    table = compare([folder])
    assert (table.rows[0]["run"], table.rows[0]["kNN"], table.rows[0]["method"]) == ("raw_pixels", 0.7, None)
    assert table.notes == []


def test_names_and_epochs_can_come_from_the_config(tmp_path):
    config = "method: byol\ndata: {name: stl10}\ntrainer: {max_epochs: 5}\nbackbone: {name: vit}\n"
    (row,) = compare([run(tmp_path / "a", config=config)]).rows
    assert (row["method"], row["data"], row["epochs"], row["backbone"]) == ("byol", "stl10", 5, "vit")


def test_different_protocols_are_said(tmp_path):
    table = compare([run(tmp_path / "a", [record()]), run(tmp_path / "b", [record(k=5, test_images=10)])])
    assert "kNN was not measured in the same way: k is 20 in a, 5 in b" in table.notes
    assert "kNN was not measured in the same way: test_images is 50 in a, 10 in b" in table.notes
    sizes = [
        run(tmp_path / name, [record(grid=grid)]) for name, grid in (("d", [4, 4]), ("e", [8, 8]), ("f", [*range(99)]))
    ]
    assert "kNN was not measured in the same way: grid is [4, 4] in d, [8, 8] in e" in compare(sizes[:2]).notes
    assert "kNN was not measured in the same way: grid differs" in compare(sizes).notes
    same = compare([run(tmp_path / "c", [record()]), tmp_path / "a"])
    assert not any("same way" in note for note in same.notes)


def test_files_of_a_comparison(tmp_path):
    folders = [run(tmp_path / "x" / "run", [record(value=0.8125)]), run(tmp_path / "y" / "run", [record(value=0.25)])]
    compare(folders, tmp_path / "out" / "deep")
    out = tmp_path / "out" / "deep"
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".html", ".md", ".png"]
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], float(row["kNN"]), row["linear probe"]) for row in rows] == [
        ("x/run", 0.8125, ""),
        ("y/run", 0.25, ""),
    ]
    assert "| x/run | simclr " in (out / "comparison.md").read_text()


def test_without_an_accuracy_there_is_no_chart(tmp_path):
    folder = run(tmp_path / "a", [record(value=0.8)])
    compare([folder], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.png").exists()
    compare([run(tmp_path / "fresh")], tmp_path / "out")
    assert not (tmp_path / "out" / "comparison.png").exists()


def test_what_a_person_can_put_right(tmp_path):
    with pytest.raises(UserError, match="at least one"):
        compare([])
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a run"):
            compare([folder])
    with pytest.raises(UserError, match=r"config\.yaml"):
        compare([run(tmp_path / "broken", config="method: [")])
    with pytest.raises(UserError, match=r"config\.yaml"):
        compare([run(tmp_path / "list", config="- a\n- b\n")])
    with pytest.raises(UserError, match=r"config\.yaml"):
        compare([run(tmp_path / "loop", config="a: &a [*a]\n")])
    compare([run(tmp_path / "numbers", config="1: 2\nmethod: {name: moco, 3: 4}\n")])  # their names are text
    wide = run(tmp_path / "wide", [record()])
    (wide / "metrics.csv").write_text("step,online/knn\n1," + "9" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"metrics\.csv cannot be read as a table"):
        compare([wide], tmp_path / "out of wide")
    folder = run(tmp_path / "twice", [record()])
    with pytest.raises(UserError, match="named twice"):
        compare([folder, folder])
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        compare([folder])
