import pytest
import torch
from torch import nn

from selfsup.nn import BackboneConfig, MomentumEncoder, build_backbone


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def values(module):
    return [p.detach().clone() for p in module.parameters()]


def test_starts_as_a_copy_that_shares_nothing():
    online = network()
    encoder = MomentumEncoder(online)
    for key, query in zip(encoder.module.parameters(), online.parameters(), strict=True):
        assert torch.equal(key, query)
        assert key.data_ptr() != query.data_ptr()


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.999, 1.0])
def test_update_is_the_formula_element_by_element(momentum):
    encoder, online = MomentumEncoder(network().double()), network(seed=1).double()
    expected = []
    for key, query in zip(values(encoder), values(online), strict=True):
        pairs = zip(key.flatten().tolist(), query.flatten().tolist(), strict=True)
        expected.append([momentum * k + (1 - momentum) * q for k, q in pairs])
    before = values(online)
    encoder.update(online, momentum)
    for key, row in zip(values(encoder), expected, strict=True):
        torch.testing.assert_close(key.flatten(), torch.tensor(row, dtype=torch.float64), rtol=1e-14, atol=1e-16)
    assert all(map(torch.equal, values(online), before))


def test_momentum_one_keeps_and_zero_copies_exactly():
    encoder, online = MomentumEncoder(network()), network(seed=1)
    before = values(encoder)
    encoder.update(online, 1.0)
    assert all(map(torch.equal, values(encoder), before))
    encoder.update(online, 0.0)
    assert all(map(torch.equal, values(encoder), values(online)))


def test_repeated_updates_approach_the_online_network():
    encoder, online = MomentumEncoder(network().double()), network(seed=1).double()
    start = values(encoder)
    for _ in range(10):
        encoder.update(online, 0.9)
    for key, first, query in zip(values(encoder), start, values(online), strict=True):
        torch.testing.assert_close(key - query, 0.9**10 * (first - query), rtol=1e-12, atol=1e-14)


def test_update_leaves_buffers_and_the_own_forward_moves_them():
    online = network()
    encoder = MomentumEncoder(online)
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(3)) + 2
    online(x)
    encoder.update(online, 0.0)
    norm = encoder.module[1]
    assert torch.equal(norm.running_mean, torch.zeros(6))
    assert norm.num_batches_tracked.item() == 0

    online_mean = online[1].running_mean.clone()
    encoder(x - 4)
    hidden = encoder.module[0](x - 4)
    torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * hidden.var(0))
    assert torch.equal(online[1].running_mean, online_mean)


def test_forward_is_the_averaged_network_without_gradients():
    encoder, online = MomentumEncoder(network()), network(seed=1)
    encoder.update(online, 0.3)
    x = torch.randn(5, 4).requires_grad_()
    out = encoder(x)
    assert not out.requires_grad
    torch.testing.assert_close(out, encoder.module(x).detach())


def test_parameters_are_not_trainable_while_the_online_ones_stay_so():
    online = network()
    online[0].bias.requires_grad_(False)
    encoder = MomentumEncoder(online)
    assert not any(p.requires_grad for p in encoder.parameters())
    assert [p.requires_grad for p in online.parameters()] == [True, False, True, True, True, True]


def test_the_average_is_in_the_state_dict():
    encoder, online = MomentumEncoder(network()), network(seed=1)
    encoder.update(online, 0.25)
    encoder(torch.randn(8, 4))
    restored = MomentumEncoder(network(seed=2))
    restored.load_state_dict(encoder.state_dict())
    for name, value in encoder.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value)


def transformer(**kwargs):
    torch.manual_seed(0)
    settings = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, **kwargs}
    return build_backbone(BackboneConfig("vit_tiny_patch16_224", kwargs=settings), 3)


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_teacher_stays_in_evaluation_where_it_is_asked_to(evaluates):
    online = transformer(drop_path_rate=0.9)
    encoder = nn.ModuleDict({"teacher": MomentumEncoder(online, evaluates=evaluates)}).train()["teacher"]
    assert encoder.training
    assert all(module.training != evaluates for module in encoder.module.modules())
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(x), encoder(x)) == evaluates
    assert torch.equal(encoder(x), online.eval()(x)) == evaluates


def test_tokens_of_a_teacher_are_those_of_its_network_without_gradients():
    online = transformer()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = MomentumEncoder(online, evaluates=True).forward_tokens(x, layers=(0,), normalize_layers=False)
    expected = online.eval().forward_tokens(x, layers=(0,), normalize_layers=False)
    assert torch.equal(ours.patches, expected.patches)
    assert torch.equal(ours.layers[0].patches, expected.layers[0].patches)
    assert not ours.patches.requires_grad


def test_update_goes_by_name_and_leaves_out_what_the_student_has_alone():
    kept = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    encoder = MomentumEncoder(kept)
    student = nn.ModuleDict({"mask": nn.Linear(2, 2), "b": nn.Linear(2, 2), "a": nn.Linear(2, 2), "c": nn.Linear(3, 1)})
    encoder.update(student, 0.0)
    for name in ("a", "b"):
        assert torch.equal(encoder.module[name].weight, student[name].weight)
    del student["b"]
    with pytest.raises(ValueError, match=r"no parameter b\.bias"):
        encoder.update(student, 0.5)
