"""The ways to find what a similarity comes from: each file of ``saliency/`` registers one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.functional.arguments import full_precision


@dataclass(frozen=True)
class Scene:
    """Images, and the score whose cause is looked for: the cosine of each with a reference.

    Attributes:
        network: In evaluation mode; ``[B,C,H,W]`` to ``[B,D]``.
        images: float ``[B,C,H,W]``, as the network takes them.
        target: float ``[B,D]``, of length one: the features of the references.
        seed: Of everything random.
        effort: Factor of the passes that a way makes.
    """

    network: nn.Module
    images: Tensor
    target: Tensor
    seed: int = 0
    effort: float = 1.0

    def score(self, images: Tensor) -> Tensor:
        """Return the cosine ``[B]`` of the features of images, row by row, with the references."""
        return F.cosine_similarity(full_precision(self.network(images)), self.target, dim=1)

    def linear_score(self) -> Callable[[Tensor], Tensor]:
        """Return a score that is linear in the features and equals the cosine on the images themselves.

        The product with the reference over the length that the features of the images have: maps that split what is
        linear, of a network that is linear piece by piece, sum to it.
        """
        with torch.no_grad():
            length = torch.linalg.vector_norm(full_precision(self.network(self.images)), dim=1).clamp_min(1e-12)
        return lambda images: (full_precision(self.network(images)) * self.target).sum(1) / length

    def passes(self, count: int, least: int = 1) -> int:
        """Return how often a way passes the images, of ``count`` at the usual effort."""
        return max(least, round(self.effort * count))

    def generator(self) -> torch.Generator:
        """Return random numbers on the CPU, the same at each call."""
        return torch.Generator().manual_seed(self.seed)


Explain = Callable[[Scene], Tensor]


@dataclass(frozen=True)
class Way:
    """A way to map a similarity.

    Attributes:
        name: As ``eval.saliency.ways`` takes it.
        explain: From a scene to maps ``[B,h,w]``: the larger, the more a place speaks for the similarity.
        complete: Whether the map of an image sums to its similarity.
        summary: First line of its documentation.
    """

    name: str
    explain: Explain
    complete: bool
    summary: str


#: By name. Each raises a ``UserError`` where the network does not allow it.
WAYS: dict[str, Way] = {}


def way(name: str, *, complete: bool = False) -> Callable[[Explain], Explain]:
    """Decorate a function from a scene to maps, so that the protocol ``saliency`` shows it.

    Args:
        name: Its name.
        complete: The map of an image sums to its similarity; the protocol looks whether it does.

    Raises:
        UserError: Another file has registered the name.
    """

    def add(explain: Explain) -> Explain:
        if name in WAYS and WAYS[name].explain.__module__ != explain.__module__:
            raise UserError(f"The way '{name}' is already taken; register under another name.")
        summary = (explain.__doc__ or "").strip().split("\n")[0]
        WAYS[name] = Way(name, explain, complete, summary)
        return explain

    return add
