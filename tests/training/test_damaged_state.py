"""A checkpoint that a training cannot go on from is refused in a sentence, whatever part of it is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import tiny

from selfsup.config import load_config
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError

Content = dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one epoch, to copy."""
    run = tmp_path_factory.mktemp("damaged") / "run"
    return train(load_config([*tiny("simclr"), "trainer.max_epochs=1", "online.every_epochs=0", f"run_dir={run}"]))


def damage(trained: Path, folder: Path, change: Callable[[Content], object]) -> Path:
    run = Path(shutil.copytree(trained, folder / "run"))
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    return run


def resume(run: Path, *callbacks: pl.Callback) -> None:
    train(load_resumed_config([f"resume={run}", "trainer.max_epochs=2"]), callbacks)


LACKING: dict[str, Callable[[Content], object]] = {
    "optimizer_states": lambda c: c.update(optimizer_states=[]),
    "lr_schedulers": lambda c: c.update(lr_schedulers=[3]),
    "loops": lambda c: c.update(loops=[]),
    "callbacks": lambda c: c.update(callbacks=[1]),
    "global_step": lambda c: c.update(global_step="x"),
    "loops, global_step": lambda c: c.update(loops=None, global_step=-1),
}


@pytest.mark.parametrize("names", LACKING)
def test_what_a_training_goes_on_from_is_looked_at_before_anything_is_built(
    names: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"lacks what a training needs to go on \({names}\)"):
        resume(damage(trained, tmp_path, LACKING[names]))


PARTS: dict[str, Callable[[Content], object]] = {
    "the optimiser": lambda c: c.update(optimizer_states=[{}]),
    "its groups": lambda c: c["optimizer_states"][0]["param_groups"].pop(),
    "its schedule": lambda c: c.update(lr_schedulers=[{}]),
    "Lightning's counters": lambda c: c.update(loops={}),
    "one of them": lambda c: c["loops"]["fit_loop"].update({"epoch_loop.batch_progress": 3}),
    "a callback": lambda c: c["callbacks"].update(Stopwatch=5),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_does_not_fit_its_owner_is_a_sentence(part: str, trained: Path, tmp_path: Path) -> None:
    run = damage(trained, tmp_path, PARTS[part])
    with pytest.raises(UserError, match=r"^resume: .*last\.ckpt does not fit the training .*; take another checkpoint"):
        resume(run)


def test_weights_of_whole_numbers_are_refused(trained: Path, tmp_path: Path) -> None:
    def change(content: Content) -> None:
        name = next(key for key, value in content["state_dict"].items() if value.ndim > 1)
        content["state_dict"][name] = content["state_dict"][name].long()

    with pytest.raises(UserError, match="the saved weights do not fit"):
        resume(damage(trained, tmp_path, change))


class Wrong(pl.Callback):
    def on_train_start(self, *_: Any) -> None:
        raise KeyError("of one's own")


def test_an_error_of_the_training_itself_stays_what_it_is(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="of one's own"):
        resume(damage(trained, tmp_path, lambda content: None), Wrong())
