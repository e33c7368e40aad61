"""Whole protocols: from a backbone and the parts of a source to records with every detail."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from selfsup.data.base import ImageDataset, Splits
from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig
from selfsup.eval.features import FeatureSet, extract_features, raw_pixels
from selfsup.eval.knn import knn_grid
from selfsup.eval.linear_probe import ProbeSetting, linear_probe
from selfsup.eval.results import Record, add_results, peak_memory_mb
from selfsup.functional.diagnostics import feature_std, rank_me, uniformity

PROTOCOLS = ("diagnostics", "knn", "linear_probe")
DIAGNOSTIC_IMAGES = 25_600  # what RankMe is computed on in its paper


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the parts of a source, and the details every record repeats.

    Attributes:
        train: Bank of the kNN and training features of the probe.
        holdout: Features for choices, or None when no images were set aside.
        test: Features for the reported number, or None when the source has no test images.
        details: Data name, image size, crop, number of images of each part, width of the features.
    """

    train: FeatureSet
    holdout: FeatureSet | None
    test: FeatureSet | None
    details: Record

    @property
    def scored(self) -> tuple[str, FeatureSet]:
        """Name and features of the part that numbers are reported on: test, or the hold-out where there is none.

        Raises:
            UserError: There is neither.
        """
        if self.test is not None:
            return "test", self.test
        if self.holdout is not None:
            return "holdout", self.holdout
        raise UserError("data.holdout: the source has no test images; set aside some of the training images (0.1).")


