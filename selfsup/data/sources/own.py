"""A dataset that was given from Python."""

from __future__ import annotations

from dataclasses import dataclass

from selfsup.data.base import DataConfig, ImageDataset, SourceSplits
from selfsup.data.torch_dataset import SizedDataset, as_images
from selfsup.errors import UserError
from selfsup.registry import sources
from selfsup.types import Normalization

_given: list[tuple[SizedDataset | ImageDataset, SizedDataset | ImageDataset | None]] = []


@dataclass
class OwnConfig(DataConfig):
    """Settings of a dataset that was given from Python."""

    name: str = "own"


def give_dataset(train: SizedDataset | ImageDataset, test: SizedDataset | ImageDataset | None = None) -> None:
    """Let ``data=own`` stand for these datasets of this process from now on."""
    _given[:] = [(train, test)]


@sources.register("own", OwnConfig)
def own(config: OwnConfig) -> SourceSplits:
    """A torch dataset given from Python: selfsup.train(data=my_dataset), see as_images for what it may hold."""
    if not _given:
        raise UserError(
            "data=own is a dataset that was given from Python, which this process does not have: give it to "
            "selfsup.train(data=…) or selfsup.evaluate(…, data=…), or name other data."
        )
    train, test = (
        None
        if part is None
        else as_images(
            part,
            image_size=config.image_size,
            name=config.name,
            split=split,
            normalization=Normalization(tuple(config.mean), tuple(config.std)),
            resident_limit_mb=config.resident_limit_mb,
        )
        for part, split in zip(_given[0], ("train", "test"), strict=True)
    )
    assert train is not None
    return SourceSplits(train, test)
