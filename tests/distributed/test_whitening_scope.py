"""W-MSE whitened per rank: what holds is the mean of what each rank's images give alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gloo import Ranks
from test_training import train_steps
from torch import Tensor

from selfsup.functional import whitening_mse


def test_scope_rank_is_the_mean_over_the_shares(two_ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    def share_by_share(views: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        *settings, generator = args
        state = generator.get_state()
        losses = []
        for share in views.chunk(2, dim=1):
            generator.set_state(state)
            losses.append(whitening_mse(share, *settings, generator, **kwargs))
        return torch.stack(losses).mean()

    overrides = ["method.scope=rank", "method.output_dim=3", "method.subbatch_size=4"]
    two = two_ranks.run(train_steps, 2, "wmse", overrides)
    undivided = train_steps(0, 1, "wmse", overrides)
    monkeypatch.setattr("selfsup.methods.wmse.whitening_mse", share_by_share)
    one = train_steps(0, 1, "wmse", overrides)
    losses = torch.stack([rank["losses"] for rank in two]).mean(0)
    torch.testing.assert_close(losses, one["losses"], rtol=1e-9, atol=1e-9)
    for rank in two:
        for part in ("gradients", "parameters"):
            for key, value in one[part].items():
                torch.testing.assert_close(rank[part][key], value, rtol=1e-7, atol=1e-9, msg=f"{part} {key}")
    assert abs(losses[0] - undivided["losses"][0]) > 1e-6  # other sub-batches than one process would draw
