"""No change: the negatives are those that the method has."""

from __future__ import annotations

from selfsup.negatives.base import NegativesConfig
from selfsup.registry import negatives


@negatives.register("none", NegativesConfig)
def own_negatives(config: NegativesConfig) -> None:
    """Keep the method's own negatives."""
