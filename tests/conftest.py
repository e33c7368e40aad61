"""What tests share: small configurations, and a quiet, single-threaded torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY, TINY_METHOD

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # where selfsup remembers what was imported
torch.set_num_threads(1)


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Any]:
    """Build a tiny training configuration: ``tiny_config("moco", "seed=1", run="a")``."""
    from selfsup.config import load_config

    def build(method: str = "simclr", *overrides: str, run: str = "run") -> Any:
        own = [f"method={method}", *TINY_METHOD.get(method, []), f"run_dir={tmp_path / run}"]
        return load_config([*own, *TINY, *overrides])

    return build


@pytest.fixture
def tiny_method(tiny_config: Callable[..., Any]) -> Callable[..., Any]:
    """Build the method of a tiny configuration, which takes what ``tiny_config`` takes."""
    from selfsup.data import load_splits
    from selfsup.engine.training import build_method

    def build(*given: str) -> Any:
        config = tiny_config(*given)
        return build_method(config, load_splits(config.data))

    return build


@pytest.fixture(autouse=True)
def no_runs_opened_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the files that runs of other tests were made with: messages about unknown names would speak of them."""
    from selfsup import imports

    monkeypatch.setattr(imports, "_wanted", {})
