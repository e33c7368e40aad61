"""What is around a training does not change what it learns; ``trainer.deterministic`` asks torch for the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from states import assert_same_state
from tiny import TINY, TINY_METHOD

from selfsup.config import load_config
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.methods import Method

#: What changes nothing, each by itself in ``test_each_by_itself`` and all at once for every method here.
AROUND = {
    "workers": ["data.workers=2"],
    "reading": ["data.resident_limit_mb=64"],
    "rows": ["trainer.log_every_steps=1", "logger.tensorboard=true"],
    "progress": ["trainer.progress=true"],
    "looks": ["online.every_epochs=1"],
    "checkpoints": ["trainer.checkpoint_every_steps=1", "trainer.keep_every_epochs=1"],
    "deterministic": ["trainer.deterministic=error"],
}
PLAIN = [
    "data.workers=0",
    "data.resident_limit_mb=0",
    "online.every_epochs=0",
    "trainer.log_every_steps=100",
    "trainer.checkpoint_every_epochs=2",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files, which workers decode."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    assert not torch.are_deterministic_algorithms_enabled()


def trained(method: str, images: Path, run: Path, *more: str) -> Path:
    shapes = ("data.train_size", "data.test_size")
    tiny = [word for word in TINY if not word.startswith(shapes)]
    source = ["data=image_folder", f"data.root={images}", "data.image_size=16", "data.holdout=0.1"]
    words = [f"method={method}", *TINY_METHOD.get(method, []), *source, *tiny, "batch_size=16", *PLAIN, *more]
    return train(load_config([*words, f"run_dir={run}"]))


@pytest.mark.parametrize("method", ["simclr", "moco", "byol", "swav"])
def test_workers_rows_looks_and_checkpoints_change_no_weight(method: str, images: Path, tmp_path: Path) -> None:
    plain = trained(method, images, tmp_path / "plain")
    every = [word for words in AROUND.values() for word in words]
    assert_same_state(plain, trained(method, images, tmp_path / "every", *every))


@pytest.mark.long
@pytest.mark.parametrize("name", AROUND)
def test_each_by_itself(name: str, images: Path, tmp_path: Path) -> None:
    plain = trained("moco", images, tmp_path / "plain")
    assert_same_state(plain, trained("moco", images, tmp_path / "one", *AROUND[name]))


def test_an_operation_without_a_deterministic_form(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``error`` ends the run and names it, ``warn`` names it and goes on, ``off`` asks for nothing."""
    config = tiny_config("simclr", "trainer.max_epochs=1", "online.every_epochs=0")
    step = Method.training_step

    def put(self: Method, batch: Any, batch_idx: int) -> Any:
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", put)

    def ask(mode: str) -> Any:
        trainer = dataclasses.replace(config.trainer, deterministic=mode)
        return dataclasses.replace(config, trainer=trainer, run_dir=f"{config.run_dir}-{mode}")

    with pytest.raises(UserError, match=r"trainer.deterministic=error: put_ has no deterministic form .*=warn"):
        train(ask("error"))
    plain = train(ask("off"))
    with pytest.warns(UserWarning, match="put_ does not have a deterministic implementation"):
        warned = train(ask("warn"))
    assert_same_state(plain, warned)
