"""Several datasets in one command."""

import csv

import pytest
from tiny import TINY

from selfsup.cli import main
from selfsup.commands.transfer import transfer
from selfsup.config import load_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import read_results

QUICK = ["eval.linear_probe.epochs=2", "eval.linear_probe.learning_rates=[0.1]", "eval.knn.k=[5]", "eval.figures=false"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny finished SimCLR run on shapes."""
    return train(load_config([*TINY, "trainer.max_epochs=1", f"run_dir={tmp_path_factory.mktemp('run') / 'one'}"]))


def test_one_table_over_datasets(finished, capsys):
    before = read_results(finished)
    settings = [*QUICK, "eval.seeds=2", "data.limit=64"]
    data = "data=digits,cifar10,shapes"
    assert main(["transfer", f"checkpoint={finished}", data, "--only", "knn,linear_probe,ridge", *settings]) == 0
    out = capsys.readouterr().out
    assert read_results(finished) == before, "the run's own results tell of its own data"
    assert "left out: cifar10: " in out, "there are no such files"
    folder = finished / "transfer"
    with (folder / "transfer.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["data"], row["protocol"]) for row in rows] == [
        (name, protocol) for name in ("digits", "shapes") for protocol in ("knn", "linear_probe", "ridge")
    ]
    for row in rows:
        (record,) = [
            r for r in read_results(folder / row["data"]) if r["protocol"] == row["protocol"] and r.get("primary")
        ]
        assert record["data"] == row["data"]
        assert float(row["value"]) == record["value"]
        assert row["train_images"] == "64"
        assert row["test_images"] == str(record["test_images"])
        line = next(line for line in out.splitlines() if line.startswith(row["data"]))
        assert f"{100 * record['value']:.1f}" in line
        assert line.split()[1:4] == ["64", str(record["test_images"]), "(test)"]
        if row["protocol"] == "linear_probe":
            assert f"± {100 * record['std']:.1f} %" in line
            assert float(row["std"]) == record["std"]
    page = (folder / "transfer.md").read_text("utf-8")
    assert page.count("\n| ") == 3
    assert "cifar10" in page


def test_all_small_sources_by_one_word(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SELFSUP_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr("selfsup.data.sources.fashion_mnist.DEBIAN_FOLDER", tmp_path / "nothing")
    settings = ["checkpoint=raw_pixels", "data=all_small", f"run_dir={tmp_path / 'out'}", "data.limit=100", *QUICK]
    table = transfer(settings, ["knn"])
    assert list(table.records) == ["digits"], "it comes with scikit-learn"
    assert {"cifar10", "cifar100", "fashion_mnist", "mnist", "stl10", "svhn"} == {*table.left_out}
    assert "data.root" in table.left_out["svhn"]
    assert "data=all_small: cifar10, cifar100, digits, fashion_mnist, mnist, stl10, svhn" in capsys.readouterr().out


def test_a_network_from_elsewhere(tmp_path):
    table = transfer(["checkpoint=raw_pixels", "data=digits", f"run_dir={tmp_path}", *QUICK], ["knn"], progress=False)
    assert list(table.records) == ["digits"]
    assert table.records["digits"]["knn"]["value"] > 0.9  # raw digits are easy
    assert (tmp_path / "digits" / "results.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["checkpoint=raw_pixels"], "name the datasets"),
        (["checkpoint=raw_pixels", "data=digits,digits"], "each once"),
        (["checkpoint=raw_pixels", "data=digitz"], "Did you mean 'digits'"),
        (["data=digits"], "Say what to evaluate"),
    ],
)
def test_what_a_person_can_put_right(settings, message):
    with pytest.raises(UserError, match=message):
        transfer(settings, progress=False)


def test_protocols_are_looked_up_first(capsys):
    assert main(["transfer", "checkpoint=raw_pixels", "data=digits", "--only", "kn"]) == 2
    assert "Did you mean 'knn'" in capsys.readouterr().err