def extract_splits(
    backbone: nn.Module,
    splits: Splits,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> SplitFeatures:
    """Compute the features of every labelled part once, for all protocols.

    Args:
        backbone, batch_size, workers, device, progress: As ``extract_features``.
        splits: The parts of a source.
        cache_dir: Folder that keeps the features, or None.
    """

    def compute(dataset: ImageDataset, part: str) -> FeatureSet:
        cache = None if cache_dir is None else Path(cache_dir) / f"{part}.pt"
        return extract_features(
            backbone, dataset, batch_size=batch_size, workers=workers, device=device, cache=cache, progress=progress
        )

    return _of_each_part(splits, compute)


def pixel_splits(splits: Splits, *, workers: int = 0) -> SplitFeatures:
    """Take the pixels themselves as the features of every part (see ``raw_pixels``)."""
    return _of_each_part(splits, lambda dataset, _: raw_pixels(dataset, workers=workers))


def evaluate_knn(
    features: SplitFeatures, config: EvalConfig, *, epoch: int | None = None, seed: int | None = None
) -> list[Record]:
    """Return a ``knn`` record for every ``k`` and temperature; the first of each list is marked ``primary``.

    Args:
        features: Features of the parts.
        config: ``knn_k`` and ``temperatures``.
        epoch, seed: Of the training run, for the record.

    Raises:
        UserError: As ``knn``.
    """
    start = time.perf_counter()
    split, scored = features.scored
    found = knn_grid(features.train, scored, config.knn_k, config.temperatures, weights=("distance",))
    common = _common(features, epoch, seed, time.perf_counter() - start)
    return [
        {"protocol": "knn", "split": split, "metric": "top1", "value": result.accuracy}
        | {"k": result.k, "temperature": result.temperature, "weights": result.weights, "neighbours": result.neighbours}
        | {"primary": (result.k, result.temperature) == (config.knn_k[0], config.temperatures[0])}
        | common
        for result in found
    ]


def evaluate_linear_probe(
    features: SplitFeatures,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``linear_probe`` record: accuracy of the setting that was best on images apart from the scored ones.

    The choice is made on the hold-out. Where the hold-out is itself scored, because there are no test images, it is
    made on a part of the training images instead.

    Args:
        features: Features of the parts.
        config: The ``probe_…`` settings.
        epoch: Of the training run, for the record.
        seed: Order of the probe's batches.
        device, progress: As ``linear_probe``.

    Raises:
        UserError: As ``linear_probe``.
    """
    split, scored = features.scored
    result = linear_probe(
        features.train,
        scored,
        holdout=features.holdout if split == "test" else None,
        learning_rates=config.probe_learning_rates,
        weight_decays=config.probe_weight_decays,
        epochs=config.probe_epochs,
        batch_size=config.probe_batch_size,
        seed=seed,
        device=device,
        progress=progress,
    )
    grid = {
        "learning_rates": list(config.probe_learning_rates),
        "weight_decays": list(config.probe_weight_decays),
        "epochs": config.probe_epochs,
        "batch_size": config.probe_batch_size,
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        "features": "standardised",
    }
    return [
        {"protocol": "linear_probe", "split": split, "metric": "top1", "value": result.accuracy, "primary": True}
        | {"grid": grid, "selected_on": result.selected_on, "chosen": _setting(result.chosen)}
        | {"settings": [_setting(setting) for setting in result.settings]}
        | {"per_class": {str(label): value for label, value in result.per_class.items()}}
        | _common(features, epoch, seed, result.seconds)
    ]


def evaluate_diagnostics(features: SplitFeatures, *, epoch: int | None = None, seed: int | None = None) -> list[Record]:
    """Return ``diagnostics`` records that need no labels: uniformity, RankMe and the spread of the training features.

    They are computed on at most 25,600 training images, spaced evenly over the split.
    """
    start = time.perf_counter()
    count = min(len(features.train), DIAGNOSTIC_IMAGES)
    z = features.train.features[torch.linspace(0, len(features.train) - 1, count).round().long()]
    values = {"uniformity": uniformity(z), "rank_me": rank_me(z), "feature_std": feature_std(z)}
    common = _common(features, epoch, seed, time.perf_counter() - start)
    return [
        {"protocol": "diagnostics", "split": "train", "metric": metric, "value": value.item(), "images": count} | common
        for metric, value in values.items()
    ]


def evaluate_all(
    backbone: nn.Module | None,
    splits: Splits,
    config: EvalConfig,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    run_dir: str | Path | None = None,
    epoch: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Run protocols on one extraction, and return the records.

    Args:
        backbone: The network, or None for the raw pixels.
        splits: The parts of a source.
        config: Settings of the protocols.
        protocols: Which ones, some of ``PROTOCOLS``.
        run_dir: Folder of the run. Records are added to its ``results.json``, figures are drawn into ``figures/`` and
            features kept in ``features/`` where the config says so. None only returns the records.
        epoch: Epochs the checkpoint was trained for, for the records.
        seed: Order of the probe's batches.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: As the protocols. Images without labels are no error: they get the diagnostics alone, with a warning.
    """
    if backbone is None:
        features = pixel_splits(splits, workers=workers)
    else:
        features = extract_splits(
            backbone,
            splits,
            batch_size=config.batch_size,
            workers=workers,
            device=device,
            cache_dir=Path(run_dir) / "features" if run_dir is not None and config.cache else None,
            progress=progress,
        )
    labelled = features.train.labels is not None and features.scored[1].labels is not None
    records: list[Record] = []
    if "diagnostics" in protocols:
        records += evaluate_diagnostics(features, epoch=epoch, seed=seed)
    if not labelled and {"knn", "linear_probe"} & set(protocols):
        warnings.warn("The images have no labels: kNN and the linear probe are left out.", stacklevel=2)
    if "knn" in protocols and labelled:
        records += evaluate_knn(features, config, epoch=epoch, seed=seed)
    if "linear_probe" in protocols and labelled:
        records += evaluate_linear_probe(features, config, epoch=epoch, seed=seed, device=device, progress=progress)
    if run_dir is not None:
        add_results(run_dir, records)
        if config.figures:
            draw_figures(features, splits, Path(run_dir) / "figures")
    return records


def draw_figures(features: SplitFeatures, splits: Splits, folder: Path) -> list[Path]:
    """Draw the map of the features and the nearest neighbours of some images, and return the files."""
    from selfsup.eval.figures import feature_map, nearest_images

    split, scored = features.scored
    images = splits.holdout if splits.test is None else splits.test
    title = f"{features.details['data']}, {split}"
    return [
        feature_map(scored.features, scored.labels, images.classes, folder / "feature_map.png", title=title),
        nearest_images(features.train, splits.train, scored, images, folder / "neighbours.png"),
    ]


def _of_each_part(splits: Splits, compute: Callable[[ImageDataset, str], FeatureSet]) -> SplitFeatures:
    train = compute(splits.train, "train")
    holdout = compute(splits.holdout, "holdout") if len(splits.holdout) else None
    test = None if splits.test is None else compute(splits.test, "test")
    size = splits.train.image_size
    details: Record = {
        "data": splits.train.name,
        "image_size": size,
        "crop": f"short side {size}, centre crop {size}",
        "train_images": len(train),
        "holdout_images": 0 if holdout is None else len(holdout),
        "test_images": 0 if test is None else len(test),
        "dim": train.features.shape[1],
    }
    return SplitFeatures(train, holdout, test, details)


def _setting(setting: ProbeSetting) -> Record:
    found = asdict(setting)
    if not math.isfinite(setting.holdout_loss):  # it diverged, and JSON has no infinity
        found["holdout_loss"] = None
    return found


def _common(features: SplitFeatures, epoch: int | None, seed: int | None, seconds: float) -> Record:
    return {
        **features.details,
        "epoch": epoch,
        "seed": seed,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
