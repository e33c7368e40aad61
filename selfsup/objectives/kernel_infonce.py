"""Kernel-InfoNCE: InfoNCE over other kernels than the Gaussian, alone or mixed with it.

InfoNCE on unit vectors is spectral clustering with a Gaussian kernel; exponential kernels of a lower power of the
distance have heavier tails. A mixture adds both losses, or gives each half of the embedding. Tan et al., "Contrastive
Learning Is Spectral Clustering on Similarity Graph", 2024.

Deviations: distances are Euclidean (the authors' p = 2), between vectors, and for the halves between halves, of length
1; the authors normalise the whole before they halve it. Their spectral loss is not here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from torch.nn import functional as F

from selfsup.functional import kernel_nce
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class KernelInfoNCEConfig(ObjectiveConfig):
    """Its settings, with the authors' defaults, which are InfoNCE at half the temperature until ``gamma`` is set.

    Attributes:
        temperature: τ of the kernels.
        gamma: γ, power of the distance: 2 is the Gaussian kernel, 1 the Laplacian, and 0.5 has heavier tails still.
        mixture: ``none`` has the one kernel; ``sum`` adds the Gaussian one's loss; ``concatenation`` gives either half
            of the embedding, which should be twice as wide (``method.output_dim``).
        share: λ, weight of the kernel of ``gamma`` in a mixture; the Gaussian has the rest.
    """

    name: str = "kernel_infonce"
    temperature: float = setting(0.1, above=0)
    gamma: float = setting(2.0, above=0)
    mixture: str = setting("none", choices=("none", "sum", "concatenation"))
    share: float = setting(0.5, least=0, most=1)


@objectives.register("kernel_infonce", KernelInfoNCEConfig, over=("views", "labels", "queue"))
class KernelInfoNCE(Objective):
    """Contrast with exponential kernels of other powers of the distance, or with mixtures of them."""

    config: KernelInfoNCEConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return InfoNCE over the kernel or the mixture."""
        config, dim = self.config, embeddings.views.shape[-1]
        halves = config.mixture == "concatenation"
        if halves and dim % 2:
            raise ValueError(f"objective.mixture=concatenation halves the embedding; {dim} numbers have no halves.")
        first = _part(embeddings, 0, dim // 2) if halves else embeddings
        loss = kernel_nce(first.pairs(), config.temperature, config.gamma)
        if config.mixture != "none":
            second = _part(embeddings, dim // 2, dim) if halves else embeddings
            loss = config.share * loss + (1 - config.share) * kernel_nce(second.pairs(), config.temperature, 2.0)
        return StepOutput(loss)


def _part(embeddings: Embeddings, start: int, stop: int) -> Embeddings:
    """Return the embeddings of some of the dimensions, what is stored at length 1 again."""
    queue, mixed = (
        None if stored is None else F.normalize(stored[..., start:stop], dim=-1)
        for stored in (embeddings.queue, embeddings.mixed)
    )
    return dataclasses.replace(embeddings, views=embeddings.views[..., start:stop], queue=queue, mixed=mixed)
