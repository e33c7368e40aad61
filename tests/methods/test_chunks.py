"""Methods in little memory: which take chunks, that it changes nothing, and what accumulation is said not to do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared
from tiny import network_of
from torch import Tensor

from selfsup.checkpoint import read_checkpoint
from selfsup.engine.training import train
from selfsup.errors import UserError
from selfsup.methods import Method
from selfsup.registry import methods
from selfsup.types import Batch, View

CHUNKABLE = [name for name in methods if methods[name].target.chunkable]
NO_BATCH_STATISTICS = [
    "backbone=resnet18",
    "backbone.kwargs={channels: [4, 8, 8, 8], norm_layer: groupnorm1, zero_init_last: false}",
]
#: For small crops timm resamples positions in float32, which a test of float64 sees.
ONE_SIZE = {name: ["augment.sizes=[32,32]"] for name in ("msn", "pmsn")}
#: PMSN's prior alone couples images, by the spread of their assignments, which in a tiny new network are nearly one.
LEAST = {"pmsn": 1e-6}


def in_float64(method: Method) -> Method:
    """Let a method compute in float64, from views of float32."""
    method.double()
    original = method.views.forward

    def views(*args: Any, **kwargs: Any) -> tuple[View, ...]:
        return tuple(dataclasses.replace(view, image=view.image.double()) for view in original(*args, **kwargs))

    method.views.forward = views  # type: ignore[method-assign]
    return method


def gradients(method: Method, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    loss = method.training_step(batch, 0)
    method.backward(loss)
    return loss.detach(), {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [["trainer.chunk_size=5"], ["trainer.activation_checkpointing=true"]])
@pytest.mark.parametrize("name", CHUNKABLE)
def test_a_step_is_that_of_one_pass(name: str, settings: list[str], tiny_config: Callable[..., Any]) -> None:
    """Heads see the whole batch, so that their BatchNorm is that of one pass; the backbone here has none."""
    results = []
    for extra in ([], settings):
        network = [] if network_of(name) else NO_BATCH_STATISTICS
        method, batch = prepared(tiny_config(name, *network, *ONE_SIZE.get(name, ()), *extra))
        results.append((*gradients(in_float64(method), batch), method.state_dict()))
    (loss, grads, state), (chunk_loss, chunk_grads, chunk_state) = results
    assert loss.dtype == torch.float64
    torch.testing.assert_close(chunk_loss, loss, rtol=1e-10, atol=1e-12)
    scale = max(float(g.abs().max()) for g in grads.values())
    assert grads.keys() == chunk_grads.keys()
    assert scale > 0
    for key, gradient in grads.items():
        torch.testing.assert_close(chunk_grads[key], gradient, rtol=1e-10, atol=1e-11 * scale, msg=key)
    for key, value in state.items():  # the momentum encoder's, the queues, the centres
        torch.testing.assert_close(chunk_state[key], value, rtol=1e-10, atol=1e-11, msg=key)


@pytest.mark.parametrize("name", ["simclr", "moco_v3"])
def test_training_counts_every_batch_once(name: str, tiny_config: Callable[..., Any]) -> None:
    plain = read_checkpoint(train(tiny_config(name, run="plain")))["state_dict"]
    settings = ["trainer.chunk_size=5", "trainer.activation_checkpointing=true"]
    chunked = read_checkpoint(train(tiny_config(name, *settings, run="chunked")))["state_dict"]
    counts = [key for key in plain if key.endswith("num_batches_tracked")]
    assert len(counts) > 8
    assert {key: int(plain[key]) for key in counts} == {key: int(chunked[key]) for key in counts}


def test_activation_checkpointing_trains_the_same_to_the_bit(tiny_config: Callable[..., Any]) -> None:
    """Also the running statistics, and with a method whose BatchNorm is split."""
    states = []
    for run, setting in enumerate(("false", "true")):
        config = tiny_config("moco", f"trainer.activation_checkpointing={setting}", run=str(run))
        states.append(read_checkpoint(train(config))["state_dict"])
    assert states[0].keys() == states[1].keys()
    assert [key for key, value in states[0].items() if not torch.equal(value, states[1][key])] == []


@pytest.mark.parametrize("name", ["moco", "moco_v1", "densecl"])
def test_methods_that_need_one_pass_refuse_chunks_before_training(name: str, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(name, "trainer.chunk_size=4")
    with pytest.raises(UserError, match=rf"{methods[name].target.__name__} needs its batch in one pass.*chunk_size"):
        train(config)


@pytest.mark.parametrize("name", list(methods))
def test_couples_images_says_whether_a_batch_is_more_than_its_halves(
    name: str, tiny_config: Callable[..., Any]
) -> None:
    """With BatchNorm as in evaluation, only the loss can couple images."""
    method, batch = prepared(tiny_config(name, "augment.override={}"))
    method.training_step(batch, 0)  # running statistics, and everything else, away from the initial ones
    in_float64(method).eval()
    views = method.views(batch.image, seed=1, index=batch.index)

    def loss(rows: slice) -> Tensor:
        twin = copy.deepcopy(method)
        twin.trainer = method.trainer
        part = [View(v.image[rows], v.to_source[rows]) for v in views]
        label = None if batch.label is None else batch.label[rows]
        with torch.no_grad():
            return twin.step(tuple(part), Batch(batch.image[rows], label, batch.index[rows])).loss

    halves = (loss(slice(0, 8)) + loss(slice(8, 16))) / 2
    difference = abs(float(loss(slice(0, 16)) - halves))
    if method.couples_images:
        assert difference > LEAST.get(name, 1e-4) * abs(float(halves))
    else:
        assert difference < 1e-9 * abs(float(halves))


@pytest.mark.parametrize(
    ("name", "settings", "noted"),
    [
        ("simclr", ["trainer.accumulate=2"], True),
        ("simclr", [], False),
        ("byol", ["trainer.accumulate=2"], False),
    ],
)
def test_accumulation_says_once_what_it_does_not_do(
    name: str, settings: list[str], noted: bool, tiny_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(name, "trainer.max_epochs=1", *settings))
    said = capsys.readouterr().out
    assert said.count("note: trainer.accumulate=2") == noted
    assert said.count("batch_size=32 with trainer.chunk_size") == noted
