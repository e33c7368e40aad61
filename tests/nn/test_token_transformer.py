"""The small transformer over tokens, against sequences that are laid out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn import TokenTransformer
from selfsup.nn.token_transformer import CrossBlock

GRID, IN, OUT, WIDTH = (2, 3), 5, 7, 8


def build(mode: str, depth: int = 2) -> TokenTransformer:
    torch.manual_seed(0)
    network = TokenTransformer(IN, OUT, GRID, WIDTH, depth, heads=2, mode=mode)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network.double()


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randn(2, count, IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KEEP = torch.tensor([[4, 0, 3], [1, 2, 5]])


def through(network: TokenTransformer, sequence: list[Tensor]) -> Tensor:
    x = torch.stack(sequence)[None]
    for block in network.blocks:
        x = block(x)
    out: Tensor = network.head(network.norm(x))[0]
    return out


@pytest.mark.parametrize("prefix", [0, 2])
def test_fill_restores_the_grid(prefix: int) -> None:
    network, patches = build("fill"), tokens(3)
    before = tokens(prefix, seed=1) if prefix else None
    out = network(patches, KEEP, prefix=before)
    assert out.shape == (2, 6, OUT)
    for number in range(2):
        at = {place: network.embed(patches[number, k]) for k, place in enumerate(KEEP[number].tolist())}
        sequence = [at.get(place, network.mask_token[0, 0]) + network.positions[place] for place in range(6)]
        head = [] if before is None else [network.embed(token) for token in before[number]]
        torch.testing.assert_close(out[number], through(network, [*head, *sequence])[prefix:])


def test_fill_does_not_depend_on_the_order_of_what_is_there() -> None:
    network, patches = build("fill"), tokens(3)
    order = [2, 0, 1]
    torch.testing.assert_close(network(patches[:, order], KEEP[:, order]), network(patches, KEEP))
    assert not torch.allclose(network(patches[:, order], KEEP), network(patches, KEEP))


def test_the_mask_token_counts_where_nothing_is() -> None:
    for keep, learns in ((torch.arange(6).expand(2, 6), False), (torch.arange(5).expand(2, 5), True)):
        network = build("fill")
        network(tokens(keep.shape[1]), keep).square().sum().backward()
        assert network.mask_token.grad is not None
        assert bool(network.mask_token.grad.any()) == learns


TARGET = torch.tensor([[[1, 2], [5, 1]], [[0, 4], [3, 0]]])


@pytest.mark.parametrize("prefix", [0, 1])
def test_query_runs_each_block_of_places_by_itself(prefix: int) -> None:
    network, patches = build("query"), tokens(3)
    before = tokens(prefix, seed=1) if prefix else None
    out = network(patches, KEEP, TARGET, before)
    assert out.shape == (2, 2, 2, OUT)
    for number in range(2):
        context = [network.embed(patches[number, k]) + network.positions[p] for k, p in enumerate(KEEP[number])]
        head = [] if before is None else [network.embed(token) for token in before[number]]
        for block in range(2):
            asked = [network.mask_token[0, 0] + network.positions[place] for place in TARGET[number, block]]
            expected = through(network, [*head, *context, *asked])[-2:]
            torch.testing.assert_close(out[number, block], expected)


def test_the_order_of_the_blocks_does_not_matter_and_one_block_needs_no_dimension() -> None:
    network, patches = build("query"), tokens(3)
    out = network(patches, KEEP, TARGET)
    torch.testing.assert_close(network(patches, KEEP, TARGET.flip(1)), out.flip(1))
    torch.testing.assert_close(network(patches, KEEP, TARGET[:, 0]), out[:, 0])


@pytest.mark.parametrize("prefix", [0, 1])
def test_cross_asks_each_place_by_itself(prefix: int) -> None:
    network, patches = build("cross"), tokens(3)
    before = tokens(prefix, seed=1) if prefix else None
    target = TARGET[:, 0]
    out = network(patches, KEEP, target, before)
    assert out.shape == (2, 2, OUT)
    for number in range(2):
        context = [network.embed(patches[number, k]) + network.positions[p] for k, p in enumerate(KEEP[number])]
        context += [] if before is None else [network.embed(token) for token in before[number]]
        for position in range(2):
            x = (network.mask_token[0, 0] + network.positions[target[number, position]])[None, None]
            for block in network.blocks:
                x = block(x, torch.stack(context)[None])
            torch.testing.assert_close(out[number, position], network.head(network.norm(x))[0, 0])


def test_the_cross_block_is_attention_by_hand() -> None:
    torch.manual_seed(0)
    block: Any = CrossBlock(4, 2).double()
    x, context = torch.randn(1, 2, 4, dtype=torch.float64), torch.randn(1, 3, 4, dtype=torch.float64)
    query = block.query(block.norm1(x))[0].tolist()
    both = block.key_value(context)[0].tolist()
    seen = torch.zeros(2, 4, dtype=torch.float64)
    for q in range(2):
        for head in range(2):
            own = range(2 * head, 2 * head + 2)
            scores = [math.exp(sum(query[q][c] * both[k][c] for c in own) / math.sqrt(2)) for k in range(3)]
            for c in own:
                seen[q, c] = sum(scores[k] * both[k][4 + c] for k in range(3)) / sum(scores)
    middle = x + block.proj(seen)[None]
    torch.testing.assert_close(block(x, context), middle + block.mlp(block.norm2(middle)))


def test_it_starts_as_maes() -> None:
    network = TokenTransformer(64, 32, GRID, 64, 1, heads=4)
    assert not any(module.bias.any() for module in network.modules() if isinstance(module, nn.Linear))
    bound = math.sqrt(6 / (64 + 64))
    assert float(network.embed.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert "positions" not in network.state_dict()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="fill, query, cross"):
        TokenTransformer(IN, OUT, GRID, WIDTH, 1, 2, mode="guess")
    with pytest.raises(UserError, match="width 8 cannot have 3 heads"):
        TokenTransformer(IN, OUT, GRID, WIDTH, 1, 3)
    with pytest.raises(UserError, match="multiple of 4, not 6"):
        TokenTransformer(IN, OUT, GRID, 6, 1, 2)
    with pytest.raises(ValueError, match="takes no target"):
        build("fill")(tokens(3), KEEP, TARGET)
    with pytest.raises(ValueError, match="needs target"):
        build("query")(tokens(3), KEEP)
