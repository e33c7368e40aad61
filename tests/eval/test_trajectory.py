"""Measures of a checkpoint by the functions they are, what each would choose, and the command on a run."""

from __future__ import annotations

import pytest
import torch
from measuring import changed, evaluate
from test_token_readouts import PLAIN, splits, vit
from tiny import TINY

from selfsup.augment import RECIPES, ViewGenerator, fold_in
from selfsup.cli import main
from selfsup.config import load_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.eval import Record, eval_config, extract_features, knn, read_results
from selfsup.eval.choosing import by_epoch, choices
from selfsup.functional import alpha_req, lidar, rank_me
from selfsup.report import Evaluated
from selfsup.report.charts.trajectory import trajectory_of_one

CONFIG = eval_config(knn={"k": [3], "temperatures": [0.1]}, trajectory={"views": 3}, batch_size=16)


def values(records):
    return {record["metric"]: record["value"] for record in records}


def test_measures_are_those_of_the_features():
    backbone, parts = vit(), splits()
    records = evaluate(backbone, parts, CONFIG, ["trajectory"], seed=4, epoch=2)
    bank, held = (extract_features(backbone, part, progress=False) for part in (parts.train, parts.holdout))
    generator = ViewGenerator([RECIPES["simclr_small"][0][0]], [16], PLAIN)
    images = parts.train.read(torch.arange(40))
    with torch.no_grad():
        views = [backbone.eval()(generator(images, fold_in(4, draw), parts.train.index)[0].image) for draw in range(3)]
    expected = {
        "rank_me": rank_me(bank.features).item(),
        "lidar": lidar(torch.stack(views, 1)).item(),
        "alpha_req": alpha_req(bank.features).item(),
        "top1": knn(bank, held, 3, 0.1)[3],
    }
    assert values(records) == pytest.approx(expected, rel=1e-3)
    assert list(values(records)) == list(expected)
    assert [r["split"] for r in records] == ["train", "train", "train", "holdout"]
    assert {r["epoch"] for r in records} == {2}
    few = changed(CONFIG, trajectory={"images": 20, "lidar_images": 10, "queries": 5})
    limited = evaluate(backbone, parts, few, ["trajectory"])
    assert [(r["images"], r.get("queries")) for r in limited] == [(20, None), (10, None), (20, None), (20, 5)]


def test_labels_are_not_needed():
    found = values(evaluate(vit(), splits(labels=False), CONFIG, ["trajectory"]))
    assert list(found) == ["rank_me", "lidar", "alpha_req"]
    with pytest.raises(UserError, match="no network"):
        evaluate(None, splits(), CONFIG, ["trajectory"])


def records_of(table):
    return [
        Record(protocol="trajectory", split="train", metric=metric, value=value, how={"epoch": epoch})
        for epoch, own in table.items()
        for metric, value in own.items()
    ]


TABLE = {
    9: {"rank_me": 30.0, "lidar": 5.0, "alpha_req": 0.2, "top1": 0.40},
    3: {"rank_me": 10.0, "lidar": 8.0, "alpha_req": 1.3, "top1": 0.50},
    6: {"rank_me": 20.0, "lidar": 8.0, "alpha_req": 0.9, "top1": 0.45},
}


def test_each_measure_chooses_its_best_epoch():
    found = by_epoch(records_of(TABLE))
    assert list(found) == [3, 6, 9]
    accuracy, rank, views, alpha = choices(found)
    assert (accuracy.metric, accuracy.epoch, accuracy.lost, accuracy.agreement) == ("top1", 3, 0.0, None)
    assert (rank.metric, rank.epoch, rank.accuracy, rank.agreement) == ("rank_me", 9, 0.40, -1.0)
    assert rank.lost == pytest.approx(0.10)
    assert (views.epoch, views.lost) == (3, 0.0), "of equal ones the earliest"
    assert (alpha.epoch, alpha.agreement) == (6, pytest.approx(0.5))
    without = choices({epoch: {k: v for k, v in own.items() if k != "top1"} for epoch, own in found.items()})
    assert [(one.metric, one.lost) for one in without] == [("rank_me", None), ("lidar", None), ("alpha_req", None)]
    start = Record(protocol="trajectory", split="train", metric="lidar", value=99.0, how={"epoch": 0, "at": "start"})
    assert list(by_epoch([start, *records_of(TABLE)])) == [3, 6, 9]


def test_a_chart_is_of_several_checkpoints():
    figure = trajectory_of_one(Evaluated(records_of(TABLE), {}))
    assert len(figure.axes) == 4
    assert [list(line.get_xdata()) for line in figure.axes[1].get_lines() if line.get_markersize() == 12] == [[9]]
    assert trajectory_of_one(Evaluated(records_of({3: TABLE[3]}), {})) is None


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "one"
    return train(load_config([*TINY, "trainer.keep_every_epochs=1", f"run_dir={folder}"]))


def test_the_command_measures_every_checkpoint_once(kept, capsys):
    assert main(["trajectory", str(kept), "eval.trajectory.views=2", "eval.knn.k=[3]"]) == 0
    text = capsys.readouterr().out
    assert "chosen by" in text
    assert "RankMe" in text
    found = by_epoch(read_results(kept))
    assert list(found) == [1, 2]
    assert set(found[1]) >= {"rank_me", "lidar", "top1"}
    assert found[1]["rank_me"] != found[2]["rank_me"]
    own = [record for record in read_results(kept) if record.protocol == "trajectory"]
    assert len(own) == sum(map(len, found.values())), "the last checkpoint is that of the second epoch"
    assert (kept / "figures" / "trajectory.png").stat().st_size > 5_000


def test_what_is_no_run_with_checkpoints_is_a_sentence(kept, tmp_path, capsys):
    assert main(["trajectory"]) == 2
    assert "name one run folder" in capsys.readouterr().err
    assert main(["trajectory", str(tmp_path)]) == 2
    assert "holds no checkpoints" in capsys.readouterr().err
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes((kept / "checkpoints" / "last.ckpt").read_bytes())
    assert main(["trajectory", str(tmp_path)]) == 2
    assert "trainer.keep_every_epochs=1" in capsys.readouterr().err
