"""Heads of maps, the encoder of maps and pixel propagation."""

import math

import pytest
import torch
from torch import nn

from selfsup.errors import UserError
from selfsup.nn import BackboneConfig, DenseEncoder, PixelPropagation, build_backbone, check_dense, dense_head

C, B, R = nn.Conv2d, nn.BatchNorm2d, nn.ReLU


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("dims", "batch_norm", "layers"),
    [([8, 4], True, [C]), ([8, 6, 4], False, [C, R, C]), ([8, 6, 5, 4], True, [C, B, R, C, B, R, C])],
)
def test_dense_head_layers(dims, batch_norm, layers):
    head = dense_head(dims, batch_norm=batch_norm)
    assert [type(layer) for layer in head] == layers
    assert head(torch.randn(3, 8, 2, 2)).shape == (3, dims[-1], 2, 2)
    assert all(layer.kernel_size == (1, 1) and layer.bias is not None for layer in head if isinstance(layer, C))


def test_dense_head_treats_cells_alike_and_apart():
    head = dense_head([3, 5, 2]).double()
    maps = random(2, 3, 4, 4)
    first, _, last = head
    cell = maps[1, :, 2, 3]
    hidden = (first.weight[:, :, 0, 0] @ cell + first.bias).relu()
    torch.testing.assert_close(head(maps)[1, :, 2, 3], last.weight[:, :, 0, 0] @ hidden + last.bias)


def test_dense_encoder_makes_one_pass_and_pools_the_map():
    backbone = build_backbone(BackboneConfig(name="convnet", width=4, blocks=[1, 1]), 3)
    head, pooled_head = dense_head([8, 5]), nn.Linear(8, 6)
    calls = []
    backbone.network.layers.register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(3, 3, 8, 8)
    features, dense, pooled = DenseEncoder(backbone, head, pooled_head)(images)
    assert len(calls) == 1
    torch.testing.assert_close(features, backbone.forward_dense(images))
    torch.testing.assert_close(dense, head(features))
    torch.testing.assert_close(pooled, pooled_head(backbone(images)))
    assert len(DenseEncoder(backbone, head)(images)) == 2


# pixel propagation


def loop_propagation(x, weight, bias, gamma):
    """Equation 3 one pair of cells at a time, in Python floats; x is one image's rows of cells."""

    def unit(row):
        length = math.sqrt(math.fsum(v * v for v in row))
        return [v / length for v in row]

    def transformed(row):
        return [math.fsum(w * v for w, v in zip(ws, row, strict=True)) + b for ws, b in zip(weight, bias, strict=True)]

    units, values = [unit(row) for row in x], [unit(transformed(row)) for row in x]
    out = []
    for u in units:
        y = [0.0] * len(bias)
        for v, value in zip(units, values, strict=True):
            share = max(math.fsum(a * b for a, b in zip(u, v, strict=True)), 0.0) ** gamma
            y = [s + share * g for s, g in zip(y, value, strict=True)]
        out.append(y)
    return out


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(("count", "dim", "size"), [(1, 2, 2), (3, 4, 3), (2, 5, 1)])
def test_propagation_is_the_loop(count, dim, size, gamma):
    module, x = PixelPropagation(dim, gamma).double(), random(count, dim, size, size)
    weight, bias = module.transform.weight[:, :, 0, 0].tolist(), module.transform.bias.tolist()
    rows = [loop_propagation(image.flatten(1).T.tolist(), weight, bias, gamma) for image in x]
    expected = torch.tensor(rows, dtype=torch.float64).transpose(1, 2).view_as(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-11, atol=1e-11)
    single = PixelPropagation(dim, gamma)
    single.load_state_dict(module.state_dict())
    torch.testing.assert_close(single(x.float()), expected.float(), rtol=1e-4, atol=1e-5)


