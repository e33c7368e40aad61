"""PMSN is MSN with a prior; what is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from test_contract import prepared

TINY = [
    "backbone=vit_small",
    "backbone.kwargs.patch_size=8",
    "backbone.kwargs.embed_dim=16",
    "backbone.kwargs.depth=2",
    "backbone.kwargs.num_heads=2",
    "augment.sizes=[32,16]",
    "augment.counts=[2,2]",
    "method.prototypes=12",
    "method.hidden_dim=16",
    "method.output_dim=8",
]
RANKS = [["augment.sizes=[32,32]"]]


def test_with_an_even_prior_and_balanced_targets_it_is_msn_to_the_bit(tiny_config: Callable[..., Any]) -> None:
    prior, batch = prepared(tiny_config("pmsn", "method.prior_exponent=0", "method.sinkhorn_iterations=3"))
    plain, _ = prepared(tiny_config("msn"))
    assert torch.equal(prior.training_step(batch, 0), plain.training_step(batch, 0))


def test_the_prior_changes_the_loss(tiny_config: Callable[..., Any]) -> None:
    prior, batch = prepared(tiny_config("pmsn"))
    even, _ = prepared(tiny_config("pmsn", "method.prior_exponent=0"))
    assert not torch.allclose(prior.training_step(batch, 0), even.training_step(batch, 0))
