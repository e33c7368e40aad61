"""Chunks and activation checkpoints save memory and change nothing: values, gradients, statistics, dropout."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from selfsup.errors import UserError
from selfsup.functional import barlow_twins_loss, nt_xent
from selfsup.nn import Backbone, BackboneConfig, build_backbone, split_batch_norm, unchanged_statistics

CLOSE = {"rtol": 1e-10, "atol": 1e-11}
SIZE = 16


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def with_batch_norm(blocks: tuple[int, ...] = (1, 1, 1, 1)) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig("resnet", width=4, blocks=list(blocks)), 3).double()


def deeper() -> Backbone:
    return with_batch_norm((4, 2, 1, 1))


def with_group_norm(**kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    settings = {"channels": (8, 8, 16, 16), "norm_layer": "groupnorm1", "zero_init_last": False, **kwargs}
    return build_backbone(BackboneConfig("resnet18", kwargs=settings), 3).double()


def transformer(**kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    settings = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 2, **kwargs}
    return build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=settings), 3).double()


def convnet() -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig("convnet", width=4, blocks=[2, 1, 2]), 3).double()


def contrast(features: Tensor) -> Tensor:
    return nt_xent(*features.chunk(2), 0.2)


def correlate(features: Tensor) -> Tensor:
    return barlow_twins_loss(*features.chunk(2), 0.01)


def gradients(
    backbone: Backbone, loss: Callable[[Tensor], Tensor], x: Tensor, dense: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradient of every parameter; the statistics have moved once."""
    features = backbone.forward_dense(x).flatten(1) if dense else backbone(x)
    value = loss(features)
    with unchanged_statistics(backbone):
        value.backward()
    grads = {}
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.ne(0).any()), name
        grads[name] = parameter.grad
    return value.detach(), grads


def chunked(backbone: Backbone, chunk: int) -> Backbone:
    twin = copy.deepcopy(backbone)
    twin.save_memory(chunk)
    return twin


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], **CLOSE)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("chunk", [1, 2, 5, 12, 100])
@pytest.mark.parametrize("loss", [contrast, correlate])
@pytest.mark.parametrize("build", [with_group_norm, transformer])
def test_without_batch_statistics_chunks_are_one_pass(
    build: Callable[[], Backbone], loss: Callable[[Tensor], Tensor], chunk: int
) -> None:
    backbone, x = build(), images(12)
    assert_same(gradients(chunked(backbone, chunk), loss, x), gradients(backbone, loss, x))


@pytest.mark.parametrize("dense", [False, True])
def test_maps_too(dense: bool) -> None:
    backbone, x = with_group_norm(), images(6)
    assert_same(gradients(chunked(backbone, 4), contrast, x, dense), gradients(backbone, contrast, x, dense))


@pytest.mark.parametrize("chunk", [4, 5, 12, 100])
def test_batch_norm_has_statistics_of_chunks_and_counts_the_batch_once(chunk: int) -> None:
    """The reference is one pass of a network whose BatchNorm layers split the batch in as many parts."""
    split, x = with_batch_norm(), images(12)
    split(images(12, seed=5))  # running statistics that are not the initial ones
    mine = chunked(split, chunk)
    split_batch_norm(split, math.ceil(12 / chunk))
    assert_same(gradients(mine, contrast, x), gradients(split, contrast, x))
    for (name, value), expected in zip(mine.named_buffers(), split.buffers(), strict=True):
        torch.testing.assert_close(value, expected, **CLOSE, msg=name)
    assert {int(b) for name, b in mine.named_buffers() if name.endswith("num_batches_tracked")} == {2}


def test_two_calls_in_a_step_count_twice_and_backpropagate() -> None:
    """As methods do that give each view a pass of its own."""
    backbone, one, other = with_batch_norm(), images(6), images(6, seed=1)
    mine = chunked(backbone, 3)
    split_batch_norm(backbone, 2)
    losses = []
    for network in (mine, backbone):
        loss = nt_xent(network(one), network(other), 0.2)
        with unchanged_statistics(network):
            loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, **CLOSE)
    for (name, value), expected in zip(mine.named_parameters(), backbone.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad, **CLOSE, msg=name)
    for (name, value), expected in zip(mine.named_buffers(), backbone.buffers(), strict=True):
        torch.testing.assert_close(value, expected, **CLOSE, msg=name)


def test_without_gradient_and_in_evaluation() -> None:
    backbone, x = with_batch_norm(), images(7)
    mine = chunked(backbone, 3)
    split_batch_norm(backbone, 3)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), backbone(x), **CLOSE)
    for value, expected in zip(mine.buffers(), backbone.buffers(), strict=True):
        torch.testing.assert_close(value, expected, **CLOSE)
    seen: list[int] = []
    mine.network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    torch.testing.assert_close(mine.eval()(x), backbone.eval()(x), **CLOSE)
    assert seen == [7]
    mine.train()(x)
    assert seen == [7, 3, 2, 2]


