"""I-JEPA by hand, and what implementations of it get wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from test_ibot import drawn_masks
from torch import Tensor

from selfsup.config import load_config
from selfsup.errors import UserError

TINY = [
    "backbone=vit_small_mean",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "backbone.kwargs.class_token=false",
    "method.min_context=4",
    "method.predictor_width=12",
    "method.predictor_depth=1",
    "method.predictor_heads=3",
]


def tokens_of(backbone: Any, image: Tensor, keep: list[int]) -> Tensor:
    network = backbone.network
    kernel = network.patch_embed.proj
    rows = []
    for place in keep:
        r, c = divmod(place, 4)
        patch = image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8]
        rows.append((kernel.weight * patch).sum((1, 2, 3)) + kernel.bias + network.pos_embed[0, place])
    return network.norm(network.blocks(torch.stack(rows)[None]))[0]


def smooth_l1(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, 0.5 * x * x, x.abs() - 0.5)


def test_one_step_is_the_loop_in_value_and_gradient(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = prepared(tiny_config("ijepa", "batch_size=5"))
    method = method.double()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    masks = drawn_masks(method, monkeypatch, "multi_block_masks")
    output = method.training_step(batch, 0)
    (view,) = twin.views(batch.image, seed=twin_seed(method), index=batch.index)
    hidden, blocks = masks[0]
    predictor, losses = twin.predictor, []
    for n, image in enumerate(view.image.double()):
        with torch.no_grad():
            whole = tokens_of(twin.teacher.module, image, list(range(16)))
            target = (whole - whole.mean(1, keepdim=True)) / (whole.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        keep = [place for place in range(16) if not hidden[n, place]]
        seen = tokens_of(twin.backbone, image, keep)
        context = torch.stack([predictor.embed(x) + predictor.positions[p] for x, p in zip(seen, keep, strict=True)])
        for block in blocks[n]:
            places = [place for place in range(16) if block[place]]
            assert not set(places) & set(keep)
            asked = torch.stack([predictor.mask_token[0, 0] + predictor.positions[place] for place in places])
            x = torch.cat([context, asked])[None]
            for layer in predictor.blocks:
                x = layer(x)
            said = predictor.head(predictor.norm(x))[0, len(keep) :]
            losses += [smooth_l1(said[i] - target[place]) for i, place in enumerate(places)]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    output.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-10, msg=name)


def test_a_prediction_of_nothing_costs_what_normal_targets_do(tiny_config: Callable[..., Any]) -> None:
    """E smooth-L1(z) of a standard normal z: ∫ min(z²/2, |z| - ½) φ = .4241."""
    method, batch = prepared(tiny_config("ijepa"))
    torch.nn.init.zeros_(method.predictor.head.weight)
    torch.nn.init.zeros_(method.predictor.head.bias)
    normal = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(100_000) + 0.5) / 100_000)
    assert smooth_l1(normal).mean().item() == pytest.approx(0.4241, abs=1e-3)
    assert method.training_step(batch, 0).item() == pytest.approx(0.424, abs=0.04)


def test_the_prediction_knows_nothing_of_the_pixels_it_is_asked_for(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = prepared(tiny_config("ijepa"))
    masks, said = drawn_masks(method, monkeypatch, "multi_block_masks"), []
    method.predictor.register_forward_hook(lambda module, args, out: said.append(out.detach()))
    (view,) = method.views(batch.image, seed=twin_seed(method), index=batch.index)
    method.seed_step(0)
    method.step((view,), batch)
    hidden = masks[0].hidden.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hidden, torch.randn_like(view.image), view.image)
    method.step((type(view)(changed, view.to_source),), batch)
    assert torch.equal(*said)
    method.step((type(view)(view.image + ~hidden, view.to_source),), batch)
    assert not torch.equal(said[0], said[2])


def test_the_order_of_the_blocks_does_not_matter(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import selfsup.methods.ijepa as module

    method, batch = prepared(tiny_config("ijepa"))
    loss, original = method.training_step(batch, 0), module.multi_block_masks

    def turned(*args: Any) -> Any:
        masks = original(*args)
        return masks._replace(targets=masks.targets.flip(1))

    monkeypatch.setattr(module, "multi_block_masks", turned)
    torch.testing.assert_close(method.training_step(batch, 0), loss, rtol=1e-6, atol=1e-6)


def test_targets_carry_no_gradient_and_the_teacher_follows_along_a_line(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("ijepa", "method.momentum=0.6"))
    method.training_step(batch, 0).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert not any(module.training for module in method.teacher.module.modules())
    method.total_steps = 10
    progress = method.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    for step, momentum in ((0, 0.6), (5, 0.8), (10, 1.0)):
        progress.completed = step
        old = method.teacher.module.network.pos_embed.clone()
        with torch.no_grad():
            method.backbone.network.pos_embed.add_(1.0)
        method.after_optimizer_step()
        expected = momentum * old + (1 - momentum) * method.backbone.network.pos_embed.detach()
        torch.testing.assert_close(method.teacher.module.network.pos_embed, expected)
    assert method.evaluated_backbone is method.teacher.module


def test_defaults_are_the_papers() -> None:
    config = load_config(["method=ijepa"])
    method, optimizer = config.method, config.optimizer
    assert (method.targets, method.target_scale, method.target_aspect) == (4, [0.15, 0.2], [0.75, 1.5])
    assert (method.context_scale, method.min_context, method.momentum) == ([0.85, 1.0], 10, 0.996)
    assert (method.predictor_width, method.predictor_depth) == (384, 12)
    assert (optimizer.lr, optimizer.reference_batch, optimizer.final_weight_decay) == (1e-3, 2048, 0.4)
    assert (config.augment.recipe, config.augment.counts) == ("ijepa", [1])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.target_scale=[0.3,0.2]", r"method\.target_scale.*the lower first"),
        ("method.context_scale=[0.9]", r"method\.context_scale"),
        ("backbone.kwargs.patch_size=32", "patch"),
        ("augment.counts=[2]", "augment.counts"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("ijepa", override)
