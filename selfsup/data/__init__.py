"""Data sources, their splits and the loaders; importing this registers every source."""

from selfsup.data import (  # noqa: F401 each registers itself
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    image_folder,
    mnist,
    parquet,
    shapes,
    stl10,
    svhn,
    voc,
    webdataset,
)
from selfsup.data.base import DataConfig, ImageDataset, SourceSplits, Splits
from selfsup.data.files import FileDataset
from selfsup.data.loader import TrainLoader, eval_batches
from selfsup.data.resident import ResidentDataset
from selfsup.data.shapes import draw_scenes
from selfsup.data.splits import load_splits

__all__ = [
    "DataConfig",
    "FileDataset",
    "ImageDataset",
    "ResidentDataset",
    "SourceSplits",
    "Splits",
    "TrainLoader",
    "draw_scenes",
    "eval_batches",
    "load_splits",
]
