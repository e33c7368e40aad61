"""What tests share: small configurations, and a quiet, single-threaded torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import compose_once
from tiny import tiny

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp()  # where selfsup remembers what was imported
torch.set_num_threads(1)
compose_once()


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Any]:
    """Build a tiny training configuration: ``tiny_config("moco", "seed=1", run="a")``."""
    from selfsup.config import load_config

    def build(method: str = "simclr", *overrides: str, run: str = "run") -> Any:
        return load_config([*tiny(method), f"run_dir={tmp_path / run}", *overrides])

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
def no_pictures_of_trainings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a dot where a training draws: two pictures take longer than a tiny training. ``pictures`` draws them."""
    if request.node.get_closest_marker("pictures") is not None:
        return
    from selfsup.engine import callbacks, training

    def dot(_: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a dot")

    monkeypatch.setattr(callbacks, "save_views_figure", lambda images, views, path, *_, **__: dot(None, path))
    monkeypatch.setattr(training, "training_curves", lambda metrics: None)
    monkeypatch.setattr(training, "save", dot)


@pytest.fixture(autouse=True)
def no_runs_opened_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the files that runs of other tests were made with: messages about unknown names would speak of them."""
    from selfsup import imports

    monkeypatch.setattr(imports, "_wanted", {})
