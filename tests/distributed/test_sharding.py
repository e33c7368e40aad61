"""FSDP: two processes that hold a part of each weight train what one process with the whole of it trains."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from gloo import Ranks
from states import assert_same_state
from test_lightning import apart, assert_equal_but_for_statistics, launched, run, words
from test_training import CASES, train_steps, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from selfsup.checkpoint import read_checkpoint
from selfsup.cli import main
from selfsup.data import load_splits
from selfsup.engine.sharding import SHARDABLE, check_shardable
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.opened import load_backbone
from selfsup.optimization import OptimizerConfig, build_optimizer, decay_groups

FSDP = ["trainer.devices=2", "trainer.strategy=fsdp"]
DDP = ["trainer.devices=2", "trainer.strategy=ddp"]
TINY_VIT = [
    "backbone.name=vit_tiny_patch16_224",
    "backbone.kwargs={img_size: 32, patch_size: 8, embed_dim: 12, depth: 3, num_heads: 2}",
]


def assert_equal_steps(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(torch.stack([r["losses"] for r in two]).mean(0), one["losses"], rtol=1e-9, atol=1e-9)
    assert float(one["losses"].std()) > 0
    for rank in two:
        for part in ("gradients", "parameters"):
            assert rank[part].keys() == one[part].keys()
            for key, value in one[part].items():
                torch.testing.assert_close(rank[part][key], value, rtol=1e-7, atol=1e-9, msg=f"{part} {key}")


#: Without those of odd queues, which are the same for weights in parts as for whole ones.
ON_PARTS = [(name, words) for name, words in CASES if not {"method.queue_size=37", "method.queue_size=17"} & {*words}]


@pytest.mark.parametrize(("name", "overrides"), ON_PARTS)
def test_every_method_on_parts_equals_the_whole(name: str, overrides: list[str], two_ranks: Ranks) -> None:
    one = train_steps(0, 1, name, overrides)
    assert_equal_steps(one, two_ranks.run(train_steps, 2, name, overrides, True))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("simclr", ["optimizer=adamw"]),
        ("simclr", ["optimizer=lars"]),
        ("byol", ["optimizer=lars"]),
        ("moco", ["method.bn_groups=2"]),
        ("swav", ["method.queue_size=16", "method.freeze_prototypes_epochs=0"]),
        ("swav", ["method.queue_size=0"]),  # prototypes that are frozen
        ("dino", []),  # a last layer that is frozen
        ("moco_v3", ["optimizer.name=lamb", *TINY_VIT]),  # repeated blocks, a patch embedding that is frozen
        ("dino", [*TINY_VIT, "augment.counts=[2]", "augment.sizes=[32]"]),
    ],
)
def test_their_optimisers_do_too(name: str, overrides: list[str], two_ranks: Ranks) -> None:
    one = train_steps(0, 1, name, overrides, False, True)
    assert_equal_steps(one, two_ranks.run(train_steps, 2, name, overrides, True, True))


@pytest.mark.parametrize(
    "settings",
    [
        ["trainer.activation_checkpointing=true"],
        ["trainer.chunk_size=4"],
        ["trainer.chunk_size=4", "trainer.activation_checkpointing=true"],
    ],
)
def test_recomputation_on_parts_equals_the_whole(settings: list[str], two_ranks: Ranks) -> None:
    one = train_steps(0, 1, "supcon", [*settings, *TINY_VIT])
    assert_equal_steps(one, two_ranks.run(train_steps, 2, "supcon", [*settings, *TINY_VIT], True))


def _network() -> nn.Sequential:
    """A network with a weight of one row, so that one of two ranks holds nothing of it."""
    torch.manual_seed(0)
    layers = [nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)]
    return nn.Sequential(*layers).double()


def optimize(rank: int, sharded: bool, name: str, kwargs: dict[str, Any], clip: bool) -> list[torch.Tensor]:
    network = _network()
    if sharded:
        fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    config = OptimizerConfig(name=name, weight_decay=0.1, kwargs=kwargs)
    optimizer = build_optimizer(decay_groups(network, 0.1, exclude_1d=True), config, 0.01)
    images = torch.randn(8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        network(images).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
    return [whole(parameter.detach()) for parameter in network.parameters()]


@pytest.mark.parametrize("name", SHARDABLE)
@pytest.mark.parametrize("kwargs", [{}, {"foreach": True}])
@pytest.mark.parametrize("clip", [False, True])
def test_optimisers_on_parts_equal_those_on_the_whole(
    name: str, kwargs: dict[str, Any], clip: bool, two_ranks: Ranks
) -> None:
    if name == "lars" and kwargs:  # ours always takes lists of tensors
        kwargs = {"norms_apart": True}
    expected = optimize(0, False, name, kwargs, clip)
    assert not torch.equal(expected[0], next(_network().parameters()))
    for found in two_ranks.run(optimize, True, name, kwargs, clip):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def scale_with_infinity(rank: int, name: str) -> tuple[list[torch.Tensor], float]:
    """Step with a gradient that is infinite in one part of one weight, on the last rank; then with finite ones."""
    network = _network().float()
    fully_shard(network, mesh=init_device_mesh("cpu", (2,)))
    optimizer = build_optimizer(decay_groups(network, 0.1, exclude_1d=True), OptimizerConfig(name=name), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    states = []
    for broken in (True, False):
        optimizer.zero_grad()
        scaler.scale(network(torch.ones(8, 7)).square().sum() + 0).backward()
        if broken and rank == 1:
            gradient = network[0].weight.grad
            assert isinstance(gradient, DTensor)
            gradient.to_local()[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        states.append(whole(network[0].weight.detach().clone()))
    return states, float(scaler.get_scale())


@pytest.mark.parametrize("name", ["adamw", "momentum"])  # one is fused
def test_all_ranks_skip_a_step_that_overflowed_on_one(name: str, two_ranks: Ranks) -> None:
    before = _network().float()[0].weight
    for (skipped, taken), scale in two_ranks.run(scale_with_infinity, name):
        assert torch.equal(skipped, before)
        assert taken.isfinite().all()
        assert not torch.equal(taken, before)
        assert scale == 2.0


# what follows runs the command

HELD = """
import json, os
from selfsup.methods import Method

