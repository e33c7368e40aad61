import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from selfsup.errors import UserError
from selfsup.nn import MaskToken
from selfsup.optimization import (
    OptimizerConfig,
    build_optimizer,
    clip_gradients,
    cosine_schedule,
    decay_groups,
    learning_rate_factors,
    refined_groups,
    scaled_lr,
)

OPTIMIZERS = ["momentum", "sgd", "lars", "adamw", "lamb", "lion"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()


def build(module, lr=0.1, **values):
    config = OptimizerConfig(**values)
    return build_optimizer(decay_groups(module, config.weight_decay, config.exclude_1d), config, lr)


def backward(module, seed=0):
    module.zero_grad()
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss = module(x).square().mean()
    loss.backward()
    return loss.item()


def snapshot(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# learning rate


@pytest.mark.parametrize(
    ("scaling", "batch", "expected"),
    [
        ("linear", 256, 0.3),
        ("linear", 4096, 4.8),  # SimCLR's
        ("linear", 64, 0.075),
        ("sqrt", 1024, 0.6),
        ("sqrt", 64, 0.15),
        ("none", 4096, 0.3),
    ],
)
def test_the_learning_rate_follows_the_batch(scaling, batch, expected):
    assert scaled_lr(OptimizerConfig(lr=0.3, scaling=scaling), batch) == pytest.approx(expected)


def test_the_reference_batch_is_a_setting():
    assert scaled_lr(OptimizerConfig(lr=0.06, reference_batch=512), 128) == pytest.approx(0.015)


def test_unknown_scaling_brings_the_nearest():
    with pytest.raises(UserError, match=r"optimizer\.scaling.*'linaer'.*'linear'"):
        scaled_lr(OptimizerConfig(scaling="linaer"), 256)


# schedule


def factor(step, steps, epochs=None, group=0, **values):
    """The factor of one step; an epoch is a step unless ``epochs`` says otherwise."""
    optimizer = build(network(), **values)
    return learning_rate_factors(OptimizerConfig(**values), steps, epochs or steps, optimizer)[group](step)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (5, 0.5), (9, 0.9), (10, 1.0), (60, 0.5), (110, 0.0), (200, 0.0), (10 + 25, (1 + math.sqrt(0.5)) / 2)],
)
def test_warmup_then_half_a_cosine(step, expected):
    assert factor(step, 110, warmup_epochs=10) == pytest.approx(expected, abs=1e-15)
    assert factor(step, 110, warmup_epochs=10, final_lr=0.1) == pytest.approx(
        expected if step < 10 else 0.1 + 0.9 * expected, abs=1e-15
    )


def test_epochs_become_steps_and_the_warmup_takes_at_most_half():
    assert factor(5, 110, epochs=11, warmup_epochs=1) == pytest.approx(0.5)
    assert factor(3, 8, warmup_epochs=100) == 0.75
    assert factor(4, 8, warmup_epochs=100) == 1.0
    assert factor(0, 100) == 1.0
    assert factor(50, 100) == pytest.approx(0.5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 20), st.integers(20, 40), st.floats(0, 1))
def test_the_factor_rises_to_one_and_falls_to_the_final_value(warmup, cosine, final):
    total = warmup + cosine
    factors = [factor(step, total, warmup_epochs=warmup, final_lr=final) for step in range(total + 1)]
    assert factors[warmup] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(final, abs=1e-12)
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert all(a >= b - 1e-12 for a, b in zip(factors[warmup:], factors[warmup + 1 :], strict=False))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1), (1199, 1), (1200, 0.1), (1599, 0.1), (1600, 0.01), (1999, 0.01)]
)
def test_steps_drop_the_rate_at_the_milestones(step, expected):
    """MoCo v1: a tenth at epochs 120 and 160 of 200."""
    values = {"schedule": "steps", "milestones": [120, 160]}
    assert factor(step, 2000, epochs=200, **values) == pytest.approx(expected)
    assert factor(step, 2000, epochs=200, drop=0.2, **values) == pytest.approx(expected ** math.log10(5))


def test_a_constant_schedule_still_warms_up():
    assert [factor(step, 8, warmup_epochs=2, schedule="constant") for step in (0, 1, 2, 8)] == [0, 0.5, 1, 1]


