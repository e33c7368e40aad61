"""LARS in each of its forms is a loop over the elements of every weight, step after step."""

import copy
import math

import pytest
import torch
from torch import nn

from selfsup.config import load_config
from selfsup.errors import UserError
from selfsup.lars import Lars
from selfsup.optimization import OptimizerConfig, build_optimizer, decay_groups

RATES = (0.5, 2.0, 0.8)  # a rate that rises and falls, so that inside and outside the momentum differ


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (5,), (2, 3, 2, 2))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


class Loop:
    """One weight as a list of numbers."""

    def __init__(self, weight, decay=0.0, momentum=0.9, eps=0.0, **form):
        self.weight, self.buffer = weight.flatten().tolist(), [0.0] * weight.numel()
        self.decay, self.momentum, self.eps, self.form = decay, momentum, eps, form

    def step(self, gradient, rate):
        gradient = gradient.flatten().tolist()
        length = math.sqrt(sum(w * w for w in self.weight))
        if self.form.get("norms_apart"):  # apex's LARC: a weight of zeros or without a gradient is left to SGD
            own = math.sqrt(sum(g * g for g in gradient))
            below = own + self.decay * length + self.eps
            decay = self.decay if own > 0 and length > 0 else 0.0
            direction = [g + decay * w for g, w in zip(gradient, self.weight, strict=True)]
        else:
            direction = [g + self.decay * w for g, w in zip(gradient, self.weight, strict=True)]
            own = math.sqrt(sum(d * d for d in direction))
            below = own + self.eps
        ratio = 0.001 * length / below if own > 0 and length > 0 else 1.0
        if self.form.get("trust_clip"):
            ratio = min(ratio / rate, 1.0)
        for i, d in enumerate(direction):
            inside = rate if self.form.get("rate_in_momentum") else 1.0
            step = inside * ratio * d
            self.buffer[i] = self.momentum * self.buffer[i] + step
            move = step + self.momentum * self.buffer[i] if self.form.get("nesterov") else self.buffer[i]
            self.weight[i] -= move * (1.0 if self.form.get("rate_in_momentum") else rate)


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"eps": 1e-8},
        {"norms_apart": True, "eps": 1e-8},
        {"rate_in_momentum": True},
        {"trust_clip": True},
        {"nesterov": True},
        {"momentum": 0.0},
    ],
    ids=lambda form: "-".join(form) or "plain",
)
def test_three_steps_are_the_loop(form, decay):
    weights = tensors()
    weights[1].zero_()  # as a bias begins
    loops = [Loop(weight, decay, **form) for weight in weights]
    parameters = [nn.Parameter(weight) for weight in weights]
    optimizer = Lars(parameters, lr=1.0, weight_decay=decay, **form)
    for number, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        for parameter, loop, gradient in zip(parameters, loops, tensors(number + 1), strict=True):
            parameter.grad = gradient.clone()
            loop.step(gradient, rate)
        optimizer.step()
        for parameter, loop in zip(parameters, loops, strict=True):
            expected = torch.tensor(loop.weight, dtype=torch.float64).view_as(parameter)
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-15)
    for parameter, gradient in zip(parameters, tensors(3), strict=True):
        assert torch.equal(parameter.grad, gradient)  # a gradient belongs to its loss


def test_without_decay_the_length_of_a_step_does_not_follow_the_gradient():
    lengths = []
    for factor in (1e-3, 1.0, 1e3):
        parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
        parameter.grad = factor * torch.eye(4, dtype=torch.float64)
        Lars([parameter], lr=1.6).step()
        lengths.append((parameter.detach() - 1).norm().item())
    assert lengths == pytest.approx([1.6 * 0.001 * 4] * 3, rel=1e-12)  # 4 is the length of the weight


