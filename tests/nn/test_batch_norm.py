import copy

import pytest
import timm
import torch
from torch import nn

from selfsup.nn import SplitBatchNorm2d, shuffle, split_batch_norm, unshuffle


def images(count, channels=3, size=4, seed=0):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(splits, channels=3, momentum=0.1):
    """A split norm, and a plain one with the same scales, offsets and running statistics."""
    torch.manual_seed(1)
    plain = nn.BatchNorm2d(channels, momentum=momentum).double()
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.normal_()
        plain.running_mean.normal_()
        plain.running_var.uniform_(0.5, 2)
    split = SplitBatchNorm2d(channels, splits, momentum=momentum).double()
    split.load_state_dict(plain.state_dict())
    return split, plain


@pytest.mark.parametrize(
    ("splits", "parts"), [(1, [8]), (4, [2, 2, 2, 2]), (3, [3, 2, 2]), (2, [3, 2]), (3, [1, 1, 1])]
)
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_training_is_plain_batch_norm_on_each_part(splits, parts, momentum):
    split, plain = pair(splits, momentum=momentum)
    x = images(sum(parts))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    norms = [copy.deepcopy(plain) for _ in parts]
    out = split(mine)
    expected = torch.cat([norm(part) for norm, part in zip(norms, theirs.split(parts), strict=True)])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    weights = images(len(x), seed=5)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
    for name in ("weight", "bias"):
        total = sum(getattr(norm, name).grad for norm in norms)
        torch.testing.assert_close(getattr(split, name).grad, total, rtol=1e-10, atol=1e-12)
    for name in ("running_mean", "running_var"):
        mean = sum(getattr(norm, name) for norm in norms) / len(norms)
        torch.testing.assert_close(getattr(split, name), mean, rtol=1e-12, atol=1e-12)
    assert split.num_batches_tracked.item() == 1


def test_parts_do_not_see_each_other():
    split, _ = pair(2)
    x = images(6)
    first = split(x)[:3]
    x[3:] += 10
    torch.testing.assert_close(split(x)[:3], first)


def test_evaluation_is_plain_batch_norm_for_any_batch():
    split, plain = pair(4)
    split.eval()
    plain.eval()
    for count in (1, 3, 8):
        assert torch.equal(split(images(count)), plain(images(count)))


def test_a_batch_smaller_than_the_parts_is_refused():
    split, _ = pair(4)
    with pytest.raises(ValueError, match="3 images cannot be split into 4"):
        split(images(3))


def test_state_dicts_are_interchangeable():
    split, plain = pair(2)
    split(images(4))
    assert list(split.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(split.state_dict())
    split.eval()
    plain.eval()
    assert torch.equal(split(images(4)), plain(images(4)))


def test_split_batch_norm_replaces_every_norm_of_a_resnet_and_keeps_its_state():
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0).double()
    network(images(4, size=32))  # statistics that are not the initial ones
    plain = copy.deepcopy(network)
    norms = [name for name, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d)]
    split_batch_norm(network, 2)
    assert [name for name, module in network.named_modules() if isinstance(module, SplitBatchNorm2d)] == norms
    assert len(norms) > 8
    assert list(network.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
        assert network.state_dict()[name].dtype == value.dtype, name
    x = images(6, size=32)
    assert torch.equal(network.eval()(x), plain.eval()(x))

    halves = [copy.deepcopy(plain).train()(half) for half in x.chunk(2)]
    torch.testing.assert_close(network.train()(x), torch.cat(halves), rtol=1e-9, atol=1e-9)


def test_split_batch_norm_keeps_the_settings_of_a_norm():
    module = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3).eval().requires_grad_(False))
    split_batch_norm(module, 5)
    norm = module[0]
    assert (type(norm), norm.splits, norm.eps, norm.momentum) == (SplitBatchNorm2d, 5, 1e-3, 0.3)
    assert not norm.training
    assert not any(p.requires_grad for p in norm.parameters())


@pytest.mark.parametrize("missing", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_norms_that_cannot_be_split_are_refused(missing):
    with pytest.raises(ValueError, match="cannot be split"):
        split_batch_norm(nn.Sequential(nn.BatchNorm2d(3, **missing)), 2)


def test_subclasses_with_another_forward_are_left_alone():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    module = nn.Sequential(Activated(3), nn.Sequential(nn.BatchNorm1d(3)))
    split_batch_norm(module, 2)
    assert type(module[0]) is Activated
    assert type(module[1][0]) is nn.BatchNorm1d


@pytest.mark.parametrize("count", [1, 2, 7])
def test_unshuffle_undoes_shuffle_in_one_process(count):
    x = torch.arange(count * 3.0).reshape(count, 3)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    shuffled = shuffle(x, order, None)
    assert torch.equal(shuffled, x[order])
    assert torch.equal(unshuffle(shuffled, order, None), x)


def test_shuffled_images_carry_no_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    assert not shuffle(x, torch.arange(4), None).requires_grad
