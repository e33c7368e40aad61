"""Prototypes and DINO's head: cosines, by hand."""

import pytest
import torch
from torch import nn

from selfsup.nn import DINOHead, Prototypes


def test_scores_are_cosines_of_unit_prototypes():
    torch.manual_seed(0)
    prototypes, z = Prototypes(7, 5), torch.randn(4, 5)
    expected = torch.stack([nn.functional.cosine_similarity(z, row[None]) for row in prototypes.weight], dim=1)
    torch.testing.assert_close(prototypes(z), expected)
    torch.testing.assert_close(prototypes(30 * z), expected)
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]  # no offsets


def test_normalize_puts_rows_back_in_place_and_leaves_directions():
    torch.manual_seed(0)
    prototypes = Prototypes(7, 5)
    weight = prototypes.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(torch.rand(7, 1) + 0.5)
    assert (weight.norm(dim=1) - 1).abs().max() > 0.05
    prototypes.normalize_()
    assert prototypes.weight is weight
    torch.testing.assert_close(weight.detach(), before)
    assert weight.requires_grad


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_scores_and_logits_are_float32_under_autocast(half):
    torch.manual_seed(0)
    prototypes, head, z = Prototypes(6, 4), DINOHead(4, 8, 5, 6), torch.randn(3, 4)
    expected = prototypes(z)
    with torch.autocast("cpu", dtype=half):
        assert torch.equal(prototypes(z), expected)
        assert torch.equal(prototypes(z.to(half)), prototypes(z.to(half).float()))
        assert head(z).dtype == torch.float32


def test_dino_head_is_three_layers_a_unit_bottleneck_and_unit_directions():
    torch.manual_seed(0)
    head, x = DINOHead(6, 8, 5, 11).double(), torch.randn(4, 6, dtype=torch.float64)
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(8, 6), (8, 8), (5, 8)]
    assert all(bool(layer.bias.eq(0).all()) for layer in linear)
    h = x
    for number, layer in enumerate(linear):
        h = h @ layer.weight.T + layer.bias
        h = h if number == 2 else h * 0.5 * (1 + torch.erf(h / 2**0.5))
    h = h / h.norm(dim=1, keepdim=True)
    v = head.weight / head.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(x), h @ v.T)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in head.modules())


def test_the_last_layer_is_torchs_weight_norm_with_its_scale_at_one():
    torch.manual_seed(0)
    head, x = DINOHead(6, 8, 5, 11).double(), torch.randn(4, 6, dtype=torch.float64)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 11, bias=False, dtype=torch.float64))
    scale, direction = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    with torch.no_grad():
        scale.fill_(1)
        direction.copy_(head.weight)
    weights = torch.randn(4, 11, dtype=torch.float64)
    (layer(nn.functional.normalize(head.mlp(x), dim=1)) * weights).sum().backward()
    (head(x) * weights).sum().backward()
    torch.testing.assert_close(head.weight.grad, direction.grad)
    assert (head.weight.grad * head.weight).sum(1).abs().max() < 1e-12  # no pull on the length


def test_batch_norm_in_dinos_head_follows_the_hidden_layers():
    head = DINOHead(6, 8, 5, 11, batch_norm=True)
    layers = [type(layer).__name__ for layer in head.mlp]
    assert layers == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert not any(isinstance(layer, torch.nn.BatchNorm1d) for layer in DINOHead(6, 8, 5, 11).mlp)
