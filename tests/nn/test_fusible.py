"""BatchNorm and ReLU as they are compiled on a CPU: the values, gradients and state of torch's own."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from selfsup.engine.fusible import fusible_batch_norm, make_fusible, undo_fusible


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair():
    """A fusible norm, and torch's with the same scales, offsets and running statistics."""
    plain = nn.BatchNorm2d(5, eps=1e-3, momentum=0.3).double()
    for seed, tensor in enumerate((*plain.parameters(), *plain.buffers())):
        if tensor.is_floating_point():
            tensor.data.copy_(numbers(5, seed=seed).abs() + 0.1)
    fusible = copy.deepcopy(plain)
    make_fusible(fusible)
    return fusible, plain


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (1, 5, 4, 4), (7, 5, 1, 1), (2, 5, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_batch_norm(shape, memory_format):
    weight, bias = numbers(5, seed=1), numbers(5, seed=2)
    results = []
    for function in (
        lambda x, w, b: fusible_batch_norm(x, w, b, 1e-3)[0],
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, 0.1, 1e-3),
    ):
        x = (numbers(*shape) * 3 + 7).to(memory_format=memory_format)
        leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias)]
        y = function(*leaves)
        gradients = torch.autograd.grad((y * numbers(*shape, seed=3)).sum(), leaves)
        results.append((y, *gradients))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_mean_and_variance_are_those_of_the_batch():
    x = numbers(6, 5, 4, 3)
    _, mean, variance = fusible_batch_norm(x, torch.ones(5).double(), torch.zeros(5).double(), 1e-5)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))


def test_float32_keeps_the_variance_of_numbers_far_from_zero():
    x = (numbers(64, 5, 8, 8) + 1000).float()
    _, _, variance = fusible_batch_norm(x, torch.ones(5), torch.zeros(5), 1e-5)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    # the worst case: an image with one value, the others with another
    x = torch.full((256, 5, 8, 8), 1.0)
    x[0] = 1000
    _, _, variance = fusible_batch_norm(x, torch.ones(5), torch.zeros(5), 1e-5)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_bfloat16_is_normalised_in_float32():
    x, weight, bias = numbers(6, 5, 4, 3).bfloat16().requires_grad_(), torch.full((5,), 2.0), torch.full((5,), 0.5)
    y, mean, _ = fusible_batch_norm(x, weight, bias, 1e-5)
    (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
    assert (y.dtype, mean.dtype, gradient.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert torch.equal(y, F.batch_norm(x.float(), None, None, weight, bias, True, 0.1, 1e-5).bfloat16())


def test_a_layer_trains_as_torchs_does():
    fusible, plain = pair()
    weights = numbers(6, 5, 4, 3, seed=9)
    for seed in range(3):
        outputs = [layer(numbers(6, 5, 4, 3, seed=seed) * 2 + 1) for layer in (fusible, plain)]
        for output in outputs:
            (output * weights).sum().backward()
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)
    assert plain.num_batches_tracked == 3
    state = fusible.state_dict()
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-10)
    for mine, theirs in zip(fusible.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_evaluation_and_bad_input_are_torchs():
    fusible, plain = pair()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fusible(numbers(1, 5, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        fusible(numbers(4, 5))
    fusible.eval()
    plain.eval()
    for count in (1, 3):
        assert torch.equal(fusible(numbers(count, 5, 2, 2)), plain(numbers(count, 5, 2, 2)))


def test_relu_has_torchs_values_and_gradients():
    layer = nn.ReLU()
    make_fusible(layer)
    x = torch.tensor([-2.0, -0.0, 0.0, 3.0, float("inf"), float("nan")], requires_grad=True)
    weights = torch.arange(6.0) + 1
    results = []
    for function in (layer, F.relu):
        y = function(x)
        results.append((y, *torch.autograd.grad((y * weights).nansum(), x)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine[:5], theirs[:5], rtol=0, atol=0)
    assert results[0][0].isnan().tolist() == [False] * 5 + [True]


def test_a_whole_network_keeps_its_values_and_can_be_put_back():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    torch.manual_seed(0)
    network = nn.Sequential(
        timm.create_model("resnet10t", num_classes=0, global_pool=""),
        Activated(512),
        nn.BatchNorm2d(512, affine=False),
        nn.BatchNorm2d(512, momentum=None),
        nn.BatchNorm2d(512, track_running_stats=False),
    ).double()
    plain = copy.deepcopy(network)
    make_fusible(network)
    changed = [layer for layer in network.modules() if "forward" in vars(layer)]
    assert {type(layer) for layer in changed} == {nn.BatchNorm2d, nn.ReLU}
    assert not [layer for layer in network[1:] if layer in changed]
    copied = copy.deepcopy(network)
    assert all(vars(layer)["forward"].__self__ is layer for layer in copied.modules() if "forward" in vars(layer))
    x = numbers(4, 3, 32, 32)
    torch.testing.assert_close(network(x), plain(x), rtol=1e-8, atol=1e-9)
    undo_fusible(network)
    assert not [layer for layer in network.modules() if "forward" in vars(layer)]


def test_undoing_leaves_a_forward_pass_of_somebody_else():
    layer = nn.ReLU()
    layer.forward = lambda x: x
    undo_fusible(layer)
    assert layer(torch.tensor(-1.0)) == -1
