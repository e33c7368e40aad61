"""W-MSE: a step by hand, its own BatchNorm statistics, what a singular covariance does, and settings that cannot be."""

from __future__ import annotations

import copy
import csv
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from selfsup.augment import RECIPES
from selfsup.config import load_config
from selfsup.data import load_splits
from selfsup.engine.training import build_method, train
from selfsup.errors import UserError
from selfsup.functional import whiten
from selfsup.methods import WMSE

TINY = ["method.hidden_dim=16", "method.output_dim=4", "method.subbatch_size=8", "method.iterations=2"]
# sub-batches across the ranks, and larger than a rank's share
RANKS = [[], ["method.subbatch_size=16", "augment.counts=[3]", "method.normalize=false"]]


@pytest.mark.parametrize("views", [2, 4])
def test_a_step_by_hand(views: int, tiny_config: Callable[..., Any]) -> None:
    """Backbone a view at a time, head over all, one division for all views, all pairs, both iterations."""
    method, batch = prepared(tiny_config("wmse", f"augment.counts=[{views}]"))
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)

    images = [view.image for view in twin.views(batch.image, seed=twin_seed(method), index=batch.index)]
    z = twin.head(torch.cat([twin.backbone(image) for image in images])).chunk(views)
    generator = torch.Generator().manual_seed(method._batch_seed)
    terms = []
    for _ in range(2):
        for chosen in torch.randperm(16, generator=generator).split(8):
            whitened = [whiten(one[chosen]) for one in z]
            terms += [2 - 2 * cosine_similarity(a, b).mean() for a, b in itertools.combinations(whitened, 2)]
    assert len(terms) == 2 * 2 * views * (views - 1) // 2
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_backbone_statistics_are_a_view_s_own_and_the_head_s_are_not(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("wmse", "augment.counts=[3]"))
    method.training_step(batch, 0)
    for part, passes in ((method.backbone, 3), (method.head, 1)):
        norms = [m for m in part.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert {int(norm.num_batches_tracked) for norm in norms} == {passes}
    assert not isinstance(method.head[-1], nn.BatchNorm1d)


def test_no_view_is_detached(tiny_config: Callable[..., Any]) -> None:
    """The loss pulls at the embeddings of both views."""
    method, batch = prepared(tiny_config("wmse"))
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda module, args, out: (out.retain_grad(), seen.append(out))[0])
    method.training_step(batch, 0).backward()
    assert all(bool(part.abs().sum() > 0) for part in seen[0].grad.chunk(2))


def test_the_division_follows_the_seed_and_the_batch_only(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("wmse"))
    losses = []
    for number in (0, 0, 1):
        torch.manual_seed(len(losses))
        losses.append(float(method.training_step(batch, number).detach()))
    assert losses[0] == losses[1] != losses[2]


def flatten_embeddings(monkeypatch: pytest.MonkeyPatch, from_step: int = 0) -> None:
    """Make the first dimension of every embedding exactly constant, so that no covariance can be factored."""
    original = WMSE.step

    def step(self: WMSE, views: Any, batch: Any) -> Any:
        if self.trainer.global_step >= from_step:
            with torch.no_grad():
                self.head[-1].weight[0] = 0
        return original(self, views, batch)

    monkeypatch.setattr(WMSE, "step", step)


def test_a_singular_covariance_stops_the_run_with_the_reason(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    flatten_embeddings(monkeypatch, from_step=4)  # the second epoch
    with pytest.raises(UserError, match=r"8 covariance .*method\.subbatch_size.*method\.on_singular=jitter"):
        train(tiny_config("wmse", "augment.override={scale: [0.5, 1.0]}"))
    weights = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert weights["global_step"] == 4
    assert all(bool(w.isfinite().all()) for w in weights["state_dict"].values())


def test_the_reason_is_given_even_when_only_the_end_of_an_epoch_is_looked_at(
    tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flatten_embeddings(monkeypatch)
    with pytest.raises(UserError, match="were singular"):
        train(tiny_config("wmse", "trainer.log_every_steps=50"))


def test_jitter_goes_on_and_counts(tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    flatten_embeddings(monkeypatch, from_step=4)
    run = train(tiny_config("wmse", "method.on_singular=jitter"))
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/singular"]]
    # two views, two sub-batches, two iterations a step
    assert [float(row["train/singular"]) for row in rows] == [0, 0, 0, 0, 8, 16, 24, 32]
    assert all(0 <= float(row["train/loss"]) <= 4 for row in rows)


def test_half_precision_whitens_in_float32(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("wmse"))
    dtypes = []
    original = torch.linalg.cholesky_ex

    def watch(matrix: Tensor, **kwargs: Any) -> Any:
        dtypes.append(matrix.dtype)
        return original(matrix, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):
        patch.setattr(torch.linalg, "cholesky_ex", watch)
        method.training_step(batch, 0)
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("method.output_dim=8", "must be above method.output_dim=8"),
        ("method.output_dim=9", "must be above method.output_dim=9"),
        ("method.subbatch_size=5", "does not divide the 16 images"),
        ("method.subbatch_size=32", "does not divide the 16 images"),
        ("method.scope=ranks", "Did you mean 'rank'"),
        ("method.on_singular=jiter", "Did you mean 'jitter'"),
        ("method.iterations=0", "at least 1"),
        ("method.eps=1.0", "at least 0 and below 1"),
        ("augment.counts=[1]", "takes at least 2"),
    ],
)
def test_settings_that_cannot_be(setting: str, message: str, tiny_method: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=message):
        tiny_method("wmse", setting)


def test_a_rank_s_share_must_hold_whole_sub_batches_only_when_it_whitens_alone(tiny_config: Callable[..., Any]) -> None:
    for scope, ranks, fits in (("world", 4, True), ("rank", 2, True), ("rank", 4, False)):
        config = tiny_config("wmse", f"method.scope={scope}")
        if fits:
            build_method(config, load_splits(config.data), ranks)
        else:
            with pytest.raises(UserError, match="does not divide the 4 images"):
                build_method(config, load_splits(config.data), ranks)


def test_defaults_and_recipes_are_the_authors() -> None:
    config = load_config(["method=wmse"])
    method, optimizer = config.method, config.optimizer
    assert (method.subbatch_size, method.output_dim, method.hidden_dim, method.eps) == (128, 64, 1024, 0.0)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.scaling) == ("adam", 3e-3, 1e-6, "none")
    assert not optimizer.exclude_1d
    for name, scale, colours, gray, blur in (
        ("wmse", (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), 0.2, 0.5),
        ("wmse_small", (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.1, 0.0),
    ):
        ((view,),) = RECIPES[name]
        assert (view.scale, view.gray_p, view.blur_p, view.jitter_p, view.solarize_p) == (scale, gray, blur, 0.8, 0)
        assert (view.brightness, view.contrast, view.saturation, view.hue) == colours
        assert view.interpolation == "bicubic"
