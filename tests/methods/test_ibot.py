"""iBOT by hand, against DINO, and what implementations of it get wrong."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor

from selfsup.config import load_config
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.functional import block_mask
from selfsup.methods.distilled import own_masks
from selfsup.random import uniform

TINY = [
    "backbone=vit_small",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "augment.sizes=[32,16]",
    "augment.counts=[2,2]",
    "method.output_dim=24",
    "method.hidden_dim=16",
    "method.bottleneck_dim=8",
]
# all crops of one size: timm resamples positions in float32, which a test of float64 sees
RANKS = [
    ["augment.sizes=[32,32]"],
    ["augment.sizes=[32,32]", "method.freeze_last_layer_epochs=0", "method.momentum=0.9"],
]


def logits(head: Any, features: Tensor) -> Tensor:
    hidden = head.mlp(features)
    rows = hidden / hidden.norm(dim=-1, keepdim=True)
    return rows @ (head.weight / head.weight.norm(dim=1, keepdim=True)).T


def entropy(target: Tensor, student: Tensor) -> Tensor:
    """Cross-entropy of one row with another, number by number."""
    top = student.max()
    log_sum = top + torch.log(sum(torch.exp(x - top) for x in student))
    return -sum(q * (x - log_sum) for q, x in zip(target, student, strict=True))


def token_outputs(backbone: Any, image: Tensor, mask: list[bool], token: Tensor) -> Tensor:
    """Class and patch tokens of one image ``[C,32,32]``, its masked patches exchanged before positions are added."""
    network = backbone.network
    kernel, side = network.patch_embed.proj, image.shape[1] // 8
    patches = [image[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(side) for c in range(side)]
    embedded = [
        token if hidden else (kernel.weight * patch).sum((1, 2, 3)) + kernel.bias
        for patch, hidden in zip(patches, mask, strict=True)
    ]
    sequence = torch.stack([network.cls_token[0, 0], *embedded]) + network.pos_embed[0]
    return network.norm(network.blocks(sequence[None]))[0]


def drawn_masks(method: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> list[Tensor]:
    """Watch what a method's module takes for masks."""
    module = __import__(type(method).__module__, fromlist=[name])
    original, found = getattr(module, name), []

    def watch(*args: Any) -> Tensor:
        found.append(original(*args))
        return found[-1]

    monkeypatch.setattr(module, name, watch)
    return found


