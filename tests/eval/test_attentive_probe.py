"""Attentive probe: the published classifiers by loops, their training by torch's own optimiser, and what it finds."""

from __future__ import annotations

import math

import pytest
import torch
from measuring import changed, evaluate
from tiny import resident
from torch import nn
from torch.nn import functional as F

from selfsup.data.base import Splits
from selfsup.errors import UserError
from selfsup.eval import Encoder, eval_config
from selfsup.eval.attentive import FORMS, POOLS, CapiPool, JepaPool, all_logits
from selfsup.eval.protocols.attentive_probe import AttentiveProbeSettings, attentive_probe, train_pools
from selfsup.types import Normalization


def pool_of(form, width=6, heads=2, classes=3, seed=0):
    """One in float64 whose weights are all away from their start, biases and norms too."""
    pool = POOLS[form](width, heads, classes, torch.Generator().manual_seed(seed)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in pool.parameters():
            weight.add_(0.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return pool


def attended(pool, tokens, query, key_bias):
    """Project the keys and values of every token and let every head look, as the papers write it."""
    n, length, width = tokens.shape
    heads = pool.heads
    keys = tokens @ pool.key.T + key_bias
    values = tokens @ pool.value.weight.T + pool.value.bias
    out = []
    for image in range(n):
        row = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = [query[part] @ keys[image, place, part] / math.sqrt(width / heads) for place in range(length)]
            weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
            row.append(sum(weights[place] * values[image, place, part] for place in range(length)))
        out.append(torch.cat(row))
    return torch.stack(out)


def loop(form, pool, tokens, key_bias):
    if form == "capi":
        return pool.linear(attended(pool, tokens, pool.query[0], key_bias))
    mean = tokens.mean(-1, keepdim=True)
    variance = (tokens - mean).square().mean(-1, keepdim=True)
    normed = (tokens - mean) / (variance + 1e-5).sqrt() * pool.norm1_weight + pool.norm1_bias
    query = pool.to_query.weight @ pool.query[0] + pool.to_query.bias
    x = pool.query[0] + attended(pool, normed, query, key_bias)
    mean = x.mean(-1, keepdim=True)
    inside = (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()
    inside = pool.fc1(inside * pool.norm2.weight + pool.norm2.bias)
    inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
    return pool.linear(x + pool.fc2(inside))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("heads", "length"), [(1, 5), (2, 4), (3, 1)])
def test_a_classifier_is_what_the_paper_writes_in_value_and_gradient(form, heads, length):
    pools = [pool_of(form, heads=heads, seed=seed) for seed in range(2)]
    tokens = torch.randn(3, length, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    key_bias = torch.randn(6, dtype=torch.float64)  # the key's bias, which changes nothing
    found = all_logits(pools, tokens)
    expected = torch.stack([loop(form, pool, tokens, key_bias) for pool in pools])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    direction = torch.randn(found.shape, dtype=torch.float64)
    weights = [weight for pool in pools for weight in pool.parameters()]
    ours = torch.autograd.grad((found * direction).sum(), weights)
    theirs = torch.autograd.grad((expected * direction).sum(), weights, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_the_tokens_says_nothing(form):
    pool, tokens = pool_of(form), torch.randn(2, 7, 6, dtype=torch.float64)
    torch.testing.assert_close(all_logits([pool], tokens), all_logits([pool], tokens[:, torch.randperm(7)]))


def test_a_query_of_zero_sees_the_mean_and_one_token_is_projected():
    pool, tokens = pool_of("capi"), torch.randn(2, 7, 6, dtype=torch.float64)
    one = tokens[:, :1]
    torch.testing.assert_close(all_logits([pool], one)[0], pool.linear(pool.value(one[:, 0])))
    with torch.no_grad():
        pool.query.zero_()
    torch.testing.assert_close(all_logits([pool], tokens)[0], pool.linear(pool.value(tokens.mean(1))))


def test_the_numbers_of_weights_are_those_of_the_authors_classifiers():
    """But for the key's bias, and V-JEPA's projection that is built and never used."""
    d, c = 128, 10
    count = {form: sum(p.numel() for p in POOLS[form](d, 2, c, torch.Generator()).parameters()) for form in FORMS}
    assert count["capi"] == d + 2 * d * d + d + d * c + c
    attention, mlp = 3 * d * d + 2 * d, 8 * d * d + 5 * d
    assert count["v_jepa"] == d + attention + mlp + 2 * 2 * d + d * c + c


def test_weights_start_as_the_authors_start_them():
    pool = JepaPool(64, 1, 50, torch.Generator().manual_seed(0))
    for name, weight in pool.named_parameters():
        if "bias" in name:
            assert not weight.any(), name
        elif weight.ndim == 2:
            expected = 0.02 / math.sqrt(2) if name == "fc2.weight" else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.35 if name == "query" else 0.06), name
        else:
            assert bool((weight == 1).all()), name
    assert set(dict(CapiPool(64, 1, 5, torch.Generator()).named_parameters())) < set(dict(pool.named_parameters()))


# training


@pytest.mark.parametrize("form", FORMS)
def test_many_classifiers_at_once_are_each_trained_as_alone_by_the_authors_schedule(form):
    generator = torch.Generator().manual_seed(3)
    tokens, targets = torch.randn(10, 4, 6, generator=generator), torch.randint(0, 3, (10,), generator=generator)
    rates, decays = [0.64, 1.92] if form == "capi" else [1e-2, 3e-2], [0.0, 3.0]
    settings = AttentiveProbeSettings(form, rates, decays, epochs=3, batch_size=4, heads=2)
    pools, grid = train_pools(tokens, targets, 3, settings, seed=5)
    assert grid == [(rate, decay) for rate in rates for decay in decays]
    steps = 9  # a tenth of them is none, so that neither form warms up
    for (rate, decay), found in zip(grid, pools, strict=True):
        alone = POOLS[form](6, 2, 3, torch.Generator().manual_seed(5))
        named = dict(alone.named_parameters())
        spared = {"biases": [w for n, w in named.items() if "bias" in n or (form == "v_jepa" and w.ndim == 1)]}
        others = [w for w in named.values() if not any(w is s for s in spared["biases"])]
        betas = (0.9, 0.95) if form == "capi" else (0.9, 0.999)
        optimizer = torch.optim.AdamW(
            [{"params": others, "weight_decay": decay}, {"params": spared["biases"], "weight_decay": 0.0}],
            lr=0.0, betas=betas,
        )  # fmt: skip
        order, step = torch.Generator().manual_seed(5), 0
        for _ in range(3):
            for positions in torch.split(torch.randperm(10, generator=order), 4):
                for group in optimizer.param_groups:
                    scaled = rate * 4 / 256 if form == "capi" else rate
                    group["lr"] = scaled * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                F.cross_entropy(loop(form, alone, tokens[positions], 0.0), targets[positions]).backward()
                optimizer.step()
                step += 1
        for name, weight in found.named_parameters():
            torch.testing.assert_close(weight, named[name], rtol=2e-4, atol=2e-5, msg=name)
            start = dict(POOLS[form](6, 2, 3, torch.Generator().manual_seed(5)).named_parameters())[name]
            assert not torch.equal(weight, start) or decay == 0, name


def test_the_rate_of_capi_rises_over_a_tenth_of_the_steps(monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *args):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    settings = AttentiveProbeSettings("capi", [0.256], [0.0], epochs=20, batch_size=1)
    train_pools(torch.randn(2, 3, 4), torch.tensor([0, 1]), 2, settings, seed=0)
    assert seen[:5] == pytest.approx([0, 0.00025, 0.0005, 0.00075, 0.001], abs=1e-15)
    assert seen[22] == pytest.approx(0.001 * 0.5, rel=1e-12)
    assert seen[4:] == sorted(seen[4:], reverse=True)


# the protocol


def scenes(count, seed=0, labels=True):
    """Sixteen cells, five of each colour and a grey one, under noise; the class is the colour of the lighter cell."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 3, (count,), generator=generator)
    colours = torch.tensor([0] * 5 + [1] * 5 + [2] * 5 + [3])
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(count)])
    cells = 40 + 100 * F.one_hot(colours[order], 4)[..., :3]
    light = torch.stack([(row == c).nonzero()[0, 0] for row, c in zip(colours[order], which, strict=True)])
    cells[torch.arange(count), light] += 60
    cells = cells.transpose(1, 2).reshape(count, 3, 4, 4) + torch.randint(
        -20, 21, (count, 3, 4, 4), generator=generator
    )
    images = cells.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    return resident(
        images, which if labels else None, name="cells", split="train", image_size=16,
        normalization=Normalization((0.5,) * 3, (0.25,) * 3), classes=("red", "green", "blue"),
    )  # fmt: skip


class Cells(nn.Module):
    """Lightness and colour of each cell, in four channels; the pooled features are their means."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward_dense(self, images):
        self.images += len(images)
        cells = F.adaptive_avg_pool2d(images, 4)
        light = cells.amin(1, keepdim=True)
        return torch.cat([2 * light, cells - light], 1)

    def forward(self, images):
        return self.forward_dense(images).mean((2, 3))


SETTINGS = {"learning_rates": [0.03, 1e-9], "weight_decays": [0.0], "epochs": 15, "batch_size": 32, "heads": 1}


@pytest.mark.parametrize("form", FORMS)
def test_it_finds_what_no_mean_over_the_places_shows(form):
    data = scenes(400)
    train, held, test = (data.subset(part) for part in torch.arange(400).split([240, 60, 100]))
    scale = 8 if form == "capi" else 1  # its rate is for batches of 256
    own = {**SETTINGS, "learning_rates": [1e-9, 0.03 * scale], "form": form, "epochs": 40}
    config = changed(eval_config(linear_probe={"epochs": 20}), attentive_probe=own)
    splits = Splits(train, train, held, test)
    linear, attentive = evaluate(Cells(), splits, config, ["linear_probe", "attentive_probe"])
    assert linear["value"] < 0.6
    assert attentive["value"] > 0.9
    assert attentive["chosen"]["learning_rate"] == 0.03 * scale
    assert (attentive["form"], attentive["selected_on"]) == (form, "holdout")
    assert attentive["primary"] == (form == "capi")
    assert attentive["grid"]["augment"] == "none"
    assert sum(map(sum, attentive["confusion"]["counts"])) == 100


def test_the_test_images_pass_once_and_few_images_are_kept():
    network, data = Cells(), scenes(100)
    settings = AttentiveProbeSettings(**{**SETTINGS, "epochs": 1, "images": 50})
    found = attentive_probe(Encoder(network, progress=False), data, scenes(30, 1), settings)
    assert network.images == 50 + 30
    assert found.selected_on == "10% of train (5 images)"
    assert len(found.settings) == 2


def test_it_is_the_same_with_the_same_seed_and_another_with_another():
    data, test = scenes(60), scenes(30, 1)
    settings = AttentiveProbeSettings(**{**SETTINGS, "epochs": 2})
    one, again, other = (
        attentive_probe(Encoder(Cells(), progress=False), data, test, settings, seed=seed) for seed in (0, 0, 1)
    )
    assert one.settings == again.settings
    assert one.settings != other.settings


def test_what_does_not_fit_is_a_sentence():
    encoder, data = Encoder(Cells(), progress=False), scenes(20)
    with pytest.raises(UserError, match=r"eval\.attentive_probe\.heads: 3 heads do not divide the 4 channels"):
        attentive_probe(encoder, data, data, AttentiveProbeSettings(heads=3))
    with pytest.raises(UserError, match="give at least one value each"):
        attentive_probe(encoder, data, data, AttentiveProbeSettings(learning_rates=[]))
    with pytest.raises(UserError, match=r"set data\.holdout"):
        attentive_probe(encoder, data.subset(torch.arange(3)), data, AttentiveProbeSettings())
    with pytest.raises(UserError):
        attentive_probe(encoder, scenes(20, labels=False), data, AttentiveProbeSettings())


def test_a_network_without_maps_is_left_out_with_a_sentence():
    class Pooled(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    data = scenes(40)
    with pytest.raises(UserError, match=r"no map \(forward_dense\)"):
        evaluate(Pooled(), Splits(data, data, data.subset(torch.arange(10)), data), eval_config(), ["attentive_probe"])


def test_tokens_beyond_the_range_of_float16_are_at_its_end():
    class Large(Cells):
        def forward_dense(self, images):
            return 1e6 * super().forward_dense(images)

    settings = AttentiveProbeSettings(**{**SETTINGS, "epochs": 1, "learning_rates": [1e-4], "form": "v_jepa"})
    found = attentive_probe(Encoder(Large(), progress=False), scenes(40), scenes(20, 1), settings)
    assert math.isfinite(found.settings[0].holdout_loss)
