"""No objective: a method keeps the loss that it has."""

from __future__ import annotations

from torch import Tensor

from selfsup.objectives.base import ObjectiveConfig
from selfsup.registry import objectives


@objectives.register("none", ObjectiveConfig)
def own_loss(config: ObjectiveConfig, index: Tensor | None = None) -> None:
    """Keep the method's own loss."""
