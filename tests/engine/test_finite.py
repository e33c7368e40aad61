"""Numbers that stop being finite: the run stops before the weights move, names the place, and keeps the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.engine.capture import FILE, read_capture
from selfsup.engine.replaying import replay
from selfsup.engine.tracing import finite
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.methods import Method

QUICK = ["online.every_epochs=0", "data.train_size=54", "trainer.log_every_steps=100"]  # three steps an epoch


class Poison(pl.Callback):
    """Put an infinity into a gradient, or a NaN into a weight before a step."""

    def __init__(self, step: int, what: str) -> None:
        self.step, self.what = step, what
        self.losses: list[Tensor] = []
        self.state: dict[str, Tensor] = {}
        self.progress = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.state = {name: value.clone() for name, value in module.state_dict().items()}
            self.progress = module.progress
        if self.what == "weight" and trainer.global_step == self.step:
            with torch.no_grad():
                module.backbone.network.layer1[0].conv1.weight[0, 0] = float("nan")

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        self.losses.append(loss.detach().clone())

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if self.what == "gradient" and trainer.global_step == self.step:
            module.backbone.network.layer1[0].conv1.weight.grad[0, 0] = float("inf")


@pytest.mark.parametrize("method", ["moco", "swav", "dino", "wmse"])
def test_a_gradient_stops_the_run_and_the_step_is_taken_again_bit_for_bit(
    method: str, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    """What these keep from step to step (queues, prototypes, centre, momentum) is what it was before the step."""
    poison = Poison(4, "gradient")
    with pytest.raises(UserError, match=r"gradient of backbone\.network\.layer1\.0\.conv1\.weight .* at step 4"):
        train(tiny_config(method, *QUICK), [poison])
    found = replay(tmp_path / "run")
    assert found.captured.state.keys() == poison.state.keys()
    assert all(torch.equal(value, poison.state[name]) for name, value in found.captured.state.items())
    assert found.captured.step / found.captured.total_steps == poison.progress
    assert found.captured.loss.isfinite()
    assert torch.equal(found.captured.loss, poison.losses[-1])
    assert torch.equal(found.trace.loss, poison.losses[-1])
    assert found.trace.place is None  # nobody poisons it here
    assert found.same
    assert main(["replay", str(tmp_path / "run")]) == 0


def test_a_weight_is_named_and_the_checkpoint_stays(
    tiny_config: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "backbone.network.layer1.0.conv1.weight, before the step"
    run = tmp_path / "run"
    with pytest.raises(UserError, match="not finite") as stopped:
        train(tiny_config("simclr", *QUICK), [Poison(4, "weight")])
    for part in (place, str(run / "checkpoints" / "last.ckpt"), f"selfsup replay {run}", "optimizer.lr", "at step 4"):
        assert part in str(stopped.value)
    held = read_checkpoint(run)
    assert held["global_step"] == 3
    assert all(value.isfinite().all() for value in held["state_dict"].values())
    captured = read_capture(run / FILE)
    assert (captured.step, captured.epoch, captured.batch_idx) == (4, 1, 1)
    assert captured.batch.image.dtype == torch.uint8
    assert bool(captured.loss.isnan())
    weights = sum(value.numel() * value.element_size() for value in captured.state.values())
    assert (run / FILE).stat().st_size < weights + captured.batch.image.numel() + 200 * len(captured.state) + 2**15
    assert main(["replay", str(run / FILE)]) == 1
    out = capsys.readouterr().out
    assert f"first place that is not finite: {place}" in out
    assert "the run said the same" in out


class Rooted(nn.Module):
    """Adds a finite number whose gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).sqrt()


def test_the_first_gradient_is_named_in_the_order_of_the_backward_pass(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfsup.methods.simclr import SimCLR

    original = SimCLR.__init__

    def rooted(self: Any, *given: Any) -> None:
        original(self, *given)
        self.head = nn.Sequential(self.head, Rooted(), nn.Linear(128, 4))

    monkeypatch.setattr(SimCLR, "__init__", rooted)
    with pytest.raises(UserError, match=r"the first place is the gradient at the output of head\.0"):
        train(tiny_config("simclr", *QUICK))
    found = replay(tmp_path / "run")
    assert found.same
    assert found.trace.loss.isfinite()
    assert found.trace.place is not None
    assert found.trace.place.what.startswith("the gradient at the output of head.0")


def test_where_looking_waits_a_resumed_run_looks_at_each_step(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Method, "reading_waits", True)
    run, config = tmp_path / "run", tiny_config("simclr", *QUICK)
    with pytest.raises(UserError, match=r"before the step.* selfsup train resume="):
        train(config, [Poison(3, "gradient")])
    assert read_capture(run / FILE).step == 5  # the last of the epoch, where a checkpoint is due
    config.resume = str(run)
    with pytest.raises(UserError, match=r"gradient of backbone\.network\.layer1\.0\.conv1\.weight"):
        train(config, [Poison(3, "gradient")])
    assert read_capture(run / FILE).step == 3


def test_a_step_that_cannot_be_kept_is_told_all_the_same(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("selfsup.engine.capture.torch.save", full)
    with pytest.raises(UserError, match=r"gradient of .* step could not be kept: .*No space left"):
        train(tiny_config("simclr", *QUICK), [Poison(0, "gradient")])
    assert not [path.name for path in (tmp_path / "run").iterdir() if FILE in path.name]


def test_a_large_number_is_finite() -> None:
    assert finite([torch.tensor([1e30, 1.0]), torch.zeros(2)])  # its square is not
    assert not finite([torch.zeros(2), torch.tensor([1.0, float("-inf")])])


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"selfsup_capture": 1}, None])
def test_what_is_no_captured_step_is_one_sentence(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        torch.save(content, tmp_path / FILE)
    assert main(["replay", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert FILE in err
    assert len(err.splitlines()) == 1