def test_unknown_schedule_brings_the_nearest():
    with pytest.raises(UserError, match=r"optimizer\.schedule.*'cosin'.*'cosine'"):
        factor(0, 1, schedule="cosin")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_group_may_have_its_own_rate_and_keep_it(name):
    module = network()
    groups = [
        {"params": list(module[0].parameters()), "lr_scale": 0.25},
        {"params": list(module[2].parameters()), "constant_lr": True},
    ]
    config = OptimizerConfig(name=name)
    optimizer = build_optimizer(groups, config, 0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.4])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factors(config, 4, 4, optimizer))
    for _ in range(2):
        backward(module)
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.4])


def test_a_half_cosine_between_two_values():
    """Momentum from .99 to 1 is .99, .995, 1; weight decay from .04 to .4 rises the same way."""
    assert [cosine_schedule(0.99, 1.0, x) for x in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1.0])
    assert [cosine_schedule(0.04, 0.4, x) for x in (0, 0.5, 1)] == pytest.approx([0.04, 0.22, 0.4])
    assert cosine_schedule(1.0, 0.0, 0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)


# groups


def test_vectors_do_not_decay_and_frozen_parameters_are_left_out():
    module = network()
    module[1].bias.requires_grad_(False)
    names = {id(p): name for name, p in module.named_parameters()}
    decayed, excluded = decay_groups(module, 0.01, exclude_1d=True)
    assert [names[id(p)] for p in decayed["params"]] == ["0.weight", "2.weight"]
    assert [names[id(p)] for p in excluded["params"]] == ["0.bias", "1.weight", "2.bias"]
    assert (decayed["weight_decay"], excluded["weight_decay"]) == (0.01, 0.0)


def test_everything_decays_in_one_group_without_exclusion():
    module = network()
    (group,) = decay_groups(module, 0.01, exclude_1d=False)
    assert len(group["params"]) == 6
    assert group["weight_decay"] == 0.01


def test_no_group_is_empty():
    (group,) = decay_groups(nn.Linear(3, 2, bias=False), 0.01, exclude_1d=True)
    assert group["weight_decay"] == 0.01
    (group,) = decay_groups(nn.BatchNorm1d(3), 0.01, exclude_1d=True)
    assert group["weight_decay"] == 0.0


# optimisers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_moves_all_weights_downhill(name):
    module = network()
    optimizer = build(module, lr=1e-3, name=name)
    before, loss = snapshot(module), backward(module)
    gradients = {key: p.grad.clone() for key, p in module.named_parameters()}
    optimizer.step()
    for key, p in module.named_parameters():
        if gradients[key].abs().max() > 1e-12:  # BatchNorm takes the gradient of the bias before it
            assert not torch.equal(p, before[key]), key
    assert backward(module) < loss


@pytest.mark.parametrize("name", ["momentum", "sgd", "adamw", "lion"])
def test_only_the_decaying_group_shrinks(name):
    module = network()
    optimizer = build(module, name=name, lr=0.1, weight_decay=0.02)
    before = snapshot(module)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    nesterov = 1.9 if name == "sgd" else 1.0  # decay is part of the gradient there
    for key, p in module.named_parameters():
        factor = 1 - 0.1 * 0.02 * nesterov if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * before[key], rtol=1e-12, atol=0, msg=key)


def loop_direction(name, weight, gradient, decay, momentum, buffer):
    """One parameter, element by element: what is subtracted, over the learning rate, and the new buffer."""
    gradient = [g + decay * w for g, w in zip(gradient, weight, strict=True)]
    if name == "lars":
        ratio = 1e-3 * math.hypot(*weight) / math.hypot(*gradient)
        gradient = [ratio * g for g in gradient]
    buffer = gradient if buffer is None else [momentum * b + g for b, g in zip(buffer, gradient, strict=True)]
    step = [g + momentum * b for g, b in zip(gradient, buffer, strict=True)] if name == "sgd" else buffer
    return step, buffer


@pytest.mark.parametrize("name", ["momentum", "sgd", "lars"])
@pytest.mark.parametrize(("decay", "momentum"), [(1e-6, 0.9), (0.1, 0.9), (0.01, 0.5), (0.0, 0.9)])
def test_three_steps_are_the_formula(name, decay, momentum):
    module = network()
    optimizer = build(module, name=name, lr=0.3, weight_decay=decay, momentum=momentum)
    buffers = dict.fromkeys(snapshot(module))
    for step in range(3):
        backward(module, seed=step)
        before = snapshot(module)
        optimizer.step()
        for key, p in module.named_parameters():
            weight, gradient = before[key].flatten().tolist(), p.grad.flatten().tolist()
            own_decay, own_name = (decay, name) if p.ndim > 1 else (0.0, "sgd" if name == "sgd" else "momentum")
            move, buffers[key] = loop_direction(own_name, weight, gradient, own_decay, momentum, buffers[key])
            expected = torch.tensor([w - 0.3 * m for w, m in zip(weight, move, strict=True)], dtype=torch.float64)
            torch.testing.assert_close(p.detach().flatten(), expected, rtol=1e-12, atol=1e-15, msg=f"{key} {step}")


