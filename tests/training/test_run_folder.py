"""The same line starts a run or goes on with it; what a kill left out is made up for; one trains at a time."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import pytorch_lightning as pl
from PIL import Image
from states import assert_same_state
from tiny import TINY

from selfsup.checkpoint import read_checkpoint
from selfsup.engine import run_folder
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.eval import read_results

Config = Callable[..., Any]


class KillAt(pl.Callback):
    """End the training as a kill would: after a step, with nothing saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_line_starts_goes_on_and_ends(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train(tiny_config(run="whole"))
    line = tiny_config("simclr", "resume=auto", run="parts")
    for step in (2, 6):  # before the first checkpoint, and after it
        with pytest.raises(InterruptedError):
            train(line, [KillAt(step)])
    run = Path(line.run_dir)
    assert read_checkpoint(run)["global_step"] == 4
    train(line)
    assert_same_state(whole, run)
    assert rows(whole) == rows(run)
    assert "optimizer" not in (run / "config.yaml").read_text().partition("method:")[0]  # no history: nothing changed
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert train(line) == run
    assert "already trained its 2 epochs, and nothing is missing" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(tiny_config("simclr", "resume=auto", "trainer.max_epochs=3", run="parts"))
    assert "trainer.max_epochs was 2, now 3" in capsys.readouterr().out
    assert read_checkpoint(run)["selfsup"]["epochs_done"] == 3


def test_auto_refuses_another_run_and_folders_of_other_things(tiny_config: Config, tmp_path: Path) -> None:
    train(tiny_config("simclr", "trainer.max_epochs=1"))
    with pytest.raises(UserError, match=r"method\.name was simclr, now moco"):
        train(tiny_config("moco", "resume=auto"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(UserError, match="does not begin with"):
        train(tiny_config("simclr", "resume=auto", run="photos"))
    config = tiny_config("simclr", "resume=auto")
    config.run_dir = None
    with pytest.raises(UserError, match="set run_dir"):
        train(config)


def test_a_run_without_a_checkpoint_says_how_it_starts_again(tiny_config: Config) -> None:
    config = tiny_config()
    with pytest.raises(InterruptedError):
        train(config, [KillAt(1)])
    with pytest.raises(UserError, match="resume=auto"):
        train(config)
    with pytest.raises(UserError, match="before its first checkpoint"):
        load_resumed_config([f"resume={config.run_dir}"])


def test_what_a_kill_after_the_last_checkpoint_left_out_is_made_up_for(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_config("simclr", "trainer.max_epochs=1"))
    (record,) = read_results(run)
    (run / "results.json").unlink()
    (run / "figures" / "training.png").unlink()
    with (run / "metrics.csv").open("a") as file:
        file.write("0,3,0.1")  # a torn line
    with pytest.warns(UserWarning, match="cut short"):
        train(load_resumed_config([f"resume={run}"]))
    assert "repaired: results.json, metrics.csv, figures/training.png" in capsys.readouterr().out
    (again,) = read_results(run)
    measured = {"value", "peak_memory_mb"}
    assert {k: v for k, v in again.items() if k not in measured} == {
        k: v for k, v in record.items() if k not in measured
    }
    with pytest.raises(UserError, match="nothing is missing"):
        train(load_resumed_config([f"resume={run}"]))


def test_a_torn_and_spreadsheet_saved_metrics_file_goes_on(tiny_config: Config) -> None:
    whole = train(tiny_config(run="whole"))
    config = tiny_config("simclr", run="parts")
    with pytest.raises(InterruptedError):
        train(config, [KillAt(6)])
    path = Path(config.run_dir) / "metrics.csv"
    text = path.read_bytes().decode().replace("\r\n", "\n").rstrip("\n")
    path.write_bytes(("\ufeff" + text[:-3]).encode())
    with pytest.warns(UserWarning, match="its last line was cut short"):
        train(load_resumed_config([f"resume={config.run_dir}"]))
    assert rows(whole) == rows(Path(config.run_dir))


def test_one_training_at_a_time(tiny_config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.0)
    run = train(tiny_config("simclr", "trainer.max_epochs=1"))
    config = load_resumed_config([f"resume={run}", "trainer.max_epochs=2"])
    with run_folder.held(run), pytest.raises(UserError, match="being trained by another process"):
        train(config)
    assert read_checkpoint(run)["global_step"] == 4
    train(config)  # once it is free


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_epochs=0",
        "trainer.max_epochs=-1",
        "trainer.log_every_steps=0",
        "trainer.accumulate=0",
        "trainer.checkpoint_every_epochs=0",
        "trainer.checkpoint_every_steps=0",
        "trainer.keep_every_epochs=0",
        "batch_size=0",
        "data.workers=-1",
        "seed=-1",
        "online.every_epochs=-1",
        "trainer.keep_best=online/kn",
        "trainer.precision=16-mixed",
        "trainer.accelerator=gpu",
    ],
)
def test_numbers_and_devices_that_cannot_be_are_refused_before_a_folder_is_made(
    override: str, tiny_config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0].split(".")[0]):
        train(tiny_config("simclr", override))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_and_a_full_disk_are_known_before(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="batch_size is 1"):
        train(tiny_config("simclr", "batch_size=1"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"2 checkpoints of .* make room"):
        train(tiny_config())
    assert list(tmp_path.iterdir()) == []


def test_changes_that_cannot_be_read_are_one_sentence(tiny_config: Config) -> None:
    run = train(tiny_config("simclr", "trainer.max_epochs=1"))
    (run / "changes.json").write_text(json.dumps({"changes": [{"step": "x"}]}))
    with pytest.raises(UserError, match=r"changes\.json is broken"):
        train(load_resumed_config([f"resume={run}", "trainer.max_epochs=2"]))


@pytest.mark.slow
def test_a_signal_to_the_whole_process_group_leaves_a_checkpoint(tmp_path: Path) -> None:
    """As a cluster sends it: to the loader's workers too."""
    images = tmp_path / "images"
    for number in range(24):
        (images / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 20 + number).convert("RGB").save(images / f"c{number % 2}" / f"{number}.png")
    run = tmp_path / "run"
    data = ["data=image_folder", f"data.root={images}", "data.image_size=32", "data.resident_limit_mb=0"]
    tiny = [s for s in TINY if not s.startswith(("data.", "batch_size", "trainer.max_epochs"))]
    settings = [*data, "data.workers=2", "batch_size=8", "trainer.max_epochs=1000", "augment.compile=false"]
    running = processes.Running(processes.command, ["train", *settings, *tiny, f"run_dir={run}"], tmp_path, leads=True)
    try:
        processes.wait_for((run / "checkpoints" / "last.ckpt").exists, running)
        os.killpg(running.pid, signal.SIGTERM)
        done = running.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert f"resume={run}" in done.stderr
