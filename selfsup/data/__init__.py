"""Data sources, their splits and the loaders; importing this registers every source."""

import selfsup.data.sources  # noqa: F401 each file registers itself
from selfsup.data.base import DataConfig, ImageDataset, SourceSplits, Splits
from selfsup.data.files import FileDataset
from selfsup.data.loader import Share, TrainLoader, eval_batches
from selfsup.data.resident import ResidentDataset
from selfsup.data.sources.shapes import draw_scenes
from selfsup.data.splits import load_splits
from selfsup.data.torch_dataset import as_images

__all__ = [
    "DataConfig",
    "FileDataset",
    "ImageDataset",
    "ResidentDataset",
    "Share",
    "SourceSplits",
    "Splits",
    "TrainLoader",
    "as_images",
    "draw_scenes",
    "eval_batches",
    "load_splits",
]