def test_gradient_of_propagation_is_the_slope_of_the_loop():
    module, x, probe = PixelPropagation(3).double(), random(1, 3, 2, 2), random(1, 3, 2, 2, seed=1)
    weight, bias = module.transform.weight[:, :, 0, 0].tolist(), module.transform.bias.tolist()

    def loop(rows, weight):
        out = loop_propagation(rows, weight, bias, 2.0)
        wanted = probe[0].flatten(1).T.tolist()
        return math.fsum(o * w for a, b in zip(out, wanted, strict=True) for o, w in zip(a, b, strict=True))

    def slope(table, i, j, value):
        step, results = 1e-6, []
        for sign in (1, -1):
            moved = [list(row) for row in table]
            moved[i][j] += sign * step
            results.append(value(moved))
        return (results[0] - results[1]) / (2 * step)

    leaf = x.clone().requires_grad_()
    (module(leaf) * probe).sum().backward()
    rows = x[0].flatten(1).T.tolist()
    slopes = [[slope(rows, i, j, lambda r: loop(r, weight)) for j in range(3)] for i in range(4)]
    torch.testing.assert_close(leaf.grad[0].flatten(1).T, torch.tensor(slopes).double(), rtol=1e-6, atol=1e-8)
    slopes = [[slope(weight, i, j, lambda w: loop(rows, w)) for j in range(3)] for i in range(3)]
    found = module.transform.weight.grad[:, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor(slopes).double(), rtol=1e-6, atol=1e-8)


def test_propagation_gradcheck():
    module = PixelPropagation(3).double()
    assert torch.autograd.gradcheck(module, random(2, 3, 2, 2).requires_grad_())


def unit_transform(module, x):
    return nn.functional.normalize(module.transform(x), dim=1)


def test_orthogonal_cells_do_not_mix():
    module, x = PixelPropagation(4).double(), 3 * torch.eye(4, dtype=torch.float64).view(1, 4, 2, 2)
    torch.testing.assert_close(module(x), unit_transform(module, x))


def test_opposite_cells_do_not_mix():
    module, x = PixelPropagation(2).double(), torch.tensor([[[[1.0, -1.0]], [[2.0, -2.0]]]], dtype=torch.float64)
    torch.testing.assert_close(module(x), unit_transform(module, x))


def test_a_constant_map_stays_constant_and_adds_up():
    module, x = PixelPropagation(3).double(), random(1, 3, 1, 1).expand(1, 3, 3, 3)
    # nine cells of weight 1 and no division by their sum
    torch.testing.assert_close(module(x), 9 * unit_transform(module, x))


def test_a_large_exponent_leaves_each_cell_to_itself():
    module, x = PixelPropagation(4, gamma=1e6).double(), random(2, 4, 3, 3)
    torch.testing.assert_close(module(x), unit_transform(module, x))


def test_lengths_of_cells_change_no_weight():
    module, x = PixelPropagation(3).double(), random(1, 3, 2, 2)
    module.transform.bias.data.zero_()
    torch.testing.assert_close(module(x * random(1, 1, 2, 2, seed=1).exp()), module(x))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_similarities_stay_in_float32_under_autocast(half):
    module, x = PixelPropagation(8), random(2, 8, 3, 3).float()
    full = module(x)
    with torch.autocast("cpu", dtype=half):
        out = module(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, full, rtol=0.02, atol=0.02)
    module.transform = nn.Identity()  # what is left is not to be rounded at all
    plain = module(x)
    with torch.autocast("cpu", dtype=half):
        assert torch.equal(module(x), plain)


def test_an_exponent_without_gradient_is_refused():
    with pytest.raises(ValueError, match="gamma"):
        PixelPropagation(4, gamma=0.5)


# which networks have comparable cells


def test_check_dense_leaves_the_network_as_it_was():
    backbone = build_backbone(BackboneConfig(name="resnet", width=4, blocks=[1, 1, 1, 1], stem_stride=2), 3)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    check_dense(backbone, [32, 32])
    assert all(module.training for module in backbone.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("resnet", [16, 16], "1×1"),
        ("resnet", [32, 64], "one size"),
        ("mobilenetv3_small_050", [64, 64], "channels"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(name, sizes, words):
    backbone = build_backbone(BackboneConfig(name=name, width=4, blocks=[1, 1, 1, 1], stem_stride=2), 3)
    with pytest.raises(UserError, match=words):
        check_dense(backbone, sizes)
