"""The race to an accuracy: what is copied when, where a run reaches the target, and what is never looked at."""

import json
import multiprocessing
import sys
import time
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
    for name in ("speedrun", "measure", "races", "setups", "tiny_images"):
        sys.modules.pop(name, None)


def test_weights_are_copied_with_the_seconds_since_the_first_step(speedrun, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(speedrun.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(speedrun, "processor_seconds", lambda: 2 * clock[0])
    module = SimpleNamespace(backbone=nn.Linear(1, 1, bias=False), device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=8, should_stop=False)
    copies = speedrun.Copies(batch_size=40, every_images=100, seconds=35.0)
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
    assert [copy["core_seconds"] for copy in copies.copies] == [36.0, 60.0, 96.0]
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
        {
            "images": 100 * n,
            "seconds": 10.0 * n,
            "core_seconds": 15.0 * n,
            "state": {"weight": torch.full((1, 1), value)},
        }
        for n, value in enumerate(accuracies, 1)
    ]
    torch.save({"contender": "a", "seed": 3, "imports": 2.0, "before_first_step": 5.0, "copies": copies}, path)


def test_a_run_is_judged_up_to_the_target_and_tested_once(speedrun, tmp_path):
    path, referee = tmp_path / "a.pt", Referee()
    saved_run(path, [0.5, 0.75, 0.625, 0.875])
    speedrun.judge_run(path, referee, [0.75])
    speedrun.judge_run(path, referee, [0.75])  # what is known is not done again
    run = json.loads(path.with_suffix(".json").read_text())
    assert [point["held_out"] for point in run["curve"]] == [0.5, 0.75]
    assert referee.tests == [0.75]
    row = speedrun.row(run, 0.75)
    assert (row["seconds to the target"], row["held-out"], row["test"]) == (20.0, "75.0%", "62.5%")
    assert (row["before the first step, s"], row["everything, s"]) == (5.0, 25.0)
    assert row["core-seconds"] == 30.0


def test_each_target_is_tested_once_and_the_last_one_ends_it(speedrun, tmp_path):
    path, referee = tmp_path / "a.pt", Referee()
    saved_run(path, [0.5, 0.75, 0.625, 0.875, 0.9375])
    targets = [0.5, 0.7, 0.75, 0.8]  # one copy reaches two of them
    speedrun.judge_run(path, referee, targets)
    speedrun.judge_run(path, referee, targets)
    run = json.loads(path.with_suffix(".json").read_text())
    assert [point["held_out"] for point in run["curve"]] == [0.5, 0.75, 0.625, 0.875]
    assert referee.tests == [0.5, 0.75, 0.875]
    assert [speedrun.row(run, target)["core-seconds"] for target in targets] == [15.0, 30.0, 30.0, 60.0]


def test_a_run_that_misses_the_target_is_not_tested(speedrun, tmp_path):
    path, referee = tmp_path / "a.pt", Referee()
    saved_run(path, [0.5, 0.75, 0.625])
    speedrun.judge_run(path, referee, [0.8])
    run = json.loads(path.with_suffix(".json").read_text())
    assert referee.tests == []
    row = speedrun.row(run, 0.8)
    assert (row["seconds to the target"], row["held-out"], row["test"]) == ("not in 30", "75.0%", None)
    assert row["everything, s"] is None
    assert row["core-seconds"] == "not in 45"
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


def test_a_rehearsal_on_cifar10_runs_whole_and_repeats_nothing(speedrun, tmp_path, monkeypatch):
    from tiny_images import write_images

    write_images(tmp_path, "cifar10", 10, 2)
    out = tmp_path / "out"
    words = ["--data", "cifar10", "--root", str(tmp_path), "--contenders", "selfsup", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["speedrun.py", *words, "--out", str(out), "--threads", "1", "--rehearse"])
    speedrun.main()
    saved = json.loads((out / "speedrun.json").read_text())
    assert "REHEARSAL" in saved["protocol"]
    assert "JPEG copy" in saved["protocol"]
    (run,) = [row for row in saved["rows"] if row["seed"] == 1 and row["target"] == "0%"]
    assert run["test"] is not None
    (never,) = [row for row in saved["rows"] if row["seed"] == 1 and row["target"] == "200%"]
    assert never["seconds to the target"].startswith("not in")
    curve = json.loads((out / "selfsup-seed1.json").read_text())["curve"]
    assert all(point["images"] > 0 and point["core_seconds"] > 0 for point in curve)
    monkeypatch.setattr(speedrun.subprocess, "run", None)
    monkeypatch.setattr(speedrun.Judge, "held_out", None)
    speedrun.main()  # what is there is not repeated


def test_workers_at_work_count_in_the_processor_seconds(speedrun):
    from measure import processor_seconds

    before = processor_seconds()
    parent, child = multiprocessing.get_context("fork").Pipe()
    worker = multiprocessing.get_context("fork").Process(target=busy, args=(child,))
    worker.start()
    parent.recv()  # it has worked, and still runs
    assert worker.is_alive()
    assert processor_seconds() - before >= 0.3
    parent.send(None)
    worker.join()


def busy(pipe):
    """Work for 0.4 processor seconds, and wait for the end."""
    while time.process_time() < 0.4:
        pass
    pipe.send(None)
    pipe.recv()
