from itertools import pairwise

import pytest
import torch
from torch import nn

from selfsup.nn import projection_head


def layout(head):
    return [type(layer) for layer in head]


L, B, R = nn.Linear, nn.BatchNorm1d, nn.ReLU


@pytest.mark.parametrize(
    ("dims", "settings", "expected"),
    [
        ([8, 4], {}, [L]),
        ([8, 6, 4], {}, [L, R, L]),
        ([8, 4], {"batch_norm": True}, [L]),
        ([8, 4], {"last_norm": "scale"}, [L, B]),
        ([8, 6, 4], {"batch_norm": True}, [L, B, R, L]),
        ([8, 6, 4], {"last_norm": "scale"}, [L, R, L, B]),
        ([8, 6, 5, 4], {"batch_norm": True, "last_norm": "scale"}, [L, B, R, L, B, R, L, B]),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_layers_and_widths(dims, settings, expected, bias):
    head = projection_head(dims, bias=bias, **settings)
    assert layout(head) == expected
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == list(pairwise(dims))
    assert all((layer.bias is not None) is bias for layer in linears)
    norms = [(i, layer) for i, layer in enumerate(head) if isinstance(layer, nn.BatchNorm1d)]
    assert all(norm.num_features == head[i - 1].out_features for i, norm in norms)
    assert head(torch.randn(3, dims[0])).shape == (3, dims[-1])


def test_everything_trains_but_the_offset_of_the_last_norm():
    head = projection_head([8, 6, 4], bias=False, batch_norm=True, last_norm="scale")
    frozen = [name for name, p in head.named_parameters() if not p.requires_grad]
    assert frozen == ["4.bias"]
    assert torch.equal(head[4].bias, torch.zeros(4))
    head(torch.randn(5, 8)).square().sum().backward()
    assert head[4].bias.grad is None
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad)

    plain = projection_head([8, 6, 4], batch_norm=True)
    assert all(p.requires_grad for p in plain.parameters())


def test_output_is_the_perceptron_and_not_normalised():
    torch.manual_seed(0)
    head = projection_head([5, 7, 3]).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    first, last = head[0], head[2]
    expected = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), expected)
    with torch.no_grad():
        last.weight.mul_(10)
        last.bias.mul_(10)
    torch.testing.assert_close(head(x), 10 * expected)


def test_last_norm_centres_each_output():
    torch.manual_seed(0)
    head = projection_head([5, 7, 3], bias=False, batch_norm=True, last_norm="scale").double()
    out = head(torch.randn(32, 5, dtype=torch.float64))
    torch.testing.assert_close(out.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=1e-2, atol=0)


def test_fixed_last_norm_has_nothing_to_learn():
    head = projection_head([5, 7, 3], bias=False, batch_norm=True, last_norm="fixed")
    assert list(head[4].parameters()) == []
    assert all(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize(
    ("bias", "last_bias", "expected"), [(True, False, [True, False]), (False, True, [False, True])]
)
def test_the_last_bias_is_a_choice_of_its_own(bias, last_bias, expected):
    head = projection_head([5, 7, 3], bias=bias, last_bias=last_bias)
    assert [layer.bias is not None for layer in head if isinstance(layer, L)] == expected


def test_the_activation_is_a_choice():
    assert layout(projection_head([5, 7, 6, 3], activation=nn.GELU)) == [L, nn.GELU, L, nn.GELU, L]
