from dataclasses import dataclass

import pytest
import torch
from tiny import resident

from selfsup.data import DataConfig, SourceSplits, load_splits
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.types import Normalization


@dataclass
class NumberedConfig(DataConfig):
    name: str = "numbered"
    unlabelled: int = 0
    choices: bool = False
    without_labels: bool = False


def _numbered(count, split, labelled=None):
    """Images that spell their own number."""
    numbers = torch.arange(count)
    images = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).reshape(count, 1, 1, 2)
    labels = torch.where(numbers < (count if labelled is None else labelled), numbers % 3, -1)
    return resident(
        images,
        labels,
        name="numbered",
        split=split,
        image_size=2,
        normalization=Normalization((0.5,), (0.5,)),
        masks=numbers.to(torch.uint8).reshape(count, 1, 1),
    )


@pytest.fixture(autouse=True)
def _source(monkeypatch):
    monkeypatch.setattr(sources, "_entries", dict(sources._entries))

    @sources.register("numbered", NumberedConfig)
    def numbered(config):
        """Numbered images."""
        pretrain = _numbered(100 + config.unlabelled, "all", labelled=100) if config.unlabelled else None
        train = _numbered(100, "train")
        if config.without_labels:
            train.labels = None
        choices = _numbered(20, "val") if config.choices else None
        return SourceSplits(train, _numbered(30, "test"), pretrain, choices)


def _numbers(dataset):
    return dataset.read(torch.arange(len(dataset))).reshape(len(dataset), 2).long() @ torch.tensor([256, 1])


def test_holdout_and_train_part_the_training_split():
    splits = load_splits(NumberedConfig(holdout=0.25))
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (75, 25, 30)
    assert sorted(torch.cat([splits.train.index, splits.holdout.index]).tolist()) == list(range(100))
    assert torch.equal(splits.pretrain.index, splits.train.index)


@pytest.mark.parametrize("limit", [None, 40])
def test_index_label_and_mask_follow_the_image(limit):
    splits = load_splits(NumberedConfig(limit=limit))
    for part in (splits.train, splits.holdout, splits.pretrain, splits.test, splits.train.subset(torch.tensor([3, 1]))):
        assert torch.equal(_numbers(part), part.index)
        assert torch.equal(part.labels, part.index % 3)
        assert torch.equal(part.read_masks(torch.arange(len(part))).flatten().long(), part.index)
        assert len(part) == len(part.labels)


def test_limit_is_drawn_by_the_subset_seed_and_nested():
    def indices(limit, seed):
        return set(load_splits(NumberedConfig(limit=limit, subset_seed=seed)).train.index.tolist())

    assert len(indices(20, 0)) == 20
    assert indices(20, 0) == indices(20, 0) < indices(40, 0)
    assert indices(20, 0) != indices(20, 1)


def test_limit_leaves_the_holdout_alone():
    whole, limited = (load_splits(NumberedConfig(limit=limit)) for limit in (None, 10))
    assert torch.equal(whole.holdout.index, limited.holdout.index)
    assert not set(limited.train.index.tolist()) & set(limited.holdout.index.tolist())


def test_holdout_is_at_least_one_image_and_empty_only_on_request():
    assert len(load_splits(NumberedConfig(holdout=0.001)).holdout) == 1
    splits = load_splits(NumberedConfig(holdout=0.0))
    assert (len(splits.holdout), len(splits.train)) == (0, 100)


def test_unlabelled_images_join_pretraining_but_the_holdout_does_not():
    splits = load_splits(NumberedConfig(unlabelled=300))
    assert (len(splits.pretrain), len(splits.train)) == (390, 90)
    assert torch.equal(_numbers(splits.pretrain), splits.pretrain.index)
    assert not set(splits.pretrain.index.tolist()) & set(splits.holdout.index.tolist())
    assert int((splits.pretrain.labels == -1).sum()) == 300


@pytest.mark.parametrize(("limit", "train"), [(50, 50), (200, 90)])
def test_limit_applies_to_unlabelled_pretraining(limit, train):
    splits = load_splits(NumberedConfig(unlabelled=300, limit=limit))
    assert (len(splits.pretrain), len(splits.train)) == (limit, train)
    assert (splits.pretrain.labels == -1).any()


@pytest.mark.parametrize("limit", [0, -3, 91])
def test_impossible_limit(limit):
    with pytest.raises(UserError, match=f"data.limit is {limit}"):
        load_splits(NumberedConfig(limit=limit))


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 1.5, 0.999])
def test_impossible_holdout(holdout):
    with pytest.raises(UserError, match=f"data.holdout is {holdout}"):
        load_splits(NumberedConfig(holdout=holdout))


def test_unknown_source_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'numbered'"):
        load_splits(DataConfig(name="numberd"))


def test_every_source_has_a_default_config_that_names_it():
    for name in sources:
        config = sources[name].config()
        assert config.name == name
        assert len(config.mean) == len(config.std) in (1, 3)


@pytest.mark.parametrize("unlabelled", [0, 30])
def test_labels_can_be_left_unread(unlabelled):
    splits = load_splits(NumberedConfig(labelled=False, unlabelled=unlabelled))
    for part in (splits.pretrain, splits.train, splits.holdout, splits.test, splits.train.subset(torch.tensor([1]))):
        assert part.labels is None
        assert torch.equal(_numbers(part), part.index)
    assert load_splits(NumberedConfig(labelled=True)).train.labels is not None


def test_labels_that_are_asked_for_must_be_there():
    with pytest.raises(UserError, match=r"data.labelled is true, but"):
        load_splits(NumberedConfig(labelled=True, without_labels=True))


def test_a_split_for_choices_is_the_holdout():
    splits = load_splits(NumberedConfig(choices=True, holdout=0.25))
    assert (len(splits.train), splits.holdout.split, len(splits.holdout)) == (100, "val", 20)
