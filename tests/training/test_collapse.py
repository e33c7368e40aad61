"""Features that no longer differ end a run, saved; features that only look so, as statistics lag behind, do not."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfsup.checkpoint import INFO, read_checkpoint
from selfsup.config import OnlineConfig
from selfsup.data import load_splits
from selfsup.data.resident import ResidentDataset
from selfsup.engine.callbacks import OnlineEvaluation
from selfsup.engine.training import build_method, load_resumed_config, train
from selfsup.errors import UserError
from selfsup.methods import SimCLR
from selfsup.nn import batch_statistics
from selfsup.types import ImageFacts


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all images the same features after every step."""
    original = SimCLR.after_optimizer_step

    def collapse(self: Any) -> None:
        original(self)
        with torch.no_grad():
            self.backbone.network.layer4[-1].bn2.weight.zero_()
            self.backbone.network.layer4[-1].downsample[1].weight.zero_()
            self.backbone.network.layer4[-1].bn2.bias.fill_(1.0)

    monkeypatch.setattr(SimCLR, "after_optimizer_step", collapse)


def test_collapsed_features_end_the_run_which_is_saved(
    collapsing: None, tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config("simclr", "trainer.max_epochs=4", "trainer.checkpoint_every_epochs=4")
    with pytest.raises(UserError, match=r"all images look the same.*method\.temperature.*2 looks.*stop_on_collapse"):
        train(config)
    saved = read_checkpoint(tmp_path / "run")
    assert saved[INFO]["epochs_done"] == 2
    again = [f"resume={tmp_path / 'run'}", "trainer.max_epochs=3", "online.stop_on_collapse=false"]
    assert read_checkpoint(train(load_resumed_config(again)))[INFO]["epochs_done"] == 3


def test_one_look_ends_nothing(
    collapsing: None, tiny_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config("simclr", "trainer.max_epochs=1"))
    assert "note: The features have collapsed" in capsys.readouterr().out


def test_a_healthy_network_with_cold_statistics_goes_on(
    tiny_config: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stack = ["backbone=convnet", "data.train_size=112", "data.image_size=32", "optimizer.warmup_epochs=0"]
    run = train(tiny_config("simclr", *stack, "backbone.width=16", "online.bank=112"))
    with (run / "metrics.csv").open() as file:
        looks = [float(row["health/std"]) for row in csv.DictReader(file) if row["health/std"]]
    assert looks[0] < 0.02  # or the case shows nothing
    assert "collapsed" not in capsys.readouterr().out


def test_batches_statistics_leave_the_running_ones_alone() -> None:
    norm = nn.BatchNorm2d(3).eval()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = 5 + 3 * torch.randn(8, 3, 4, 4)
    with batch_statistics(norm):
        assert float(norm(x).detach().std()) == pytest.approx(1, abs=0.05)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    torch.testing.assert_close(norm(x), x, rtol=1e-3, atol=1e-3)


class Projected(nn.Module):
    """Features made of ``rank`` numbers of an image, far from the origin."""

    normalization = None

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(rank, 16, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        return 0.5 + images.flatten(1)[:, :: images[0].numel() // len(self.mix)][:, : len(self.mix)] @ self.mix


@pytest.mark.parametrize(("rank", "message"), [(1, "one direction only"), (2, None), (12, None)])
def test_dimensional_collapse_is_found(rank: int, message: str | None, tiny_config: Callable[..., Any]) -> None:
    assert looked_at(tiny_config, Projected(rank), 0.2) == (
        message and f"The features have collapsed: they differ in {message}"
    )


def test_images_that_do_not_differ_are_not_blamed_on_the_learning_rate(tiny_config: Callable[..., Any]) -> None:
    found = looked_at(tiny_config, Projected(1), 0.001)
    assert found is not None
    assert "images hardly differ" in found
    assert "optimizer.lr" not in found


def looked_at(tiny_config: Callable[..., Any], backbone: nn.Module, spread: float) -> str | None:
    """Return the first sentence that is said of a backbone's features of noise."""
    config = tiny_config("simclr")
    splits = load_splits(config.data)
    noise = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = ResidentDataset(
        (127 + 255 * spread * noise).clamp(0, 255).to(torch.uint8),
        None,
        ImageFacts("noise", "train", 3, 32, splits.train.normalization),
    )
    method = build_method(config, splits)
    method.backbone = backbone  # type: ignore[assignment]
    return OnlineEvaluation(replace(splits, train=images), OnlineConfig()).find_collapse(method).split(".")[0] or None
