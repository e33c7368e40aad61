"""What every objective keeps: it goes with the methods that it says, and is refused with a reason by all others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from selfsup.config import from_values, load_config, to_yaml
from selfsup.data import TrainLoader, load_splits
from selfsup.engine.training import build_method
from selfsup.errors import UserError
from selfsup.functional import decoupled_contrastive, view_pairs
from selfsup.methods import MoCo, SimCLR
from selfsup.negatives import MoCHiConfig
from selfsup.objectives import DCLConfig, Embeddings, SogCLR, SogCLRConfig
from selfsup.objectives.isogclr import ISogCLR, ISogCLRConfig
from selfsup.registry import fits, methods, negatives, objectives

#: What a tiny run with these needs: a small queue has few keys to mix.
TINY: dict[str, list[str]] = {
    "mochi": ["negatives.hardest=20", "negatives.pairs=5", "negatives.with_query=3", "negatives.wait_epochs=0"],
}
PAIRS = [
    (method, group, name)
    for method in methods
    for group, registry in (("objective", objectives), ("negatives", negatives))
    for name in registry
    if fits(methods[method].over, registry[name].over)
]


def prepared(config: Any) -> tuple[Any, Any]:
    splits = load_splits(config.data)
    torch.manual_seed(0)
    return build_method(config, splits), next(iter(TrainLoader(splits.pretrain, config.batch_size, config.seed)))


def call(method: Any, batch: Any) -> torch.Tensor:
    return method(batch.image, index=batch.index, label=batch.label)


def test_there_is_one_for_each_kind_of_contrast() -> None:
    assert {over for name in objectives for over in objectives[name].over} == {"views", "labels", "queue"}
    assert {method for method, _, _ in PAIRS} >= {"simclr", "supcon", "moco", "moco_v1"}


@pytest.mark.parametrize(("method", "group", "name"), PAIRS)
def test_it_moves_every_weight_and_its_settings_round_trip(
    method: str, group: str, name: str, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(method, f"{group}={name}", *TINY.get(name, []))
    assert from_values(yaml.safe_load(to_yaml(config))) == config
    built, batch = prepared(config)
    call(built, batch).backward()
    for parameter_name, parameter in built.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert bool(parameter.grad.ne(0).any()), parameter_name


@pytest.mark.parametrize(("method", "group", "name"), [pair for pair in PAIRS if pair[0] != "moco_v1"])
def test_autocast_leaves_the_loss_in_float32(
    method: str, group: str, name: str, tiny_config: Callable[..., Any]
) -> None:
    built, batch = prepared(tiny_config(method, f"{group}={name}", *TINY.get(name, [])))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = call(built, batch)
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=moco", "objective=mv_dhel"], "moco contrasts a query.* it goes with method=simclr"),
        (["method=supcon", "objective=sogclr"], "supcon contrasts the images of a batch by their labels"),
        (["method=simclr", "negatives=mochi"], "negatives=mochi is over a query.* it goes with method=moco, moco_v1"),
        (["method=byol", "objective=dcl"], "byol takes no other; it goes with method=moco, moco_v1, simclr, supcon"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(
    words: list[str], said: str, tiny_config: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=said):
        prepared(tiny_config(words[0].partition("=")[2], *words[1:]))


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"no objective=dlc. Did you mean 'dcl'"):
        load_config(["objective=dlc"])
    with pytest.raises(UserError, match="these have one: isogclr, sogclr"):
        load_config(["objective=dcl", "objective.rate=0.5"])
    with pytest.raises(UserError, match=r"objective.prior is 1.0; it must be at least 0 and below 1"):
        load_config(["objective=debiased", "objective.prior=1"])
    with pytest.raises(UserError, match="does not change the objective; choose it by objective=dcl"):
        load_config(["objective.name=dcl"])


def test_a_setting_of_the_loss_that_does_nothing_is_said() -> None:
    with pytest.warns(UserWarning, match=r"method.temperature does nothing with objective=dcl"):
        load_config(["objective=dcl", "method.temperature=0.5"])


def test_several_views_are_taken_with_an_objective_and_refused_without(tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="takes 2"):
        prepared(tiny_config("simclr", "augment.counts=[4]"))
    built, batch = prepared(tiny_config("simclr", "objective=mv_dhel", "augment.counts=[4]"))
    assert bool(call(built, batch).isfinite())
    with pytest.raises(UserError, match="takes 2"):
        prepared(tiny_config("moco", "objective=dcl", "augment.counts=[4]"))


def test_images_without_labels_are_refused_where_labels_are_asked_for(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("simclr", "objective=multi_positive", "objective.labels=true")
    splits = load_splits(config.data)
    splits.pretrain.labels = None
    with pytest.raises(UserError, match="objective=multi_positive learns from labels and these images have none"):
        build_method(config, splits)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("simclr", ["objective=multi_positive"]),
        ("simclr", ["objective=poly_view"]),
        ("simclr", ["objective=debiased", "objective.prior=0", "objective.temperature=0.1"]),
        ("simclr", ["objective=kernel_infonce", "objective.temperature=0.2"]),
        ("supcon", ["objective=multi_positive"]),
        ("moco", ["objective=debiased", "objective.prior=0", "objective.temperature=0.2"]),
        ("moco", ["objective=kernel_infonce", "objective.temperature=0.4"]),
        ("moco", ["negatives=mochi", *TINY["mochi"][:1], "negatives.pairs=0", "negatives.with_query=0"]),
        ("moco", ["negatives=mochi", *TINY["mochi"][:3], "negatives.wait_epochs=1"]),
        (
            "moco",
            ["negatives=feature_transformation", "negatives.positive_alpha=null", "negatives.negative_alpha=null"],
        ),
    ],
)
def test_at_its_limit_it_is_the_method_s_own_loss(
    method: str, words: list[str], tiny_config: Callable[..., Any]
) -> None:
    own, batch = prepared(tiny_config(method))
    other, _ = prepared(tiny_config(method, *words))
    missing = other.load_state_dict(own.state_dict(), strict=False)
    assert not missing.unexpected_keys
    first, second = call(own, batch), call(other, batch)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    first.backward(), second.backward()
    for a, b in zip(own.parameters(), other.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_labels_change_simclr_s_positives(tiny_config: Callable[..., Any]) -> None:
    own, batch = prepared(tiny_config("simclr", "objective=multi_positive"))
    other, _ = prepared(tiny_config("simclr", "objective=multi_positive", "objective.labels=true"))
    assert not torch.allclose(call(own, batch), call(other, batch))


def test_a_loop_of_one_s_own_takes_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8)
    method = SimCLR(network, image_size=8, objective=DCLConfig(temperature=0.2))
    views = method.views(images, seed=0, index=torch.arange(6))
    z = copy.deepcopy(method).head(method.encode(views).flatten(0, 1)).unflatten(0, (2, 6))
    torch.testing.assert_close(method(views), decoupled_contrastive(view_pairs(z), 0.2))
    with pytest.raises(UserError, match="keeps something of each image; give index"):
        SimCLR(network, image_size=8, objective=SogCLRConfig(), images=6)(images)
    mixing = MoCHiConfig(hardest=4, pairs=2, with_query=1, wait_epochs=0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert MoCo(network, image_size=8, batch_size=6, queue_size=12, bn_groups=1, negatives=mixing)(images).isfinite()


def test_mochi_cannot_mix_more_keys_than_there_are(tiny_config: Callable[..., Any]) -> None:
    built, batch = prepared(tiny_config("moco", "negatives=mochi", "negatives.wait_epochs=9"))
    with pytest.raises(UserError, match=r"negatives.hardest=1024 is more than the"):
        call(built, batch)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(step: int, index: list[int]) -> Embeddings:
    return Embeddings(random(2, len(index), 3, seed=step), torch.tensor(index))


def exponentials(z: torch.Tensor, t: list[float]) -> list[list[list[tuple[float, float]]]]:
    """Of each view and image: similarities of the negatives, each with its exponential."""
    u = torch.nn.functional.normalize(z, dim=-1)
    return [
        [
            [
                (s := float(u[v, i] @ u[w, j]), math.exp(s / t[i]))
                for w in range(len(u))
                for j in range(u.shape[1])
                if i != j
            ]
            for i in range(u.shape[1])
        ]
        for v in range(len(u))
    ]


def test_sogclr_remembers_each_image_s_average_wherever_it_comes_in_a_batch() -> None:
    objective = SogCLR(SogCLRConfig(temperature=0.5, rate=0.3), torch.tensor([7, 2, 9, 4])).double()
    remembered: dict[int, float] = {}
    for step, index in enumerate([[9, 2, 7], [2, 4, 9], [7, 9, 2]]):
        given = seen(step, index)
        loss = objective(given).loss
        u = [
            [
                now if i not in remembered else 0.7 * remembered[i] + 0.3 * now
                for i, now in ((i, sum(e for _, e in row) / len(row)) for i, row in zip(index, view, strict=True))
            ]
            for view in exponentials(given.views, [0.5] * 3)
        ]
        unit = torch.nn.functional.normalize(given.views, dim=-1)
        pull = (unit[0] * unit[1]).sum(1).mean().item()
        rows = exponentials(given.views, [0.5] * 3)
        push = sum(sum(e / u[v][i] * s for s, e in rows[v][i]) / len(rows[v][i]) for v in range(2) for i in range(3))
        assert loss.item() == pytest.approx(push / 6 - pull, rel=1e-9)
        remembered |= {image: (u[0][i] + u[1][i]) / 2 for i, image in enumerate(index)}
    kept = dict(zip(objective.memory.index.tolist(), objective.memory.values[0].exp().tolist(), strict=True))
    assert kept == pytest.approx(remembered)


def test_isogclr_moves_each_image_s_temperature() -> None:
    config = ISogCLRConfig(temperature=0.5, rate=0.3, rho=-0.2, step=0.05, momentum=0.6, least=0.46, most=0.55)
    objective = ISogCLR(config, torch.tensor([7, 2, 9, 4])).double()
    u: dict[int, float] = {}
    t, m = dict.fromkeys([2, 4, 7, 9], 0.5), dict.fromkeys([2, 4, 7, 9], 0.0)
    for step, index in enumerate([[9, 2, 7], [2, 4, 9], [7, 9, 2], [9, 2, 7]]):
        given = seen(step, index)
        objective(given)
        rows = exponentials(given.views, [t[i] for i in index])
        for place, image in enumerate(index):
            both, slopes = [], []
            for view in rows:
                row = view[place]
                now = sum(e for _, e in row) / len(row)
                both.append(0.7 * u[image] + 0.3 * now if image in u else now)
                mean = sum(e / both[-1] * s / t[image] for s, e in row) / len(row)
                slopes.append(math.log(both[-1]) - 0.2 - mean)
            u[image] = sum(both) / 2
            m[image] = 0.4 * m[image] + 0.6 * sum(slopes) / 2
            t[image] = min(0.55, max(0.46, t[image] - 0.05 * m[image]))
    values = objective.memory.values
    assert len({*t.values()}) > 2
    assert dict(zip(objective.memory.index.tolist(), values[0].exp().tolist(), strict=True)) == pytest.approx(u | {})
    assert dict(zip(objective.memory.index.tolist(), values[1].tolist(), strict=True)) == pytest.approx(t)
    assert dict(zip(objective.memory.index.tolist(), values[2].tolist(), strict=True)) == pytest.approx(m)
    with pytest.raises(UserError, match=r"objective.least=0.9 is above objective.most=0.7"):
        ISogCLR(ISogCLRConfig(least=0.9))
