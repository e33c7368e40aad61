"""DenseCL by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor, nn

import selfsup.methods.densecl as module
from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import info_nce
from selfsup.methods import Method

TINY = ["method.queue_size=48", "method.bn_groups=4", "method.hidden_dim=16", "method.output_dim=8"]
RANKS = [["method.bn_groups=2"], ["method.bn_groups=4", "method.queue_size=37"]]


def drift(method: Method) -> None:
    """Take the key encoder away from the online network."""
    with torch.no_grad():
        for parameter in method.key_encoder.parameters():
            parameter.mul_(1.2).add_(0.1 * torch.randn_like(parameter))


def at_step(method: Method, step: int) -> None:
    method.trainer = types.SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_rank=0, current_epoch=0, global_step=step, barebones=False
    )


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    """All keys from the momentum network, in shuffled company and back; matches by its map and the online one."""
    method, batch = prepared(tiny_config("densecl", "method.dense_weight=0.3"))
    drift(method)
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    first, second = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    order = method.batch_permutation(len(batch.index))
    back = order.argsort()
    momentum_net = twin.key_encoder.module
    with torch.no_grad():
        key_map = momentum_net.backbone.forward_dense(second.image[order])
        keys = momentum_net.pooled_heads[0](key_map.mean((2, 3)))[back]
        dense_keys = momentum_net.head(key_map)[back].flatten(2)
        key_map = key_map[back].flatten(2)
    query_map = twin.backbone.forward_dense(first.image)
    dense_queries = twin.dense_head(query_map).flatten(2)
    image_loss = info_nce(twin.head(query_map.mean((2, 3))), keys, twin.queue.negatives(), 0.2)

    cell_losses = []
    for n in range(len(keys)):
        for i in range(query_map[0, 0].numel()):
            cosines = [nn.functional.cosine_similarity(query_map.flatten(2)[n, :, i], k, dim=0) for k in key_map[n].T]
            j = max(range(len(cosines)), key=lambda c: cosines[c].item())
            q, k = (x[n, :, c][None] for x, c in ((dense_queries, i), (dense_keys, j)))
            cell_losses.append(info_nce(q, k, twin.dense_queue.negatives(), 0.2))
    expected = 0.7 * image_loss + 0.3 * torch.stack(cell_losses).mean()
    torch.testing.assert_close(loss, expected)

    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)

    count = len(keys)
    torch.testing.assert_close(method.queue.keys[:count], unit(keys))
    # one dense key an image: the mean of cells as they come, then its direction
    torch.testing.assert_close(method.dense_queue.keys[:count], unit(dense_keys.mean(2)))
    for queue, old in ((method.queue, twin.queue), (method.dense_queue, twin.dense_queue)):
        assert torch.equal(queue.keys[count:], old.keys[count:])
        assert int(queue.pointer) == count


def test_without_the_dense_loss_it_is_moco(tiny_config: Callable[..., Any]) -> None:
    """From equal weights, queue and batch: the same loss and the same gradients."""
    moco, batch = prepared(tiny_config("moco", "method.hidden_dim=16", "method.output_dim=8"))
    drift(moco)
    densecl, _ = prepared(tiny_config("densecl", "method.dense_weight=0"))
    densecl.backbone.load_state_dict(moco.backbone.state_dict())
    densecl.head.load_state_dict(moco.head.state_dict())
    densecl.key_encoder.module.backbone.load_state_dict(moco.key_encoder.module[0].state_dict())
    densecl.key_encoder.module.pooled_heads[0].load_state_dict(moco.key_encoder.module[1].state_dict())
    densecl.queue.load_state_dict(moco.queue.state_dict())
    losses = [method.training_step(batch, 0) for method in (densecl, moco)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for part in ("backbone", "head"):
        pairs = zip(getattr(densecl, part).named_parameters(), getattr(moco, part).parameters(), strict=True)
        for (name, ours), theirs in pairs:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(densecl.queue.keys, moco.queue.keys)
    # DDP waits for every parameter: those without a say get zeros
    assert all(p.grad is not None and not p.grad.any() for p in densecl.dense_head.parameters())


@pytest.mark.parametrize("scrambled", [("dense_head",), ("head",), ("dense_head", "head")])
def test_matches_come_from_the_backbones(
    scrambled: tuple[str, ...], tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the online and the momentum network, whatever the heads say."""
    seen: list[Tensor] = []

    def watch(*maps: Tensor) -> Tensor:
        seen.append(original(*maps))
        return seen[-1]

    original = module.dense_match
    monkeypatch.setattr(module, "dense_match", watch)
    method, batch = prepared(tiny_config("densecl"))
    drift(method)
    twin = copy.deepcopy(method)
    twin.trainer, twin.log = method.trainer, method.log
    method.training_step(batch, 0)
    heads = {"dense_head": "head", "head": "pooled_heads"}
    for name in scrambled:
        for head in (getattr(twin, name), getattr(twin.key_encoder.module, heads[name])):
            for parameter in head.parameters():
                nn.init.normal_(parameter)
    twin.training_step(batch, 0)
    assert torch.equal(seen[0], seen[1])
    assert len(seen[0].unique()) > 1
    drift(twin)  # the momentum network's backbone does have a say
    twin.training_step(batch, 0)
    assert not torch.equal(seen[0], seen[2])