def test_one_step_is_the_loop_in_value_and_gradient(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = prepared(tiny_config("ibot", "batch_size=6", "method.patch_weight=0.7"))
    method = method.double()
    with torch.no_grad():
        method.center.copy_(0.1 * torch.randn(24))
        method.patch_center.copy_(0.1 * torch.randn(24))
        for parameter in [*method.teacher.parameters(), *method.teacher_head.parameters()]:
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    masks = drawn_masks(method, monkeypatch, "own_masks")
    output = method.training_step(batch, 0)
    views = [view.image.double() for view in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    mask = masks[0].view(2, 6, 16).tolist()
    assert {sum(row) for view in mask for row in view} - {0}, "no crop is masked"
    assert 0 in {sum(row) for view in mask for row in view}, "every crop is masked"
    whole, token = [False] * 16, twin.mask_token.weight[0, 0]
    with torch.no_grad():
        teacher = [
            [logits(twin.teacher_head.module, token_outputs(twin.teacher.module, v[n], whole, token)) for n in range(6)]
            for v in views[:2]
        ]
    student = [
        [logits(twin.head, token_outputs(twin.backbone, v[n], mask[i][n], token)) for n in range(6)]
        for i, v in enumerate(views[:2])
    ]
    local = [twin.head(twin.backbone(v)) for v in views[2:]]
    total = torch.zeros((), dtype=torch.float64)
    for q in range(2):
        for n in range(6):
            target = ((teacher[q][n][0] - twin.center) / 0.04).softmax(0)
            for v in range(4):
                if v != q:
                    seen = student[v][n][0] if v < 2 else local[v - 2][n]
                    total = total + entropy(target, seen / 0.1) / (6 * 2 * 3)
            hidden = [place for place in range(16) if mask[q][n][place]]
            for place in hidden:
                target_there = ((teacher[q][n][1 + place] - twin.patch_center) / 0.04).softmax(0)
                total = total + 0.7 * entropy(target_there, student[q][n][1 + place] / 0.1) / len(hidden) / 12
    torch.testing.assert_close(output, total, rtol=1e-9, atol=1e-9)
    # after the loss: the patches' centre moves to the mean of all patches, masked or not
    every = torch.stack([tokens for view in teacher for tokens in view])
    torch.testing.assert_close(method.center, 0.9 * twin.center + 0.1 * every[:, 0].mean(0))
    torch.testing.assert_close(method.patch_center, 0.9 * twin.patch_center + 0.1 * every[:, 1:].mean((0, 1)))
    output.backward()
    total.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_without_masks_it_is_dino_to_the_bit(tiny_config: Callable[..., Any]) -> None:
    ours, batch = prepared(tiny_config("ibot", "method.mask_share=0"))
    own = [word for word in TINY if not word.startswith("backbone=")]
    dino, _ = prepared(tiny_config("dino", *TINY[:1], *own, "augment=ibot", *[w for w in own if "augment" in w]))
    dino.backbone.load_state_dict(ours.backbone.state_dict())
    dino.head.load_state_dict(ours.head.state_dict())
    dino.teacher.module[0].load_state_dict(ours.teacher.module.state_dict())
    dino.teacher.module[1].load_state_dict(ours.teacher_head.module.state_dict())
    with torch.no_grad():
        ours.center.copy_(0.1 * torch.randn(24))
        dino.center.copy_(ours.center)
    loss, expected = ours.training_step(batch, 0), dino.training_step(batch, 0)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for part in ("backbone", "head"):
        theirs = dict(getattr(dino, part).named_parameters())
        for name, parameter in getattr(ours, part).named_parameters():
            assert torch.equal(parameter.grad, theirs[name].grad), f"{part}.{name}"
    assert torch.equal(ours.center, dino.center)
    assert not ours.mask_token.weight.grad.any()


def test_a_student_that_is_its_teacher_costs_the_entropy_of_its_tokens(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At equal temperatures, no centre, and masks that change no input as nothing but positions is read."""
    method, batch = prepared(tiny_config("ibot", "method.warmup_teacher_temperature=0.1", "method.mask_ratios=[1,1]"))
    for network in (method.backbone.network, method.teacher.module.network):
        torch.nn.init.zeros_(network.patch_embed.proj.weight)
        torch.nn.init.zeros_(network.patch_embed.proj.bias)
    torch.nn.init.zeros_(method.mask_token.weight)
    logs: dict[str, Tensor] = {}
    method.log = lambda name, value, **_: logs.update({name: value})
    method.training_step(batch, 0)
    target = (method.teacher_head(method.teacher.forward_tokens(torch.zeros(1, 3, 32, 32)).patches[0]) / 0.1).softmax(1)
    entropies = -(target * target.log()).sum(1).mean()
    masks = torch.stack([method.draw(batch.index, view)(2)[:, 0] < 0.5 for view in range(2)])
    assert logs["train/patch_loss"].item() == pytest.approx((masks.float().mean() * entropies).item(), rel=1e-4)


def test_a_constant_added_to_all_teacher_logits_changes_nothing_and_local_crops_are_never_masked(
    tiny_config: Callable[..., Any],
) -> None:
    method, batch = prepared(tiny_config("ibot"))
    given: list[tuple[int, ...]] = []
    original = method.backbone.forward_tokens

    def watch(images: Tensor, *args: Any) -> Any:
        given.append(tuple(images.shape))
        return original(images, *args)

    method.backbone.forward_tokens = watch
    loss = method.training_step(batch, 0)
    method.center.fill_(3.0)
    method.patch_center.fill_(-2.0)
    torch.testing.assert_close(method.training_step(batch, 0), loss, rtol=1e-5, atol=1e-5)
    assert given == [(32, 3, 32, 32)] * 2


def test_the_teacher_is_in_evaluation_mode_and_follows_by_name(tiny_config: Callable[..., Any]) -> None:
    method, _batch = prepared(tiny_config("ibot", "+backbone.kwargs.drop_path_rate=0.5", "method.momentum=0.6"))
    method.train()
    assert not any(
        module.training for module in [*method.teacher.module.modules(), *method.teacher_head.module.modules()]
    )
    assert method.backbone.training
    before = copy.deepcopy(method.teacher_head.module.weight)
    with torch.no_grad():
        method.head.weight.add_(1.0)
    method.after_optimizer_step()
    torch.testing.assert_close(method.teacher_head.module.weight, 0.6 * before + 0.4 * method.head.weight.detach())
    assert method.evaluated_backbone is method.teacher.module


def test_defaults_are_those_of_the_released_model() -> None:
    config = load_config(["method=ibot", "augment.sizes=[224,96]"])
    method = config.method
    assert (method.output_dim, method.hidden_dim, method.bottleneck_dim) == (8192, 2048, 256)
    assert (method.mask_share, method.mask_ratios, method.momentum) == (0.5, [0.1, 0.5], 0.996)
    assert (method.warmup_teacher_temperature, method.teacher_temperature, method.teacher_warmup_epochs) == (
        0.04,
        0.07,
        30,
    )
    assert (config.augment.recipe, config.augment.counts, config.backbone.name) == (
        "ibot",
        [2, 10],
        "vit_small_patch16_224",
    )
    assert (config.optimizer.lr, config.optimizer.final_weight_decay) == (5e-4, 0.4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("augment.counts=[1,2]", "augment.counts"),
        ("method.mask_ratios=[0.5,0.1]", "the lower first"),
        ("method.mask_ratios=[0,0.01]", "masks none of the 16 patches of views of 32 pixels"),
        ("method.mask_ratios=[0.1,1.5]", "at most 1"),
        ("+backbone.kwargs={global_pool: avg, fc_norm: false}", "is not its class token"),
    ],
)
def test_mistakes_are_named(override: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("ibot", override)


def test_a_network_without_tokens_is_refused(tiny_config: Callable[..., Any]) -> None:
    config = load_config(["method=ibot", "backbone=resnet_tiny", "data.train_size=64", "data.test_size=8"])
    from selfsup.data import load_splits

    with pytest.raises(UserError, match="vision transformer"):
        build_method(config, load_splits(config.data), 1)


def test_uniform_outputs_cost_the_logarithm(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("ibot", "method.mask_share=1"))
    with torch.no_grad():
        for head in (method.head, method.teacher_head.module):
            head.weight.fill_(1.0)
    assert method.training_step(batch, 0).item() == pytest.approx(2 * math.log(24), rel=1e-5)


def test_blocks_are_of_ibots_smallest_area() -> None:
    """(min(14, 14) // 3)² tokens, and every crop is masked at the ratio."""
    draw = partial(uniform, 0, torch.arange(8))
    mask = own_masks([draw, draw], (14, 14), [0.3, 0.3], 1.0)
    assert torch.equal(mask, block_mask(draw, (14, 14), 59, least=16).repeat(2, 1))
    assert not torch.equal(mask[:8], block_mask(draw, (14, 14), 59, least=4))