def on_train_end(method):
    local = lambda t: t.to_local().numel() if hasattr(t, "to_local") else t.numel()
    weights = list(method.parameters())
    kept = [v for s in method.trainer.optimizers[0].state.values() for v in s.values() if getattr(v, "ndim", 0)]
    held = {k: [sum(map(local, v)), sum(t.numel() for t in v)] for k, v in (("weights", weights), ("state", kept))}
    with open(f"held-{method.global_rank}.json", "w") as file:
        json.dump(held, file)

Method.on_train_end = on_train_end
"""


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param("simclr", ["optimizer=adamw", "trainer.gradient_clip=0.5"], marks=pytest.mark.long),
        pytest.param("byol", [], marks=pytest.mark.long),  # LARS
        ("dino", ["trainer.accumulate=2", "trainer.gradient_clip=0.3"]),
    ],
)
def test_the_command_trains_and_saves_what_ddp_does(method: str, settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(HELD)
    one = run(tmp_path, "ddp", *settings, *DDP, method=method, ranks=2)
    two = run(tmp_path, "fsdp", "--import", "held.py", *settings, *FSDP, method=method, ranks=2)
    assert_equal_but_for_statistics(one, two)
    a, b = (read_checkpoint(tmp_path / name)["optimizer_states"][0] for name in ("ddp", "fsdp"))
    assert a["param_groups"] == b["param_groups"]
    torch.testing.assert_close(b["state"], a["state"], rtol=1e-8, atol=1e-10)
    ranks = [json.loads((tmp_path / f"held-{rank}.json").read_text()) for rank in range(2)]
    for kind in ("weights", "state"):
        (first, total), (second, _) = (held[kind] for held in ranks)
        assert first + second == total
        assert 0.4 * total < first < 0.6 * total
    expected, found = (list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("ddp", "fsdp"))
    assert len(found) == len(expected) > 0
    for row, other in zip(expected, found, strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert (other[key] == "") == (value == ""), key
            if value:
                assert float(other[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("moco", []),
        ("supcon", ["optimizer=lars", "trainer.chunk_size=4", "trainer.activation_checkpointing=true"]),
    ],
)
def test_two_devices_train_what_one_does(method: str, settings: list[str], tmp_path: Path) -> None:
    """The BatchNorm statistics of these are of the same images on one device and on two."""
    one = run(tmp_path, "one", *settings, method=method)
    two = run(tmp_path, "two", *settings, *FSDP, method=method, ranks=2)
    assert_equal_but_for_statistics(one, two)
    load_backbone(tmp_path / "two")
    assert main(["knn", f"checkpoint={tmp_path / 'two'}", "data.train_size=72", "data.test_size=40"]) == 0


@pytest.mark.long
def test_lightning_starts_its_own_processes(tmp_path: Path) -> None:
    one = run(tmp_path, "one")
    assert_equal_but_for_statistics(one, launched(tmp_path, "two", [], *FSDP))


STOP = """
import os, signal
from selfsup.methods import Method

original = Method.training_step

def training_step(method, batch, batch_idx):
    if method.trainer.global_step == 4 and method.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return original(method, batch, batch_idx)

Method.training_step = training_step
"""


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """Rank 0 alone is told to stop, in the fifth step; the ranks agree to after the next of which there is a row."""
    settings = ["optimizer=adamw", "trainer.precision=64-true", "trainer.log_every_steps=3", *FSDP]
    run(tmp_path, "whole", *settings, ranks=2)
    (tmp_path / "stop.py").write_text(STOP)
    stopped = processes.run_ranks(2, words("parts", "--import", "stop.py", *settings), tmp_path, apart(tmp_path))
    assert [rank.returncode for rank in stopped] == [128 + 15] * 2, stopped[0].stderr
    assert read_checkpoint(tmp_path / "parts")["global_step"] == 6
    for rank in processes.run_ranks(2, ["train", "resume=parts"], tmp_path, {}):
        assert rank.returncode == 0, rank.stderr
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


class _Stray(nn.Module):
    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


def test_what_cannot_be_split_is_refused(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simclr")
    method = build_method(config, load_splits(config.data))
    check_shardable(method, config)
    for override, message in (("optimizer.name=adafactor", "optimizer.name"), ("trainer.compile=true", "compile")):
        with pytest.raises(UserError, match=message):
            check_shardable(method, tiny_config("simclr", override))
    method.scale = _Stray([])
    with pytest.raises(UserError, match=r"scale\.weight, which is a single number"):
        check_shardable(method, config)
    method.scale = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(UserError, match="scale, which is outside"):
        check_shardable(method, config)