def test_the_first_step_of_adamw_and_lion_is_the_sign_of_the_gradient():
    for name in ("adamw", "lion"):
        module = network()
        optimizer = build(
            module, name=name, lr=0.01, weight_decay=0.1, kwargs={"eps": 1e-16} if name == "adamw" else {}
        )
        backward(module)
        before = snapshot(module)
        optimizer.step()
        for key in ("0.weight", "2.weight", "2.bias"):
            p = module.get_parameter(key)
            decay = 0.1 if p.ndim > 1 else 0.0
            expected = before[key] * (1 - 0.01 * decay) - 0.01 * p.grad.sign()
            torch.testing.assert_close(p.detach(), expected, rtol=1e-8, atol=1e-10, msg=f"{name} {key}")


def test_arguments_reach_the_optimiser():
    module = network()
    optimizer = build(module, name="lars", kwargs={"trust_coeff": 0.02})
    assert optimizer.param_groups[0]["trust_coeff"] == 0.02
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize(("name", "near"), [("larss", "lars"), ("adamww", "adamw")])
def test_an_unknown_optimiser_brings_the_nearest(name, near):
    with pytest.raises(UserError, match=rf"optimizer\.name.*'{name}'.*'{near}'"):
        build(network(), name=name)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("momentum", {"nonsense": 1}), ("adamw", {"betas": (2.0, 0.9)}), ("lars", {"lr": 1.0})]
)
def test_arguments_it_does_not_take_are_a_users_error(name, kwargs):
    with pytest.raises(UserError, match=f"optimizer: '{name}' cannot be built"):
        build(network(), name=name, kwargs=kwargs)


def test_a_negative_learning_rate_is_a_users_error():
    with pytest.raises(UserError, match="learning rate"):
        build(network(), lr=-0.1)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_one_fused_call_moves_the_weights_as_the_loop_does(name):
    steps = []
    for fused in (False, True):
        module = network()
        config = OptimizerConfig(name=name, weight_decay=0.05)
        optimizer = build_optimizer(decay_groups(module, 0.05, True), config, 0.01, fused=fused)
        assert bool(optimizer.defaults.get("fused")) == fused
        for step in range(3):
            backward(module, seed=step)
            optimizer.step()
        steps.append(snapshot(module))
    for key, loop in steps[0].items():
        torch.testing.assert_close(steps[1][key], loop, rtol=1e-10, atol=1e-12, msg=key)


@pytest.mark.parametrize("kwargs", [{"fused": False}, {"foreach": True}])
def test_settings_decide_before_the_default(kwargs):
    optimizer = build(network(), name="adamw", kwargs=kwargs)
    assert {key: optimizer.defaults[key] for key in kwargs} == kwargs
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("name", ["momentum", "sgd", "lars", "lamb", "lion", "nadam"])
def test_what_has_no_fused_form_is_built_without(name):
    assert not build(network(), name=name).defaults.get("fused")


# rates by depth, decay by name


class Student(nn.Module):
    """What a method over a transformer is made of."""

    def __init__(self, network):
        super().__init__()
        self.network, self.head, self.mask_token = network, nn.Linear(8, 2), MaskToken(8)


def student(**kwargs):
    given = {"embed_dim": 8, "depth": 3, "num_heads": 2, "img_size": 8, "patch_size": 4, "num_classes": 0}
    return Student(timm.models.vision_transformer.VisionTransformer(**given, **kwargs))


def moved(module, **values):
    """How far a step of plain SGD at rate 1 moves each parameter whose gradient is 1."""
    config = OptimizerConfig(name="momentum", momentum=0, **{"weight_decay": 0, **values})
    groups = decay_groups(module, config.weight_decay, config.exclude_1d)
    optimizer = build_optimizer(refined_groups(groups, module, module.network, config), config, 1.0)
    before = snapshot(module)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = snapshot(module)
    return {name: before[name] - after[name] for name in before}, optimizer