def test_decay_and_gradient_that_pull_apart_are_what_the_two_forms_differ_in():
    moved = []
    for apart in (False, True):
        parameter = nn.Parameter(torch.full((2, 2), 3.0, dtype=torch.float64))
        parameter.grad = torch.full((2, 2), -0.1, dtype=torch.float64)
        Lars([parameter], lr=1.0, weight_decay=0.1, norms_apart=apart).step()
        moved.append(3.0 - parameter[0, 0].item())
    # g + decay · w is 0.2 an element; ‖w‖ = 6, ‖g + decay · w‖ = 0.4, ‖g‖ + decay · ‖w‖ = 0.2 + 0.6
    assert moved == pytest.approx([0.2 * 0.006 / 0.4, 0.2 * 0.006 / 0.8], rel=1e-12)


def test_a_group_that_is_exempt_takes_plain_steps():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    optimizer = build_optimizer(decay_groups(module, 0.0, True), OptimizerConfig(name="lars", weight_decay=0.0), 0.5)
    module(torch.randn(6, 4, dtype=torch.float64)).pow(3).sum().backward()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer.step()
    for name, p in module.named_parameters():
        step = p.grad if p.ndim == 1 else p.grad * 0.001 * before[name].norm() / p.grad.norm()
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * step, rtol=1e-12, atol=1e-15, msg=name)


def test_a_weight_without_a_gradient_stays_and_later_joins():
    still, moving = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = Lars([still, moving], lr=1.0, weight_decay=0.1)
    moving.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(still.detach(), torch.ones(2, 2))
    still.grad = torch.ones(2, 2)
    optimizer.step()
    assert bool((still.detach() < 1).all())


def test_the_presets_take_the_forms_of_their_authors():
    forms = {}
    for name in ("swav", "simclr", "byol", "moco_v3", "barlow_twins", "vicreg", "pixpro"):
        optimizer = load_config([f"experiment=imagenet/{name}", "data.root=."]).optimizer
        assert optimizer.name == "lars"
        forms[name] = {key for key in ("norms_apart", "rate_in_momentum") if optimizer.kwargs.get(key)}
    assert {name: form for name, form in forms.items() if form} == {
        "swav": {"norms_apart"},
        "simclr": {"rate_in_momentum"},
    }


def test_what_it_does_not_take_is_said():
    config = OptimizerConfig(name="lars", kwargs={"trust": 0.02})
    with pytest.raises(UserError, match=r"'lars' cannot be built.*'trust'; it takes adapt, trust_coeff"):
        build_optimizer([{"params": [nn.Parameter(torch.ones(2))]}], config, 0.1)
    with pytest.raises(ValueError, match="cannot be negative"):
        Lars([nn.Parameter(torch.ones(2))], lr=-1.0)


def test_larc_leaves_a_weight_whose_gradient_is_zero_where_it_is():
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.zeros(2, 2)
    Lars([parameter], lr=1.0, weight_decay=0.1, norms_apart=True, eps=1e-8).step()
    assert torch.equal(parameter.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_with_the_norms_apart_it_is_timms_which_older_runs_go_on_with(decay):
    timm = pytest.importorskip("timm.optim")
    ours, theirs = ([nn.Parameter(weight) for weight in tensors()] for _ in range(2))
    settings = {"norms_apart": True, "eps": 1e-8, "adapt": decay > 0}
    optimizers = [
        Lars(ours, lr=0.5, momentum=0.9, weight_decay=decay, **settings),
        timm.Lars(theirs, lr=0.5, momentum=0.9, weight_decay=decay),
    ]
    for seed in range(1, 5):
        for weights, optimizer in zip((ours, theirs), optimizers, strict=True):
            for weight, gradient in zip(weights, tensors(seed), strict=True):
                weight.grad = gradient
            optimizer.step()
        if seed == 2:  # a state that timm's has saved
            state = copy.deepcopy(optimizers[1].state_dict()["state"])
            optimizers[0].load_state_dict({**optimizers[0].state_dict(), "state": state})
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
