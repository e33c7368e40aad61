"""MACL: a temperature that follows how well the positives are aligned, and weights that keep the gradient alive.

Early on a low temperature helps, later it pushes images of one class apart; so it rises with the mean similarity of the
positives. Anchors whose positive is likely weigh more, which takes back that InfoNCE's gradient fades as they become
so. Huang et al., "Model-Aware Contrastive Learning", 2023.

Deviations: none from the formula. The authors' code leaves α to the caller; the default is that of the lightly library.
The mean goes over all ranks, so that they share a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.distributed import world
from selfsup.functional import model_aware_temperature, pair_nce, reweighted_nce
from selfsup.objectives.base import Embeddings, Objective, ObjectiveConfig
from selfsup.registry import objectives
from selfsup.settings import setting
from selfsup.types import StepOutput


@dataclass
class MACLConfig(ObjectiveConfig):
    """MACL's settings.

    Attributes:
        temperature: τ at an alignment of ``offset``.
        alpha: How much τ rises with the alignment; 0 keeps it.
        offset: The alignment at which τ is as given.
        reweight: Weigh anchors by 1 / (1 − P), with P the probability of the positive.
    """

    name: str = "macl"
    temperature: float = setting(0.1, above=0)
    alpha: float = setting(0.5, least=0)
    offset: float = setting(0.0, least=-1, most=1)
    reweight: bool = True


@objectives.register("macl", MACLConfig, over=("views", "queue"))
class MACL(Objective):
    """Let the temperature follow the alignment of the positives, and keep InfoNCE's gradient from fading."""

    config: MACLConfig

    def forward(self, embeddings: Embeddings) -> StepOutput:
        """Return InfoNCE at the temperature of the present alignment, which is logged."""
        pairs, config = embeddings.pairs(), self.config
        temperature = model_aware_temperature(pairs, config.temperature, config.alpha, config.offset, world())
        loss = (reweighted_nce if config.reweight else pair_nce)(pairs, temperature)
        return StepOutput(loss, {"temperature": temperature})
