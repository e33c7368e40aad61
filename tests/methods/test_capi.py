"""CAPI by hand, and where its gradients go."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from test_ibot import entropy
from torch import Tensor

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.functional import chosen_places, inverse_block_mask, kept_index
from selfsup.optimization import build_optimizer

TINY = [
    "backbone=vit_small_mean",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "backbone.kwargs.class_token=false",
    "backbone.kwargs.reg_tokens=2",
    "method.clusters=12",
    "method.predictor_depth=2",
    "method.prediction_share=0.3",
]
RANKS = [[], ["method.positionwise=false", "method.momentum=0.9", "method.momentum_warmup=0"]]


def embedded(backbone: Any, image: Tensor) -> list[Tensor]:
    """Patch tokens of one image ``[C,32,32]``, with their positions."""
    network = backbone.network
    kernel, places = network.patch_embed.proj, network.pos_embed[0, -16:]
    patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(4) for c in range(4)]
    return [(kernel.weight * p).sum((1, 2, 3)) + kernel.bias + at for p, at in zip(patches, places, strict=True)]


def tokens(backbone: Any, image: Tensor, kept: list[int]) -> Tensor:
    """Registers, then the kept patches of one image."""
    network = backbone.network
    given = embedded(backbone, image)
    registers = network.reg_token[0] + network.pos_embed[0, :-16]
    sequence = torch.cat([registers, torch.stack([given[n] for n in kept])])
    return network.norm(network.blocks(sequence[None]))[0]


@pytest.mark.parametrize("positionwise", [True, False])
def test_one_step_is_the_loop_in_value_and_gradient(positionwise: bool, tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("capi", "batch_size=6", f"method.positionwise={positionwise}"))
    method = method.double()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    images = view.image.double()
    draw = method.draw(batch.index, 0)
    mask = inverse_block_mask(draw, (4, 4), 0.65)
    kept, wanted = kept_index(mask).tolist(), chosen_places(draw, mask, 0.3).tolist()
    assert {len(row) for row in wanted} == {3}
    assert {len(row) for row in kept} == {6}
    with torch.no_grad():
        teacher = [tokens(twin.teacher.module, image, list(range(16)))[2:] for image in images]
    scores = torch.stack([torch.stack([twin.clusters(y / y.norm()) for y in row]) for row in teacher])
    with torch.no_grad():
        codes = (scores / 0.06).exp()
        for _ in range(3):
            codes = codes / (codes.sum(0) if positionwise else codes.sum((0, 1)))
            codes = codes / codes.sum(2, keepdim=True)
    total = torch.zeros((), dtype=torch.float64)
    for n in range(6):
        for place in range(16):
            total = total + entropy(codes[n, place], scores[n, place] / 0.12) / 96
        seen = tokens(twin.backbone, images[n], kept[n])
        context = twin.predictor.embed(seen)
        context = torch.cat([context[:2], context[2:] + twin.predictor.positions[kept[n]]])
        queries = twin.predictor.mask_token[0] + twin.predictor.positions[wanted[n]]
        for block in twin.predictor.blocks:  # every query by itself
            queries = torch.cat([block(query[None, None], context[None])[0] for query in queries])
        for query, place in zip(queries, wanted[n], strict=True):
            out = twin.predictor.head(twin.predictor.norm(query))
            weight = twin.head.weight
            cosines = weight @ out / (weight.norm(dim=1) * out.norm())
            total = total + entropy(codes[n, place], cosines / 0.12) / 18
    torch.testing.assert_close(loss, total, rtol=1e-9, atol=1e-9)
    loss.backward()
    total.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_each_loss_reaches_its_own_weights_alone(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("capi"))
    logs: dict[str, Tensor] = {}
    output = method.step(method.draw_views(batch, 0), batch)
    logs.update(output.logs)
    own = {id(p) for p in method.clusters.parameters()}
    trained = [p for p in method.parameters() if p.requires_grad]
    for name, wanted in (("clustering_loss", True), ("prediction_loss", False)):
        found = torch.autograd.grad(logs[name], trained, retain_graph=True, allow_unused=True)
        assert {id(p) in own for p, g in zip(trained, found, strict=True) if g is not None} == {wanted}, name


def test_the_prediction_does_not_see_the_patches_it_names(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("capi"))
    (view,) = method.draw_views(batch, 0)
    keep = kept_index(inverse_block_mask(method.draw(batch.index, 0), (4, 4), 0.65))
    hidden = torch.ones(16, 16, dtype=torch.bool).scatter(1, keep, False)
    pixels = hidden.view(16, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(pixels, torch.randn_like(view.image), view.image)
    one, two = (method.backbone.forward_tokens(images, keep=keep).patches for images in (view.image, other))
    assert torch.equal(one, two)


def test_uniform_outputs_cost_twice_the_logarithm(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("capi"))
    with torch.no_grad():
        method.head.weight.fill_(1.0)
        method.clusters.weight.fill_(1.0)
    assert method.training_step(batch, 0).item() == pytest.approx(2 * math.log(12), rel=1e-5)


def test_clusters_begin_standard_normal_without_offsets(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("capi", "method.clusters=500"))
    assert method.clusters.weight.std().item() == pytest.approx(1, rel=0.05)
    assert not method.clusters.bias.any()


def test_clusters_have_half_the_rate_and_a_decay_of_their_own(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("capi"))
    groups = method.param_groups()
    assert groups[-1]["params"] == list(method.clusters.parameters())
    assert (groups[-1]["lr_scale"], groups[-1]["weight_decay"]) == (0.5, 0.01)
    covered = [id(p) for group in groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    optimizer = build_optimizer(groups, method.optimizer_config, 1e-3)
    (rate,) = {g["lr"] for g in optimizer.param_groups if g["params"][0] is method.clusters.weight}
    assert rate == pytest.approx(0.5e-3)


def test_the_teacher_stands_still_at_first_then_follows_and_stops_at_the_end(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("capi", "method.momentum=0.5"))
    method.total_steps = 100
    total = method.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    for done, expected in ((0, 1.0), (5, 0.75), (10, 0.5), (55, 0.75), (100, 1.0)):
        total.completed = done
        method.after_optimizer_step()
        assert method.teacher.momentum == pytest.approx(expected)
    assert method.evaluated_backbone is method.teacher.module
    method.train()
    assert not method.teacher.module.training


def test_defaults_are_those_of_the_authors_configuration() -> None:
    config = load_config(["method=capi"])
    method = config.method
    assert (method.mask_ratio, method.prediction_share, method.clusters) == (0.65, 0.05, 16384)
    assert (method.student_temperature, method.target_temperature, method.clustering_temperature) == (0.12, 0.06, 0.12)
    assert (method.momentum, method.momentum_warmup, method.predictor_depth) == (0.999, 0.1, 12)
    assert (config.augment.recipe, config.augment.counts) == ("capi", [1])
    assert (config.optimizer.lr, config.optimizer.patch_embed_lr, config.optimizer.weight_decay) == (1e-3, 0.2, 0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.mask_ratio=0.01", "masks 0 of the 16 patches"),
        ("augment.counts=[2]", "augment.counts"),
        ("method.clusters=1", "at least 2"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("capi", override)
