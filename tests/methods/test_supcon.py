"""SupCon by hand: the step, what labels do, and what happens without them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_contract import prepared, twin_seed
from torch import nn

from selfsup.errors import UserError
from selfsup.functional import nt_xent, supervised_contrastive


def embeddings(method: Any, batch: Any) -> torch.Tensor:
    """The head's output ``[V,N,D]``, all views in one pass."""
    views = method.views(batch.image, seed=twin_seed(method), index=batch.index)
    features = method.backbone(torch.cat([view.image for view in views]))
    return method.head(features).unflatten(0, (len(views), -1))


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("base", ["null", "0.07"])
def test_step_is_the_supervised_loss_of_all_views(views: int, base: str, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config("supcon", f"augment.counts=[{views}]", f"method.base_temperature={base}")
    method, batch = prepared(config)
    twin = copy.deepcopy(method)
    loss = method.training_step(batch, 0)
    expected = supervised_contrastive(embeddings(twin, batch), batch.label, 0.1)
    torch.testing.assert_close(loss, expected * (0.1 / 0.07 if base == "0.07" else 1))


def test_labels_decide_and_missing_ones_leave_an_image_its_own_views(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("supcon"))
    twin = copy.deepcopy(method)
    assert len(batch.label.unique()) < len(batch.label)  # there are positives among the images
    labelled = method.training_step(batch, 0)
    unlabelled = dataclasses.replace(batch, label=torch.full_like(batch.label, -1))
    loss = method.training_step(unlabelled, 0)
    z1, z2 = embeddings(twin, batch)
    torch.testing.assert_close(loss, nt_xent(z1, z2, 0.1))
    assert abs(loss.item() - labelled.item()) > 1e-2


def test_head_has_two_layers_with_biases_and_no_batch_norm(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("supcon"))
    assert [type(m) for m in method.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(m.bias is not None for m in method.head if isinstance(m, nn.Linear))
    assert method.head[-1].out_features == 128


def test_a_batch_without_labels_is_refused(tiny_config: Callable[..., Any]) -> None:
    method, batch = prepared(tiny_config("supcon"))
    with pytest.raises(ValueError, match="labels"):
        method.training_step(dataclasses.replace(batch, label=None), 0)


def test_a_source_without_labels_is_refused_before_training(tiny_config: Callable[..., Any]) -> None:
    method, _ = prepared(tiny_config("supcon"))
    parts = dataclasses.replace(parts_of(method), labelled=False)
    with pytest.raises(UserError, match="labels"):
        type(method)(tiny_config("supcon").method, parts)


def parts_of(method: Any) -> Any:
    from selfsup.methods import Parts

    return Parts(method.backbone, method.views, method.optimizer_config, method.batch_size)


@pytest.mark.parametrize("value", ["0", "-0.07"])
def test_base_temperature_must_be_positive(value: str, tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method\.base_temperature"):
        prepared(tiny_config("supcon", f"method.base_temperature={value}"))