def test_keys_carry_no_gradient_and_are_not_their_own_negatives(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("densecl"))
    twin = copy.deepcopy(method)
    twin.trainer, twin.log = method.trainer, method.log
    twin.queue.enqueue = twin.dense_queue.enqueue = lambda keys: None  # type: ignore[method-assign]
    loss = method.training_step(batch, 0)
    assert torch.equal(twin.training_step(batch, 0), loss)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.key_encoder.parameters())


def test_collapsed_cells_have_the_loss_of_chance(tiny_config: Callable[..., Any]) -> None:
    """All outputs and both queues equal: ln(1+K), which a key in its own queue, or twice the loss, would miss."""
    method, batch = prepared(tiny_config("densecl"))
    for head in (
        method.head,
        method.dense_head,
        method.key_encoder.module.head,
        method.key_encoder.module.pooled_heads,
    ):
        last = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        nn.init.ones_(last.bias)  # type: ignore[arg-type]
    for queue in (method.queue, method.dense_queue):
        queue.keys.fill_(1 / math.sqrt(queue.keys.shape[1]))
    assert method.training_step(batch, 0).item() == pytest.approx(math.log(1 + 48), rel=1e-6)


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (4, 0.0), (5, 0.5), (6, 0.5)])
def test_the_dense_loss_waits(step: int, weight: float, tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("densecl", "method.dense_warmup_steps=5"))
    logs: dict[str, Tensor] = {}
    method.log = lambda name, value, **_: logs.__setitem__(name, value)  # type: ignore[method-assign]
    at_step(method, step)
    loss = method.training_step(batch, 0)
    expected = (1 - weight) * logs["train/image_loss"] + weight * logs["train/cell_loss"]
    torch.testing.assert_close(loss.detach(), expected)
    assert not torch.equal(logs["train/image_loss"], logs["train/cell_loss"])
    loss.backward()
    moves = [bool(p.grad.any()) for p in method.dense_head.parameters() if p.grad is not None]
    assert moves == [weight > 0] * 4


def test_key_encoder_follows_all_of_the_online_network(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("densecl", "method.momentum=0.75"))
    drift(method)
    before = {name: p.clone() for name, p in method.key_encoder.module.named_parameters()}
    method.after_optimizer_step()
    online = {
        **{f"backbone.{name}": p for name, p in method.backbone.named_parameters()},
        **{f"head.{name}": p for name, p in method.dense_head.named_parameters()},
        **{f"pooled_heads.0.{name}": p for name, p in method.head.named_parameters()},
    }
    assert before.keys() == online.keys()
    for name, key in method.key_encoder.module.named_parameters():
        torch.testing.assert_close(key, 0.75 * before[name] + 0.25 * online[name])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.dense_weight=1.5", "dense_weight"),
        ("method.queue_size=8", "queue_size"),
        ("method.bn_groups=16", "bn_groups"),
        ("augment.sizes=[16]", "1×1"),
        ("augment.sizes=[32,64] augment.counts=[1,1] augment.recipe=swav", "one size"),
        ("backbone.name=mobilenetv3_small_050 data.image_size=64", "channels"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting: str, words: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=words):
        tiny_method("densecl", *setting.split())


def test_defaults_are_the_papers() -> None:
    config = load_config(["method=densecl"])
    assert (config.method.dense_weight, config.method.dense_warmup_steps) == (0.5, 0)
    assert (config.method.temperature, config.method.momentum, config.method.queue_size) == (0.2, 0.999, 65536)
    assert (config.augment.recipe, config.optimizer.lr, config.optimizer.name) == ("moco_v2", 0.03, "momentum")
