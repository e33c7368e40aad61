"""MoCHi: hard negatives are mixed, from the queue's keys that are nearest to each query, and from these and the query.

Most keys of a queue are far from any query and teach little. Of the nearest ones, pairs are mixed into new negatives,
and some are mixed with the query itself, which lie nearer than any key does. Kalantidis et al., "Hard Negative Mixing
for Contrastive Learning", 2020.

Deviations: no official code was found; the formula agrees with a public implementation (davidsvy/hard-negative-mixing,
0242650). The numbers of the paper's settings, and how long it waits, are from memory.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.negatives.base import Negatives, NegativesConfig, draw_own
from selfsup.objectives import Embeddings
from selfsup.registry import negatives
from selfsup.settings import setting


@dataclass
class MoCHiConfig(NegativesConfig):
    """MoCHi's settings.

    Attributes:
        hardest: N, how many of the queue's keys, the nearest to the query, are mixed; at most ``method.queue_size``.
        pairs: s, negatives that are mixed of two of these.
        with_query: s′, negatives that are mixed of one of these and at most half of the query.
        wait_epochs: Epochs of plain negatives at the start.
    """

    name: str = "mochi"
    hardest: int = setting(1024, least=1)
    pairs: int = setting(1024, least=0)
    with_query: int = setting(128, least=0)
    wait_epochs: int = setting(10, least=0)


@negatives.register("mochi", MoCHiConfig, over=("queue",))
class MoCHi(Negatives):
    """Mix hard negatives from the nearest keys of the queue, and from these and the query."""

    config: MoCHiConfig

    @torch.no_grad()
    def forward(self, embeddings: Embeddings, generator: torch.Generator, epoch: int) -> Embeddings:
        """Return the embeddings with mixed negatives beside the queue; no gradient flows into them."""
        config, queue = self.config, embeddings.queue
        assert queue is not None
        if config.hardest > len(queue):
            raise UserError(
                f"negatives.hardest={config.hardest} is more than the {len(queue)} keys of the queue "
                "(method.queue_size); lower it."
            )
        if epoch < config.wait_epochs or not config.pairs + config.with_query:
            return embeddings
        query = F.normalize(embeddings.views[0].to(queue.dtype), dim=1)
        nearest = (query @ queue.T).topk(config.hardest, dim=1).indices
        numbers = draw_own((3 * config.pairs + 2 * config.with_query,), query, generator)
        first, second, share = numbers[:, : 3 * config.pairs].chunk(3, dim=1)
        one, half = numbers[:, 3 * config.pairs :].chunk(2, dim=1)
        of_pairs = _mix(_pick(queue, nearest, first), _pick(queue, nearest, second), share)
        of_query = _mix(query[:, None].expand(-1, config.with_query, -1), _pick(queue, nearest, one), half / 2)
        return dataclasses.replace(embeddings, mixed=torch.cat([of_pairs, of_query], dim=1))


def _pick(queue: Tensor, nearest: Tensor, numbers: Tensor) -> Tensor:
    """Return keys ``[N,s,D]`` drawn from the nearest ``[N,n]`` of each query, by uniform numbers ``[N,s]``."""
    place = (numbers * nearest.shape[1]).long().clamp_max(nearest.shape[1] - 1)
    return queue[nearest.gather(1, place)]


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return the mixtures of length 1 of two vectors each, with the share of the first."""
    return F.normalize(share[..., None] * a + (1 - share[..., None]) * b, dim=-1)
