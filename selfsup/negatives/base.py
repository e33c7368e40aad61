"""What may happen to queries, keys and the keys of a queue before the objective sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional.collectives import rank_of, size_of
from selfsup.objectives import Embeddings
from selfsup.settings import Section


@dataclass
class NegativesConfig(Section):
    """Settings that all have; what changes negatives adds to them.

    Attributes:
        name: What changes them, as registered; ``none`` leaves them as they are.
    """

    section: ClassVar[str] = "negatives"

    name: str = "none"


class Negatives(nn.Module, ABC):
    """Base of what changes negatives. A subclass writes ``__init__``, which takes its config, and ``forward``."""

    def __init__(self, config: NegativesConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, embeddings: Embeddings, generator: torch.Generator, epoch: int) -> Embeddings:
        """Return embeddings as the objective shall see them; what the queue takes in later stays as it was.

        Args:
            embeddings: Of a query, its key and the queue.
            generator: Random numbers of this step, on the CPU, the same on every rank.
            epoch: Counted from 0.
        """


def draw_own(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform numbers ``[N,*shape]`` of this rank's images: drawn for those of all ranks, whoever has them."""
    local, group = len(images), world()
    whole = torch.rand(local * size_of(group), *shape, generator=generator)
    return whole[rank_of(group) * local :][:local].to(images)


def draw_shared(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform numbers of the shape of a tensor, the same on every rank, drawn on its device."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.rand(like.shape, generator=torch.Generator(like.device).manual_seed(seed), device=like.device)
