"""The race to an accuracy: what is copied when, where a run reaches the target, and what is never looked at."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def speedrun(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)  # where a script finds what lies beside it
    import speedrun

    yield speedrun
    for name in ("speedrun", "measure"):
        sys.modules.pop(name, None)


def test_weights_are_copied_with_the_seconds_since_the_first_step(speedrun, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(speedrun.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(speedrun, "EVERY_IMAGES", 100)
    module = SimpleNamespace(backbone=nn.Linear(1, 1, bias=False), device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=8, should_stop=False)
    copies = speedrun.Copies(batch_size=40, seconds=35.0)
    stopped = []
    for step in range(1, 9):
        copies.on_train_batch_start(trainer, module, None, 0)
        clock[0] += 6.0
        nn.init.constant_(module.backbone.weight, step)
        trainer.global_step = step
        copies.on_train_batch_end(trainer, module, None, None, 0)
        stopped.append(trainer.should_stop)
    # the first steps at or past 100, 200 and 300 images, and the last one
    assert [copy["images"] for copy in copies.copies] == [120, 200, 320]
    assert [copy["seconds"] for copy in copies.copies] == [18.0, 30.0, 48.0]
    assert [copy["state"]["weight"].item() for copy in copies.copies] == [3.0, 5.0, 8.0]
    assert stopped == [False] * 7 + [True]


class Referee:
    """Says the weight is the accuracy, and counts."""

    def __init__(self):
        self.network = nn.Linear(1, 1, bias=False)
        self.tests = []

    def held_out(self):
        return self.network.weight.item()

    def test(self):
        self.tests.append(self.network.weight.item())
        return self.network.weight.item() - 0.125


def saved_run(path, accuracies):
    copies = [
        {"images": 100 * n, "seconds": 10.0 * n, "state": {"weight": torch.full((1, 1), value)}}
        for n, value in enumerate(accuracies, 1)
    ]
    torch.save({"contender": "a", "seed": 3, "imports": 2.0, "before_first_step": 5.0, "copies": copies}, path)


def test_a_run_is_judged_up_to_the_target_and_tested_once(speedrun, tmp_path):
    path, referee = tmp_path / "a.pt", Referee()
    saved_run(path, [0.5, 0.75, 0.625, 0.875])
    speedrun.judge_run(path, referee, 0.75)
    speedrun.judge_run(path, referee, 0.75)  # what is known is not done again
    run = json.loads(path.with_suffix(".json").read_text())
    assert [point["held_out"] for point in run["curve"]] == [0.5, 0.75]
    assert referee.tests == [0.75]
    row = speedrun.row(run, 0.75)
    assert (row["seconds to the target"], row["held-out"], row["test"]) == (20.0, "75.0%", "62.5%")
    assert (row["before the first step, s"], row["everything, s"]) == (5.0, 25.0)


def test_a_run_that_misses_the_target_is_not_tested(speedrun, tmp_path):
    path, referee = tmp_path / "a.pt", Referee()
    saved_run(path, [0.5, 0.75, 0.625])
    speedrun.judge_run(path, referee, 0.8)
    run = json.loads(path.with_suffix(".json").read_text())
    assert referee.tests == []
    row = speedrun.row(run, 0.8)
    assert (row["seconds to the target"], row["held-out"], row["test"]) == ("not in 30", "75.0%", None)
    assert row["everything, s"] is None
    (summary,) = speedrun.summaries([run], 0.8)
    assert summary == {"contender": "a", "seed": "0 of 1 reached it"}


def test_the_summary_is_the_median_over_seeds(speedrun):
    runs = [
        {
            "contender": "a",
            "before_first_step": 1.0,
            "curve": [{"held_out": 0.5, "seconds": 1.0}, {"held_out": 0.8, "seconds": s, "test": t}],
        }
        for s, t in ((30.0, 0.7), (10.0, 0.8), (20.0, 0.75))
    ]
    (summary,) = speedrun.summaries(runs, 0.8)
    assert summary["seed"] == "3 of 3 reached it"
    assert summary["seconds to the target"] == "median 20.0"
    assert summary["everything, s"] == "median 21.0"
    assert summary["test"] == "mean 75.0%"
