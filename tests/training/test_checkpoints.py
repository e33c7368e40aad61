"""Which checkpoints a run keeps, and Lightning's own callbacks beside them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from states import assert_same_state, differences

from selfsup.checkpoint import read_checkpoint
from selfsup.engine.callbacks import OnlineEvaluation
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.opened import load_backbone

Config = Callable[..., Any]
KNN = [0.25, 0.75, 0.5, 0.75]  # of the epochs, in place of what tiny networks happen to reach


@pytest.fixture(autouse=True)
def evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the online evaluation find KNN."""

    def look(self: OnlineEvaluation, module: Any) -> dict[str, float]:
        return {"health/std": 1.0, "health/rank": 4.0, "online/knn": KNN[module.current_epoch]}

    monkeypatch.setattr(OnlineEvaluation, "look", look)


class Stop(pl.Callback):
    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 3:
            raise InterruptedError


def epochs(run: Path) -> dict[str, int]:
    return {p.name: read_checkpoint(p)["selfsup"]["epochs_done"] for p in (run / "checkpoints").iterdir()}


def test_checkpoints_are_kept_every_few_epochs_and_of_the_best(tiny_config: Config) -> None:
    settings = ["trainer.max_epochs=4", "trainer.keep_every_epochs=2", "trainer.keep_best=online/knn"]
    run = train(tiny_config("simclr", *settings))
    # the fourth is as good as the second, and later
    assert epochs(run) == {"last.ckpt": 4, "best.ckpt": 2, "epoch-0002.ckpt": 2, "epoch-0004.ckpt": 4}
    assert load_backbone(run / "checkpoints" / "best.ckpt").dim == load_backbone(run).dim
    states = [read_checkpoint(run / "checkpoints" / f"{name}.ckpt")["state_dict"] for name in ("best", "last")]
    assert differences(*states)
    parts = tiny_config("simclr", *settings, "resume=auto", run="parts")
    with pytest.raises(InterruptedError):
        train(parts, [Stop()])
    (Path(parts.run_dir) / "checkpoints" / "best.ckpt").unlink()
    train(parts)  # 0.75 was there before the stop, so it is no new best
    assert "best.ckpt" not in epochs(Path(parts.run_dir))
    assert_same_state(run, Path(parts.run_dir))


def test_lightning_s_callbacks_follow_the_evaluation_and_resume(tiny_config: Config) -> None:
    def callbacks(run: str) -> list[pl.Callback]:
        keep = ModelCheckpoint(monitor="online/knn", mode="max", save_top_k=1, filename="top")
        return [keep, EarlyStopping("online/knn", mode="max", patience=2)]

    settings = ["trainer.max_epochs=9", "trainer.checkpoint_every_epochs=5"]
    whole = train(tiny_config("simclr", *settings), callbacks("whole"))
    assert epochs(whole) == {"top.ckpt": 2, "last.ckpt": 4}  # nothing better in the two epochs after the second
    state = read_checkpoint(whole)["callbacks"]
    stopper = next(value for key, value in state.items() if key.startswith("EarlyStopping"))
    assert (stopper["wait_count"], stopper["stopped_epoch"]) == (2, 3)

    parts = tiny_config("simclr", *settings[:1], "resume=auto", run="parts")
    with pytest.raises(InterruptedError):
        train(parts, [*callbacks("parts"), Stop()])
    train(parts, callbacks("parts"))
    assert_same_state(whole, Path(parts.run_dir))
    resumed = read_checkpoint(parts.run_dir)["callbacks"]
    assert next(value for key, value in resumed.items() if key.startswith("EarlyStopping")) == stopper
    with (Path(parts.run_dir) / "metrics.csv").open() as file:
        knn = [row["online/knn"] for row in csv.DictReader(file) if row["online/knn"]]
    assert knn == ["0.25", "0.75", "0.5", "0.75"]


@pytest.mark.parametrize(
    ("callback", "every"),
    [(EarlyStopping("online/knn"), 2), (ModelCheckpoint(monitor="online/knn", every_n_epochs=3), 2)],
)
def test_a_metric_that_is_not_there_in_time_is_refused(callback: pl.Callback, every: int, tiny_config: Config) -> None:
    with pytest.raises(UserError, match=r"online\.every_epochs=2"):
        train(tiny_config("simclr", f"online.every_epochs={every}"), [callback])


def test_the_last_step_of_an_epoch_is_saved_after_its_evaluation(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed during an evaluation goes on from before it, and its row is there in the end."""
    settings = ["trainer.checkpoint_every_steps=2", "trainer.checkpoint_every_epochs=9"]
    whole = train(tiny_config("simclr", *settings, run="whole"))
    parts = tiny_config("simclr", *settings, "resume=auto", run="parts")

    def killed(*_: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(OnlineEvaluation, "look", killed)
        with pytest.raises(InterruptedError):
            train(parts)
    assert read_checkpoint(parts.run_dir)["global_step"] == 2
    train(parts)
    assert_same_state(whole, Path(parts.run_dir))
    assert (whole / "metrics.csv").read_bytes() == (Path(parts.run_dir) / "metrics.csv").read_bytes()
    assert load_resumed_config([f"resume={whole}"]).resume == str(whole)
