"""All4One by hand: neighbours from the queue as it was, mixtures of two kinds, features over the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError
from selfsup.functional import cross_view_nce, feature_loss

TINY = [
    "method.queue_size=48",
    "method.hidden_dim=16",
    "method.output_dim=8",
    "method.predictor_dim=16",
    "method.layers=1",
    "method.heads=2",
    "method.neighbors=3",
]
RANKS = [["method.dropout=0"], ["method.dropout=0", "method.queue_size=37", "method.layers=2"]]


def unit(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(x, dim=1)


def test_one_step_by_hand(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("all4one", "method.dropout=0"))
    with torch.no_grad():
        for parameter in method.target.parameters():  # a target that has drifted apart
            parameter.mul_(1.1).add_(0.01 * torch.randn_like(parameter))
    twin = copy.deepcopy(method)
    old = method.queue.negatives()
    loss = method.training_step(batch, 0)

    images = [v.image for v in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    z1, z2 = (twin.projector(twin.backbone(image)) for image in images)
    t1, t2 = (unit(twin.target.module(image)).detach() for image in images)
    near1, near2 = (old[(t @ old.T).argsort(1, descending=True)[:, :3]] for t in (t1, t2))
    p1, p2 = twin.predictor(z1), twin.predictor(z2)
    neighbor = (cross_view_nce(near1[:, 0], p2, 0.2) + cross_view_nce(near2[:, 0], p1, 0.2)) / 2

    def mix(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> torch.Tensor:
        tokens = torch.stack([first, second, third], 1) + twin.mixture.pattern
        return twin.mixture.encoder(tokens)[:, 0]

    rich1, rich2 = (mix(n[:, 0], n[:, 1], n[:, 2]) for n in (near1, near2))
    shift1, shift2 = (mix(twin.mixed_predictor(z), n[:, 0], n[:, 1]) for z, n in ((z1, near1), (z2, near2)))
    mixture = (cross_view_nce(rich1, shift2, 0.1) + cross_view_nce(rich2, shift1, 0.1)) / 2
    expected = 0.5 * neighbor + 0.5 * mixture + 5 * feature_loss((z1, z2), (t1, t2))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    torch.testing.assert_close(method.queue.keys[:16], t1)
    assert torch.equal(method.queue.keys[16:], old[16:])


def test_places_have_sines_and_cosines_along_the_features() -> None:
    from selfsup.nn import NeighborMixture

    pattern = NeighborMixture(8, 5, 1, 2).pattern
    feature = torch.arange(8.0)
    torch.testing.assert_close(pattern[0], feature.sin())
    torch.testing.assert_close(pattern[1], feature.cos())
    torch.testing.assert_close(pattern[2], (feature / 10000 ** (2 / 6)).sin())
    torch.testing.assert_close(pattern[4], (feature / 10000 ** (4 / 6)).sin())
    assert pattern.shape == (5, 8)


def test_the_mixture_learns_at_a_tenth_of_the_rate(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("all4one"))
    scales = {id(p): group.get("lr_scale", 1.0) for group in method.param_groups() for p in group["params"]}
    assert scales.keys() == {id(p) for p in method.parameters() if p.requires_grad}
    assert {scales[id(p)] for p in method.mixture.parameters()} == {0.1}
    rest = [p for name, p in method.named_parameters() if p.requires_grad and not name.startswith("mixture.")]
    assert {scales[id(p)] for p in rest} == {1.0}


def test_the_target_follows_with_a_momentum_that_rises_to_one(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, _ = prepared(tiny_config("all4one", "method.momentum=0.9"))
    monkeypatch.setattr(type(method), "progress", property(lambda self: 0.5))
    with torch.no_grad():
        for parameter in (*method.backbone.parameters(), *method.projector.parameters()):
            parameter.add_(torch.randn_like(parameter))
    before = [p.clone() for p in method.target.parameters()]
    method.after_optimizer_step()
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for new, old, source in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(new, 0.95 * old + 0.05 * source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method.queue_size=15"], r"method\.queue_size=15 is smaller than the 16 images"),
        (["method.neighbors=49"], r"method\.queue_size=48 is smaller .* 49 neighbours"),
        (["method.heads=3"], r"method\.heads=3 does not divide method\.output_dim=8"),
    ],
)
def test_settings_that_cannot_be(settings: list[str], message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("all4one", *settings)


def test_heads_and_defaults_are_solo_learns(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("all4one"))
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(m).__name__ for m in method.projector] == [*hidden, *hidden, "Linear", "BatchNorm1d"]
    assert [type(m).__name__ for m in method.predictor] == [*hidden, "Linear"]
    defaults = type(tiny_config("all4one").method)()
    assert (defaults.temperature, defaults.mixture_temperature, defaults.neighbors) == (0.2, 0.1, 5)
    assert (defaults.neighbor_weight, defaults.mixture_weight, defaults.feature_weight) == (0.5, 0.5, 5)
    assert (defaults.hidden_dim, defaults.output_dim, defaults.predictor_dim) == (2048, 256, 4096)
    assert (defaults.layers, defaults.heads, defaults.dropout, defaults.queue_size) == (3, 8, 0.1, 98304)