def test_frozen_batch_norm_keeps_its_statistics_to_the_bit() -> None:
    backbone = with_batch_norm()
    backbone(images(6))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    mine, x = chunked(backbone, 3), images(14)
    assert_same(gradients(mine, contrast, x), gradients(backbone, contrast, x))
    assert all(torch.equal(a, b) for a, b in zip(mine.buffers(), backbone.buffers(), strict=True))


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (with_group_norm, {"drop_path_rate": 0.5}),
        (transformer, {"drop_path_rate": 0.3, "proj_drop_rate": 0.3}),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_draws_the_same_both_times(build: Any, settings: dict[str, Any], checkpointing: bool) -> None:
    """The reference runs the chunks one after the other and keeps everything."""
    backbone, x = build(**settings), images(12)
    mine = copy.deepcopy(backbone)
    mine.save_memory(4, checkpointing)
    reference = copy.deepcopy(backbone)
    torch.manual_seed(3)
    result = gradients(mine, contrast, x)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    loss = contrast(torch.cat([reference(part) for part in x.split(4)]))
    assert torch.equal(torch.get_rng_state(), state)
    loss.backward()
    assert_same(result, (loss.detach(), {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}))
    torch.manual_seed(4)
    assert not torch.equal(result[0], gradients(mine, contrast, x)[0])


def test_autocast_is_that_of_the_first_time() -> None:
    backbone, x = with_group_norm().float(), images(8).float()
    mine, reference = chunked(backbone, 4), backbone
    results = []
    for encode in (mine, lambda x: torch.cat([reference(part) for part in x.split(4)])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = encode(x)
            loss = contrast(features)
        loss.backward()
        results.append(loss.detach())
    assert torch.equal(*results)
    for (name, value), expected in zip(mine.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value.grad, expected.grad, rtol=1e-2, atol=1e-4, msg=name)  # order of bfloat16 sums


@pytest.mark.parametrize("build", [with_batch_norm, with_group_norm, transformer, convnet])
@pytest.mark.parametrize("chunk", [None, 4])
def test_activation_checkpointing_changes_nothing(build: Callable[[], Backbone], chunk: int | None) -> None:
    plain, x = build(), images(8)
    plain(images(8, seed=5))
    mine = copy.deepcopy(plain)
    plain.save_memory(chunk)
    mine.save_memory(chunk, activation_checkpointing=True)
    assert_same(gradients(mine, contrast, x), gradients(plain, contrast, x))
    for (name, value), expected in zip(mine.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(value, expected), name
    with torch.no_grad():
        assert torch.equal(mine.eval()(x), plain.eval()(x))
    assert mine.state_dict().keys() == plain.state_dict().keys()


def test_split_batch_norm_is_checkpointed_like_the_plain_one() -> None:
    plain, x = with_batch_norm(), images(8)
    split_batch_norm(plain, 2)
    mine = copy.deepcopy(plain)
    mine.save_memory(activation_checkpointing=True)
    assert_same(gradients(mine, contrast, x), gradients(plain, contrast, x))
    assert all(torch.equal(a, b) for a, b in zip(mine.buffers(), plain.buffers(), strict=True))


def test_a_chunk_of_nothing_and_a_network_without_blocks_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.chunk_size=0 must be at least 1"):
        with_batch_norm().save_memory(0)
    with pytest.raises(UserError, match=r"trainer\.activation_checkpointing: this network has no blocks"):
        Backbone(timm.create_model("vgg11", num_classes=0, pretrained=False), 3).save_memory(None, True)


def peak_bytes(backbone: Backbone, count: int) -> int:
    """Return the most bytes that a forward and backward pass holds at a time, by the allocator's own record.

    Images and gradients, which exist beforehand, do not count.
    """
    x = torch.randn(count, 3, SIZE, SIZE)
    for parameter in backbone.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        correlate(backbone(x)).backward()  # a loss that is itself small
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert peak > 0
    return peak


@pytest.mark.parametrize("build", [with_batch_norm, with_group_norm, transformer, convnet])
def test_memory_depends_on_the_chunk_and_not_on_the_batch(build: Callable[[], Backbone]) -> None:
    whole = build().float()
    small, large = chunked(whole, 16), chunked(whole, 32)
    one_pass = {count: peak_bytes(whole, count) for count in (64, 128)}
    assert one_pass[128] > 1.8 * one_pass[64]
    of_small = {count: peak_bytes(small, count) for count in (64, 128, 256)}
    assert of_small[256] < 1.3 * of_small[64]
    assert of_small[256] < one_pass[128] / 3
    assert 1.5 * of_small[256] < peak_bytes(large, 256) < 2.2 * of_small[256]


@pytest.mark.parametrize("build", [deeper, transformer])
def test_activation_checkpointing_needs_less_memory(build: Callable[[], Backbone]) -> None:
    whole = build().float()
    mine = copy.deepcopy(whole)
    mine.save_memory(activation_checkpointing=True)
    assert peak_bytes(mine, 64) < 0.75 * peak_bytes(whole, 64)
