"""trainer.precision: weights, views and losses of another type than float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfsup.checkpoint import read_checkpoint
from selfsup.engine.training import train


@pytest.mark.parametrize("method", ["moco", "wmse", "pixpro", "swav"])
@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
def test_the_whole_training_is_in_the_type_of_the_weights(
    method: str, precision: str, dtype: torch.dtype, tiny_config: Callable[..., Any]
) -> None:
    state = read_checkpoint(train(tiny_config(method, f"trainer.precision={precision}", "trainer.max_epochs=1")))
    weights = {key: value for key, value in state["state_dict"].items() if key.startswith("backbone.network.conv1")}
    assert weights
    assert all(value.dtype == dtype and value.isfinite().all() for value in weights.values())
