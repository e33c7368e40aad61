"""Which images are watched while training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from selfsup.config import OnlineConfig
from selfsup.data import ResidentDataset, Splits, load_splits
from selfsup.engine.callbacks import OnlineEvaluation
from selfsup.engine.training import build_method
from selfsup.types import ImageFacts, Normalization


def test_the_bank_and_the_queries_hold_every_class_of_images_that_come_class_by_class():
    facts = ImageFacts("folder", "train", 3, 2, Normalization((0.5,) * 3, (0.5,) * 3), tuple("abcd"))
    labels = torch.arange(4).repeat_interleave(25)
    part = ResidentDataset(torch.zeros(100, 3, 2, 2, dtype=torch.uint8), labels, facts)
    watched = OnlineEvaluation(Splits(part, part, part, None), OnlineConfig(bank=20, queries=8))
    assert watched.bank.labels.bincount().tolist() == [5, 5, 5, 5]
    assert watched.queries.labels.bincount().tolist() == [2, 2, 2, 2]
    every = OnlineEvaluation(Splits(part, part, part, None), dataclasses.replace(OnlineConfig(), bank=100))
    assert torch.equal(every.bank.index, part.index)


def test_without_a_hold_out_a_tenth_of_the_training_images_asks_and_is_no_neighbour():
    facts = ImageFacts("folder", "train", 3, 2, Normalization((0.5,) * 3, (0.5,) * 3), tuple("abcd"))
    labels = torch.arange(4).repeat_interleave(25)
    part = ResidentDataset(torch.zeros(100, 3, 2, 2, dtype=torch.uint8), labels, facts)
    nothing = part.subset(torch.arange(0))
    watched = OnlineEvaluation(Splits(part, part, nothing, part), OnlineConfig())
    assert (len(watched.bank), len(watched.queries)) == (90, 10)
    assert sorted([*watched.bank.index.tolist(), *watched.queries.index.tolist()]) == list(range(100))
    assert set(watched.queries.labels.tolist()) == {0, 1, 2, 3}
    fewer = OnlineEvaluation(Splits(part, part, nothing, part), OnlineConfig(bank=50, queries=4))
    assert (len(fewer.bank), len(fewer.queries)) == (50, 4)


def test_images_without_a_label_are_left_out_of_the_accuracy(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config()
    splits = load_splits(config.data)
    method = build_method(config, splits)
    known = OnlineEvaluation(splits, OnlineConfig(k=1)).look(method)
    for part, some in ((splits.train, slice(0, 10)), (splits.holdout, slice(0, 3))):
        part.labels[some] = -1
    few = OnlineEvaluation(splits, OnlineConfig(k=1)).look(method)
    assert 0 <= few["online/knn"] <= 1
    assert few["health/rank"] == known["health/rank"]
    splits.holdout.labels[:] = -1
    assert "online/knn" not in OnlineEvaluation(splits, OnlineConfig(k=1)).look(method)
