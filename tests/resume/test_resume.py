"""A run that was stopped and resumed is, bit for bit, the run that was never stopped."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from states import assert_same_state
from tiny import tiny

from selfsup.augment import compiled
from selfsup.checkpoint import read_checkpoint
from selfsup.config import load_config
from selfsup.engine.stop import Interrupted
from selfsup.engine.training import load_resumed_config, train
from selfsup.errors import UserError
from selfsup.registry import methods


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process SIGTERM in the middle of a step, as a cluster would."""
    from selfsup.methods import Method

    original = Method.training_step
    sent = False

    def step(self: Any, batch: Any, batch_idx: int) -> Any:
        nonlocal sent
        if self.trainer.global_step == steps - 1 and not sent:
            sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", step)


@pytest.mark.parametrize("method", list(methods))
def test_resumed_equals_uninterrupted(
    method: str, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the first of two epochs of four steps, at its end, and in the middle of the second."""
    whole = train(tiny_config(method, run="whole"))
    expected = list(csv.DictReader((whole / "metrics.csv").open()))
    assert len({row["step"] for row in expected}) == 8
    for steps in (2, 4, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted) as stopped:
                train(tiny_config(method, run=f"parts{steps}"))
        assert stopped.value.signal == signal.SIGTERM
        parts = stopped.value.checkpoint.parent.parent
        assert read_checkpoint(parts)["global_step"] == steps
        train(load_resumed_config([f"resume={parts}"]))
        assert_same_state(whole, parts)
        assert list(csv.DictReader((parts / "metrics.csv").open())) == expected, steps


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_views_resume(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # without jitter, which takes ten seconds to compile
    settings = ["augment.compile=true", "augment.operations=[flip,gray]"]
    graphs = torch._dynamo.utils.counters["stats"]
    compiled._function.cache_clear()
    before = graphs["unique_graphs"]
    whole = train(tiny_config("simclr", *settings, run="whole"))
    assert graphs["unique_graphs"] == before + 1
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("simclr", *settings, run="parts"))
    parts = stopped.value.checkpoint.parent.parent
    compiled._function.cache_clear()  # as in a new process
    torch._dynamo.reset()
    train(load_resumed_config([f"resume={parts}"]))
    assert graphs["unique_graphs"] == before + 2
    assert_same_state(whole, parts)


def test_stochastic_depth_of_subsets_resumes(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which images are left out is drawn by the step, not by a generator that has gone on."""
    settings = ["backbone.subset_drop_path=0.5"]
    whole = train(tiny_config("simmim", *settings, run="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("simmim", *settings, run="parts"))
    parts = stopped.value.checkpoint.parent.parent
    train(load_resumed_config([f"resume={parts}"]))
    assert_same_state(whole, parts)
    with pytest.raises(AssertionError):
        assert_same_state(train(tiny_config("simmim", run="without")), parts)


def test_a_gram_teacher_resumes(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renewed at the start of both epochs; a run that stops behind that goes on with the one it had."""
    settings = ["method.gram_weight=1", "method.gram_every_epochs=1", "method.momentum=0.9"]
    whole = train(tiny_config("dinov2", *settings, run="whole"))
    for steps in (2, 6):
        with monkeypatch.context() as patch:
            stop_after(patch, steps)
            with pytest.raises(Interrupted) as stopped:
                train(tiny_config("dinov2", *settings, run=f"parts{steps}"))
        parts = stopped.value.checkpoint.parent.parent
        train(load_resumed_config([f"resume={parts}"]))
        assert_same_state(whole, parts)


def test_the_comparison_notices_a_difference(tiny_config: Callable[..., Any]) -> None:
    one, other = train(tiny_config("moco", run="a")), train(tiny_config("moco", "seed=1", run="b"))
    with pytest.raises(AssertionError):
        assert_same_state(one, other)


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_accumulation_dropout_and_extra_augmentations_resume(
    precision: str, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        f"trainer.precision={precision}",
        "backbone=resnet18",
        "backbone.kwargs.drop_path_rate=0.5",
        "backbone.kwargs.channels=[4,8,8,8]",
        "trainer.accumulate=2",
        "optimizer=adamw",
        "augment.extra=[{name: RandomErasing, params: {p: 0.5}}]",
    ]
    whole = train(tiny_config("simclr", *settings, run="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("simclr", *settings, run="parts"))
    parts = stopped.value.checkpoint.parent.parent
    assert read_checkpoint(parts)["global_step"] == 1  # never in the middle of an accumulated step
    train(load_resumed_config([f"resume={parts}"]))
    assert_same_state(whole, parts)


def test_the_saved_configuration_starts_the_same_run(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    first = train(tiny_config("moco", run="first"))
    again = load_config([f"run_dir={tmp_path / 'again'}"], file=first / "config.yaml")
    assert_same_state(first, train(again))


def test_a_finished_run_does_not_go_on(tiny_config: Callable[..., Any]) -> None:
    run = train(tiny_config())
    with pytest.raises(UserError, match="already trained"):
        train(load_resumed_config([f"resume={run}"]))


@pytest.mark.parametrize("override", ["method=moco", "method.name=moco", "backbone.name=resnet18", "data.name=digits"])
def test_resume_refuses_another_run(override: str, tiny_config: Callable[..., Any]) -> None:
    run = train(tiny_config("simclr", "trainer.max_epochs=1"))
    with pytest.raises(UserError):
        train(load_resumed_config([f"resume={run}", override]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_command_leave_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*tiny("moco"), "trainer.max_epochs=1000", f"run_dir={run}"]
    running = processes.Running(processes.command, ["train", *settings], tmp_path)
    processes.wait_for((run / "checkpoints" / "last.ckpt").exists, running)
    running.signal(number)
    done = running.wait(60)
    assert done.returncode == 128 + number
    assert f"resume={run}" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_checkpoint(run)["global_step"] > 0


def test_chunks_and_activation_checkpoints_resume(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        "backbone=resnet18",
        "backbone.kwargs={drop_path_rate: 0.5, channels: [4, 8, 8, 8]}",
        "trainer.chunk_size=6",
        "trainer.activation_checkpointing=true",
    ]
    whole = train(tiny_config("simclr", *settings, run="whole"))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted) as stopped:
            train(tiny_config("simclr", *settings, run="parts"))
    parts = stopped.value.checkpoint.parent.parent
    train(load_resumed_config([f"resume={parts}"]))
    assert_same_state(whole, parts)
