"""What tests share: small configurations, and a quiet, single-threaded torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("WANDB_MODE", "disabled")
torch.set_num_threads(1)

#: A run of a few seconds: 16 images a step, four steps an epoch, a network of four channels.
TINY = [
    "data.train_size=72",
    "data.test_size=40",
    "backbone=resnet_tiny",
    "backbone.width=4",
    "batch_size=16",
    "trainer.max_epochs=2",
    "trainer.progress=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.log_every_steps=1",
    "online.every_epochs=1",
    "online.bank=40",
    "online.queries=8",
]

#: What a method needs beyond TINY.
TINY_METHOD = {"moco": ["method.queue_size=48", "method.bn_groups=4"]}


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Any]:
    """Build a tiny training configuration: ``tiny_config("moco", "seed=1", run="a")``."""
    from selfsup.config import load_config

    def build(method: str = "simclr", *overrides: str, run: str = "run") -> Any:
        own = [f"method={method}", *TINY_METHOD.get(method, []), f"run_dir={tmp_path / run}"]
        return load_config([*own, *TINY, *overrides])

    return build