def test_without_such_settings_groups_stay_what_they_are():
    module = student()
    groups = decay_groups(module, 0.1, True)
    assert refined_groups(groups, module, module.network, OptimizerConfig()) is groups


def test_layers_of_a_transformer_move_the_less_the_deeper_they_lie():
    """As DINOv2 has it: factor ^ (blocks + 1 - layer), where the embedding is layer 0 and block i layer i + 1."""
    steps, optimizer = moved(student(reg_tokens=2), layer_decay=0.5, patch_embed_lr=0.2)
    for name, step in steps.items():
        power = 0
        if name.startswith("network.blocks."):
            power = 3 - int(name.split(".")[2])
        elif name.startswith("mask_token") or name.split(".")[1] in (
            "cls_token",
            "reg_token",
            "pos_embed",
            "patch_embed",
        ):
            power = 4
        expected = 0.5**power * (0.2 if "patch_embed" in name else 1)
        torch.testing.assert_close(step, torch.full_like(step, expected), rtol=1e-5, atol=1e-6)
    assert optimizer.param_groups[0]["lr"] == 1.0  # the rate that is logged
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(steps)


def test_layers_of_a_resnet_too_and_a_network_that_does_not_know_them_is_refused():
    module = Student(timm.create_model("resnet18", num_classes=0))
    steps, _ = moved(module, layer_decay=0.5)
    # 8 blocks below the heads, then the stem
    for name, power in (("head.weight", 0), ("network.layer4.1.conv2.weight", 1), ("network.layer1.0.bn1.bias", 8)):
        assert steps[name].mean().item() == pytest.approx(0.5**power, rel=1e-4)
    assert steps["network.conv1.weight"].mean().item() == pytest.approx(0.5**9, rel=1e-3)
    with pytest.raises(UserError, match=r"optimizer\.patch_embed_lr=0\.2: ResNet has no patch embedding; set it to 1"):
        moved(module, patch_embed_lr=0.2)
    with pytest.raises(UserError, match=r"optimizer\.layer_decay=0\.5: Linear does not say how deep"):
        moved(Student(nn.Linear(2, 2)), layer_decay=0.5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("class_token", {"network.cls_token"}),
        ("registers", {"network.reg_token"}),
        ("positions", {"network.pos_embed"}),
        ("mask_token", {"mask_token.weight"}),
    ],
)
def test_tokens_are_exempt_from_decay_by_name(kind, names):
    def still(**values):
        """The parameters that a step moves by their gradient alone."""
        module = student(reg_tokens=2)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(0.5)
        steps, _ = moved(module, weight_decay=0.1, **values)
        return {name for name, step in steps.items() if (step - 1).abs().max() < 1e-6}

    plain = still()
    assert still(no_decay=[kind]) - plain == names
    assert {name for name in plain if "token" in name or "pos" in name} == set()
    with pytest.raises(UserError, match=r"optimizer\.no_decay .*each of them must be one of class_token"):
        OptimizerConfig(no_decay=["cls"])


def test_gradients_are_clipped_together_by_module_or_by_tensor():
    def norms(apart):
        module = nn.ModuleDict({"backbone": nn.Linear(4, 3), "head": nn.Linear(3, 2), "frozen": nn.Linear(2, 2)})
        for name, parameter in module.named_parameters():
            size = 5.0 if name.startswith("backbone") else 0.1
            parameter.grad = None if "frozen" in name else size * torch.ones_like(parameter)
        clip_gradients(module, 1.0, apart)
        return {
            name: torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item()
            for name, part in module.items()
            if name != "frozen"
        } | {name: p.grad.norm().item() for name, p in module.named_parameters() if p.grad is not None}

    by_module, by_tensor = norms("module"), norms("tensor")
    assert by_module["backbone"] == pytest.approx(1, rel=1e-4)
    assert by_module["head"] == pytest.approx(0.1 * 8**0.5)  # below it, and left alone
    assert by_tensor["backbone.weight"] == by_tensor["backbone.bias"] == pytest.approx(1, rel=1e-4)
    assert by_tensor["head.weight"] == pytest.approx(0.1 * 6**0.5)


def test_the_square_root_rule_with_a_reference_of_1024():
    """DINOv2: 0.004 · √(2048 / 1024)."""
    config = OptimizerConfig(lr=0.004, scaling="sqrt", reference_batch=1024)
    assert scaled_lr(config, 2048) == pytest.approx(0.004 * 2**0.5)
