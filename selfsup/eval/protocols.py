"""Whole protocols: from a backbone and the parts of a source to records with every detail."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.data.base import ImageDataset, Splits
from selfsup.errors import UserError
from selfsup.eval.clustering import ITERATIONS, POINTS_PER_CLUSTER, RESTARTS, clustering
from selfsup.eval.config import EvalConfig
from selfsup.eval.diagnostics import evaluate_attention, evaluate_invariance, evaluate_layers
from selfsup.eval.feature_choices import ChosenFeatures
from selfsup.eval.features import FeatureSet, autocast_type, extract_features, known_labels, raw_pixels
from selfsup.eval.few_shot import CLASSIFIERS, LOGISTIC_STRENGTH, few_shot
from selfsup.eval.fine_tune import FineTuneResult, fine_tune
from selfsup.eval.knn import KnnResult, knn_grid, knn_loo
from selfsup.eval.linear_probe import POOLED, ProbeResult, labelled_positions, linear_probe, take
from selfsup.eval.logistic import logistic_probe
from selfsup.eval.paper_probe import CROP_AND_FLIP_WORDS, PROBE_PROTOCOLS, labels_of, paper_probe
from selfsup.eval.results import Record, add_results, peak_memory_mb
from selfsup.eval.retrieval import retrieval
from selfsup.eval.ridge import ridge_probe
from selfsup.eval.segmentation import SegmentationResult, segment, segmentation_knn, segmentation_probe
from selfsup.functional.diagnostics import (
    alpha_req,
    effective_rank,
    feature_std,
    singular_values,
    tolerance,
    uniformity,
)

SPECTRUM_POINTS = 64
DIAGNOSTIC_IMAGES = 25_600  # what RankMe is computed on in its paper
SEGMENTED_IMAGES = 6  # in the figure
CONFUSION_CLASSES = 100  # most classes whose confusions are recorded and drawn; more would fill the file and no eye
NOTHING_TO_SCORE = "data.holdout: the source has no test images; set aside some of the training images (0.1)."


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
        raise UserError(NOTHING_TO_SCORE)


def extract_splits(
    backbone: nn.Module,
    splits: Splits,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32",
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> SplitFeatures:
    """Compute the features of every labelled part once, for all protocols.

    Args:
        backbone, batch_size, workers, device, precision, progress: As ``extract_features``.
        splits: The parts of a source.
        cache_dir: Folder that keeps the features, or None.
    """

    def compute(dataset: ImageDataset, part: str) -> FeatureSet:
        cache = None if cache_dir is None else Path(cache_dir) / f"{part}.pt"
        return extract_features(
            backbone,
            dataset,
            batch_size=batch_size,
            workers=workers,
            device=device,
            precision=precision,
            cache=cache,
            progress=progress,
        )

    found = _of_each_part(splits, compute)
    lowered = autocast_type(precision, backbone, device)
    if lowered is None:
        return found
    return replace(found, details=found.details | {"precision": str(lowered).removeprefix("torch.")})


def choice_splits(
    backbone: nn.Module,
    splits: Splits,
    choices: Sequence[str],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32",
    progress: bool = True,
) -> dict[str, SplitFeatures]:
    """Compute several features of every part in one pass, by name; see ``ChosenFeatures``.

    Args:
        backbone, splits, batch_size, workers, device, precision, progress: As ``extract_splits``.
        choices: Such as ``["pooled", "last_4"]``.

    Raises:
        UserError: As ``ChosenFeatures``.
    """
    network = ChosenFeatures(backbone, choices)
    together = extract_splits(
        network,
        splits,
        batch_size=batch_size,
        workers=workers,
        device=device,
        precision=precision,
        progress=progress,
    )
    train = network.split(together.train)
    holdout = None if together.holdout is None else network.split(together.holdout)
    test = None if together.test is None else network.split(together.test)
    return {
        name: SplitFeatures(
            train[name],
            None if holdout is None else holdout[name],
            None if test is None else test[name],
            together.details | {"dim": train[name].features.shape[1]},
        )
        for name in choices
    }


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
    found = knn_grid(
        features.train, scored, config.knn_k, config.temperatures, weights=("distance",), **_search_settings(config)
    )
    common = _common(features, epoch, seed, time.perf_counter() - start)
    return _knn_records(found, {"protocol": "knn", "split": split, "metric": "top1"}, config, common)


def evaluate_knn_loo(
    features: SplitFeatures, config: EvalConfig, *, epoch: int | None = None, seed: int | None = None
) -> list[Record]:
    """Return a ``knn_loo`` record for every ``k`` and temperature: each training image against all the others.

    Args:
        features: Features of the parts; the training images are both bank and queries.
        config, epoch, seed: As ``evaluate_knn``.

    Raises:
        UserError: As ``knn_loo``.
    """
    start = time.perf_counter()
    found = knn_loo(features.train, config.knn_k, config.temperatures, **_search_settings(config))
    common = _common(features, epoch, seed, time.perf_counter() - start)
    return _knn_records(found, {"protocol": "knn_loo", "split": "train", "metric": "top1"}, config, common)


def evaluate_retrieval(
    features: SplitFeatures,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return ``retrieval`` records: the scored images as queries, the training images as gallery.

    Args:
        features: Features of the parts.
        config: ``retrieval_k``.
        epoch, seed: Of the training run, for the record.
        progress: As ``retrieval``.

    Raises:
        UserError: As ``retrieval``.
    """
    start = time.perf_counter()
    split, scored = features.scored
    result = retrieval(scored, features.train, config.retrieval_k, progress=progress)
    values = {"map": result.mean_average_precision, "r_precision": result.r_precision}
    values |= {f"recall@{k}": value for k, value in result.recall.items()}
    common = _common(features, epoch, seed, time.perf_counter() - start)
    counts = {"gallery": "train", "queries": result.queries, "without_match": result.without_match}
    return [
        {"protocol": "retrieval", "split": split, "metric": metric, "value": value} | counts | common
        for metric, value in values.items()
    ]


def evaluate_clustering(
    features: SplitFeatures, config: EvalConfig, *, epoch: int | None = None, seed: int = 0, progress: bool = True
) -> list[Record]:
    """Return ``clustering`` records: k-means of the training features, its agreement with the scored labels.

    Args:
        features: Features of the parts.
        config: ``clusters``.
        epoch: Of the training run, for the record.
        seed: Start of k-means.
        progress: As ``clustering``.

    Raises:
        UserError: As ``clustering``.
    """
    start = time.perf_counter()
    split, scored = features.scored
    result = clustering(features.train, scored, config.clusters, seed=seed, progress=progress)
    common = _common(features, epoch, seed, time.perf_counter() - start)
    fit = {"clusters": result.clusters, "fitted_on": "train", "features": "L2-normalised", "restarts": RESTARTS}
    fit |= {"iterations": ITERATIONS, "most_points_per_cluster": POINTS_PER_CLUSTER}
    values = {"nmi": result.nmi, "ari": result.ari, "cluster_accuracy": result.accuracy}
    return [
        {"protocol": "clustering", "split": split, "metric": metric, "value": value} | fit | common
        for metric, value in values.items()
    ]


def evaluate_linear_probe(
    features: SplitFeatures | Mapping[str, SplitFeatures],
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``linear_probe`` record: accuracy of the setting that was best on images apart from the scored ones.

    The choice is made on the hold-out. Where the hold-out is itself scored, because there are no test images, it is
    made on a part of the training images instead. With several ``seeds`` the value is the mean over them, each with a
    choice of its own, ``std`` the standard deviation; ``chosen`` and ``settings`` are those of the first.

    Args:
        features: Features of the parts; several by name are chosen from like the other settings.
        config: The ``probe_…`` settings, ``label_fraction`` and ``seeds``.
        epoch: Of the training run, for the record.
        seed: Order of the probe's batches, and choice of the labels; further seeds follow it.
        device, progress: As ``linear_probe``.

    Raises:
        UserError: As ``linear_probe``, or a ``label_fraction`` or number of ``seeds`` out of range.
    """
    choices = features if isinstance(features, Mapping) else {POOLED: features}
    grid: Record = {
        "learning_rates": list(config.probe_learning_rates),
        "weight_decays": list(config.probe_weight_decays),
        "epochs": config.probe_epochs,
        "batch_size": config.probe_batch_size,
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        "features": "standardised",
    }
    if list(choices) != [POOLED]:
        grid["choices"] = list(choices)

    def probe(train: _Parts, test: _Parts, holdout: _Parts | None, seed: int) -> ProbeResult[Any]:
        return linear_probe(
            train,
            test,
            holdout=holdout,
            learning_rates=config.probe_learning_rates,
            weight_decays=config.probe_weight_decays,
            epochs=config.probe_epochs,
            batch_size=config.probe_batch_size,
            seed=seed,
            device=device,
            progress=progress,
        )

    return _feature_probe("linear_probe", choices, config, epoch, seed, grid, probe)


def evaluate_logistic(
    features: SplitFeatures,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``logistic`` record: a logistic regression whose penalty is chosen as in ``evaluate_linear_probe``.

    Args:
        features, epoch, seed, device, progress: As ``evaluate_linear_probe``.
        config: The ``logistic_…`` settings, ``label_fraction`` and ``seeds``.

    Raises:
        UserError: As ``logistic_probe``.
    """
    grid = {
        "c": list(config.logistic_c),
        "iterations": config.logistic_iterations,
        "optimizer": "L-BFGS, all images at once",
        "features": "standardised",
    }

    def probe(train: _Parts, test: _Parts, holdout: _Parts | None, seed: int) -> ProbeResult[Any]:
        return logistic_probe(
            train[POOLED],
            test[POOLED],
            holdout=None if holdout is None else holdout[POOLED],
            c=config.logistic_c,
            iterations=config.logistic_iterations,
            seed=seed,
            device=device,
            progress=progress,
        )

    return _feature_probe("logistic", {POOLED: features}, config, epoch, seed, grid, probe)


def evaluate_ridge(
    features: SplitFeatures,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[Record]:
    """Return the ``ridge`` record: a ridge regression whose penalty is chosen as in ``evaluate_linear_probe``.

    Args:
        features, epoch, seed, device: As ``evaluate_linear_probe``.
        config: ``ridge_penalties``, ``label_fraction`` and ``seeds``.

    Raises:
        UserError: As ``ridge_probe``.
    """
    grid = {"penalties": list(config.ridge_penalties), "optimizer": "closed form", "features": "standardised"}

    def probe(train: _Parts, test: _Parts, holdout: _Parts | None, seed: int) -> ProbeResult[Any]:
        return ridge_probe(
            train[POOLED],
            test[POOLED],
            holdout=None if holdout is None else holdout[POOLED],
            penalties=config.ridge_penalties,
            seed=seed,
            device=device,
        )

    return _feature_probe("ridge", {POOLED: features}, config, epoch, seed, grid, probe)


def evaluate_few_shot(
    features: SplitFeatures,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return a ``few_shot`` record for every number of shots and classifier, with its 95 % interval.

    The labelled images of an episode are training images, its queries scored ones. Nothing is chosen.

    Args:
        features: Features of the parts.
        config: The ``few_shot_…`` settings.
        epoch: Of the training run, for the record.
        seed: Of the episodes.
        device, progress: As ``few_shot``.

    Raises:
        UserError: As ``few_shot``.
    """
    split, scored = features.scored
    records: list[Record] = []
    for shots in config.few_shot_shots:
        for classifier in CLASSIFIERS:
            result = few_shot(
                features.train,
                scored,
                ways=config.few_shot_ways,
                shots=shots,
                queries=config.few_shot_queries,
                episodes=config.few_shot_episodes,
                classifier=classifier,
                seed=seed,
                device=device,
                progress=progress,
            )
            protocol: Record = {
                "ways": config.few_shot_ways,
                "shots": shots,
                "queries": config.few_shot_queries,
                "episodes": config.few_shot_episodes,
                "classifier": classifier,
                "features": "centred, L2-normalised",
                "primary": not records,
            }
            if classifier == "logistic":
                protocol["c"] = LOGISTIC_STRENGTH
            records.append(
                {"protocol": "few_shot", "split": split, "metric": "top1", "value": result.accuracy}
                | {"interval": result.interval}
                | protocol
                | _common(features, epoch, seed, result.seconds)
            )
    return records


def evaluate_paper_probe(
    backbone: nn.Module,
    splits: Splits,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``linear_probe`` record of a paper's protocol, see ``paper_probe``.

    Args:
        backbone, splits: What is judged on which images.
        config: ``probe_protocol``, ``probe_protocol_epochs``, ``label_fraction`` and ``seeds``.
        epoch: Of the training run, for the record.
        seed: As ``evaluate_linear_probe``.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: As ``paper_probe``, or there is no such protocol.
    """
    name = config.probe_protocol
    if name not in PROBE_PROTOCOLS:
        raise UserError(
            f"eval.probe_protocol: there is no '{name}'; use one of {', '.join(PROBE_PROTOCOLS)}, or null for the grid."
        )
    protocol = PROBE_PROTOCOLS[name]

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> ProbeResult[Any]:
        return paper_probe(
            backbone,
            train,
            test,
            protocol,
            epochs=config.probe_protocol_epochs,
            batch_size=config.batch_size,
            seed=seed,
            workers=workers,
            device=device,
            progress=progress,
        )

    epochs = protocol.epochs if config.probe_protocol_epochs is None else config.probe_protocol_epochs
    grid: Record = asdict(protocol) | {"epochs": epochs, "features": "as they are"}
    grid["augment"] = CROP_AND_FLIP_WORDS if protocol.augment else "none"
    (record,) = _image_probe("linear_probe", splits, config, epoch, seed, grid, probe)
    return [record | {"probe_protocol": name, "primary": False}]


def evaluate_fine_tune(
    backbone: nn.Module,
    splits: Splits,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``fine_tune`` record: accuracy of the whole network trained with labels.

    Learning rate and epoch are chosen as in ``evaluate_linear_probe``.

    Args:
        backbone, splits, epoch, seed, workers, device, progress: As ``evaluate_paper_probe``.
        config: The ``fine_tune_…`` settings, ``label_fraction`` and ``seeds``.

    Raises:
        UserError: As ``fine_tune``.
    """

    def probe(train: ImageDataset, test: ImageDataset, holdout: ImageDataset | None, seed: int) -> FineTuneResult:
        return fine_tune(
            backbone,
            train,
            test,
            holdout=holdout,
            learning_rates=config.fine_tune_learning_rates,
            layer_decay=config.fine_tune_layer_decay,
            weight_decay=config.fine_tune_weight_decay,
            epochs=config.fine_tune_epochs,
            batch_size=config.fine_tune_batch_size,
            seed=seed,
            workers=workers,
            device=device,
            progress=progress,
        )

    grid = {
        "learning_rates": list(config.fine_tune_learning_rates),
        "layer_decay": config.fine_tune_layer_decay,
        "weight_decay": config.fine_tune_weight_decay,
        "epochs": config.fine_tune_epochs,
        "batch_size": config.fine_tune_batch_size,
        "optimizer": "AdamW, warm-up over a tenth, cosine",
        "augment": CROP_AND_FLIP_WORDS,
    }
    return _image_probe("fine_tune", splits, config, epoch, seed, grid, probe)


_Parts = Mapping[str, FeatureSet]
_Result = ProbeResult[Any] | FineTuneResult


def _feature_probe(
    protocol: str,
    choices: Mapping[str, SplitFeatures],
    config: EvalConfig,
    epoch: int | None,
    seed: int,
    grid: Record,
    probe: Callable[[_Parts, _Parts, _Parts | None, int], ProbeResult[Any]],
) -> list[Record]:
    """Run a probe of features for every seed: ``probe(train, test, holdout, seed)``, each by the name of a choice."""
    first = next(iter(choices.values()), None)
    if first is None:
        raise UserError("eval.probe_features: name at least one.")
    split, _ = first.scored
    test = {name: part.scored[1] for name, part in choices.items()}
    holdout = {name: part.holdout for name, part in choices.items() if part.holdout is not None and split == "test"}
    labels = known_labels(first.train, "train")

    def run(positions: Tensor, seed: int) -> ProbeResult[Any]:
        whole = len(positions) == len(labels)
        train = {name: part.train if whole else take(part.train, positions) for name, part in choices.items()}
        return probe(train, test, holdout or None, seed)

    record, seconds = _over_seeds(labels, config, seed, run)
    head = {"protocol": protocol, "split": split, "metric": "top1", "primary": config.label_fraction == 1}
    return [head | record | {"grid": grid} | _common(first, epoch, seed, seconds)]


def _image_probe(
    protocol: str,
    splits: Splits,
    config: EvalConfig,
    epoch: int | None,
    seed: int,
    grid: Record,
    probe: Callable[[ImageDataset, ImageDataset, ImageDataset | None, int], _Result],
) -> list[Record]:
    """Run a probe that sees the images for every seed: ``probe(train, test, holdout, seed)``."""
    split, scored = _scored_images(splits)
    holdout = splits.holdout if split == "test" and len(splits.holdout) else None
    labels = labels_of(splits.train)
    record, seconds = _over_seeds(
        labels, config, seed, lambda positions, seed: probe(splits.train.subset(positions), scored, holdout, seed)
    )
    head = {"protocol": protocol, "split": split, "metric": "top1", "primary": config.label_fraction == 1}
    counts = len(splits.train), len(splits.holdout), 0 if splits.test is None else len(splits.test)
    return [head | record | {"grid": grid} | _images(splits, *counts) | _measured(epoch, seed, seconds)]


def _over_seeds(
    labels: Tensor, config: EvalConfig, seed: int, run: Callable[[Tensor, int], _Result]
) -> tuple[Record, float]:
    """Run a probe on the labels of each seed; return what the record says of it, and the seconds it took."""
    if config.seeds < 1:
        raise UserError("eval.seeds: give at least 1.")
    seeds = [seed + number for number in range(config.seeds)]
    drawn = [labelled_positions(labels, config.label_fraction, one) for one in seeds]
    results = [run(positions, one) for positions, one in zip(drawn, seeds, strict=True)]
    values = torch.tensor([result.accuracy for result in results], dtype=torch.double)
    first = results[0]
    record: Record = {
        "value": values.mean().item(),
        "seeds": seeds,
        "label_fraction": config.label_fraction,
        "labelled_images": len(drawn[0]),
        "selected_on": first.selected_on,
        "per_class": {
            str(label): sum(result.per_class[label] for result in results) / len(results) for label in first.per_class
        },
    }
    if first.chosen is not None:
        record |= {"chosen": _setting(first.chosen), "settings": [_setting(setting) for setting in first.settings]}
    if len(results) > 1:
        record |= {"std": values.std().item(), "values": values.tolist()}
    if len(first.labels) <= CONFUSION_CLASSES and all(torch.equal(first.labels, r.labels) for r in results):
        total = torch.stack([result.confusion for result in results]).sum(0)
        record["confusion"] = {"labels": first.labels.tolist(), "counts": total.tolist()}
    return record, sum(result.seconds for result in results)


def evaluate_segmentation(
    backbone: nn.Module | None,
    splits: Splits,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[list[Record], SegmentationResult]:
    """Return the ``segmentation`` record, the mean IoU of a linear classifier of pixels, and the probe's result.

    Its learning rate is chosen on the hold-out, or on a part of the training images where the hold-out is scored
    because there are no test images.

    Args:
        backbone: The network, or None for the raw pixels.
        splits: The parts of a source.
        config: The ``segmentation_…`` settings.
        epoch: Of the training run, for the record.
        seed: Choice and order of the training images.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: As ``segmentation_probe``, or there are neither test nor held-out images.
    """
    split, scored = _scored_images(splits)
    result = segmentation_probe(
        backbone,
        splits.train,
        scored,
        holdout=splits.holdout if split == "test" and len(splits.holdout) else None,
        images=config.segmentation_images,
        learning_rates=config.segmentation_learning_rates,
        epochs=config.segmentation_epochs,
        batch_size=config.segmentation_batch_size,
        seed=seed,
        workers=workers,
        device=device,
        progress=progress,
    )
    grid = {
        "learning_rates": list(config.segmentation_learning_rates),
        "epochs": config.segmentation_epochs,
        "batch_size": config.segmentation_batch_size,
        "optimizer": "SGD, Nesterov momentum 0.9, cosine",
        "features": "standardised by channel; logits upsampled bilinearly",
    }
    trained_on, chosen_on, scored_on = result.images
    record: Record = {
        "protocol": "segmentation",
        "split": split,
        "metric": "miou",
        "value": result.miou,
        "primary": True,
        "grid": grid,
        "selected_on": result.selected_on,
        "chosen": asdict(result.chosen),
        "settings": [asdict(setting) for setting in result.settings],
        "per_class": _by_name(result.per_class, scored),
        "pixel_accuracy": result.pixel_accuracy,
        "map_size": list(result.map_size),
        "mask_size": scored.image_size,
        **_images(splits, trained_on, chosen_on, scored_on if split == "test" else 0, len(result.classifier.mean)),
        **_measured(epoch, seed, result.seconds),
    }
    return [record], result


def evaluate_segmentation_knn(
    backbone: nn.Module,
    splits: Splits,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return the ``segmentation_knn`` record: the mean IoU when each cell takes the classes of its nearest cells.

    Args:
        backbone: A network with ``forward_dense``.
        splits: The parts of a source; the cells are those of ``train``.
        config: ``segmentation_images``, ``_k``, ``_temperature``, ``_cells`` and ``_batch_size``.
        epoch: Of the training run, for the record.
        seed: Choice of the training images and cells.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: As ``segmentation_knn``, or there are neither test nor held-out images.
    """
    split, scored = _scored_images(splits)
    result = segmentation_knn(
        backbone,
        splits.train,
        scored,
        k=config.segmentation_k,
        temperature=config.segmentation_temperature,
        images=config.segmentation_images,
        cells=config.segmentation_cells,
        batch_size=config.segmentation_batch_size,
        seed=seed,
        workers=workers,
        device=device,
        progress=progress,
    )
    read, scored_on = result.images
    tested, held = (scored_on, 0) if split == "test" else (0, scored_on)
    record: Record = {
        "protocol": "segmentation_knn",
        "split": split,
        "metric": "miou",
        "value": result.miou,
        "primary": True,
        "k": config.segmentation_k,
        "temperature": config.segmentation_temperature,
        "neighbours": result.bank.k,
        "bank_cells": len(result.bank.features),
        "per_class": _by_name(result.per_class, scored),
        "pixel_accuracy": result.pixel_accuracy,
        "map_size": list(result.map_size),
        "mask_size": scored.image_size,
        **_images(splits, read, held, tested, result.bank.features.shape[1]),
        **_measured(epoch, seed, result.seconds),
    }
    return [record]


def evaluate_diagnostics(features: SplitFeatures, *, epoch: int | None = None, seed: int | None = None) -> list[Record]:
    """Return ``diagnostics`` records of the training features: uniformity, spread, RankMe and alpha-ReQ.

    They need no labels and are computed on at most 25,600 training images, spaced evenly over the split. The RankMe
    record carries the singular values as fractions of the largest, at ranks spaced evenly on a logarithmic axis. Where
    there are labels, tolerance is added; alpha-ReQ is left out where too few eigenvalues are above rounding error.

    Raises:
        UserError: Fewer than two training images.
    """
    start = time.perf_counter()
    count = min(len(features.train), DIAGNOSTIC_IMAGES)
    if count < 2:
        raise UserError("data.limit: diagnostics need at least two training images; raise it.")
    chosen = torch.linspace(0, len(features.train) - 1, count).round().long()
    z, labels = features.train.features[chosen], features.train.labels
    sigma = singular_values(z)
    ranks = torch.unique(torch.logspace(0, math.log10(len(sigma)), SPECTRUM_POINTS).round().long())
    shares = sigma[ranks - 1] / sigma[0].clamp_min(torch.finfo(sigma.dtype).tiny)
    values = {"uniformity": uniformity(z), "rank_me": effective_rank(sigma), "feature_std": feature_std(z)}
    with contextlib.suppress(ValueError):
        values["alpha_req"] = alpha_req(z)
    if labels is not None:
        with contextlib.suppress(ValueError):
            values["tolerance"] = tolerance(z, labels[chosen])
    spectrum = {"rank": ranks.tolist(), "value": shares.tolist()}
    common = _common(features, epoch, seed, time.perf_counter() - start)
    return [
        {"protocol": "diagnostics", "split": "train", "metric": metric, "value": value.item(), "images": count}
        | ({"spectrum": spectrum} if metric == "rank_me" else {})
        | common
        for metric, value in values.items()
    ]


@dataclass
class Subject:
    """What is judged and how: everything that protocols need.

    Attributes:
        backbone: The network, or None for the raw pixels.
        splits: The parts of a source.
        config: Settings of the protocols.
        head: What the method trained on top of the backbone, for the layers; None looks at the backbone alone.
        epoch: Epochs the checkpoint was trained for, for the records.
        seed: Of everything random.
        cache_dir: Folder that keeps the features, or None.
        workers, device, progress: As ``extract_features``.
        segmented: The segmentation probe's result, for the figure, once there is one.
    """

    backbone: nn.Module | None
    splits: Splits
    config: EvalConfig
    head: nn.Module | None = None
    epoch: int | None = None
    seed: int = 0
    cache_dir: Path | None = None
    workers: int = 0
    device: torch.device | str | None = None
    progress: bool = True
    segmented: SegmentationResult | None = None

    @property
    def features(self) -> SplitFeatures:
        """Pooled features of every part, computed when the first protocol asks for them.

        Raises:
            UserError: As ``extract_splits``; the same for every protocol that asks, after one extraction.
        """
        if isinstance(self._extracted, UserError):
            raise self._extracted
        return self._extracted

    @cached_property
    def _extracted(self) -> SplitFeatures | UserError:
        if self.backbone is None:
            return pixel_splits(self.splits, workers=self.workers)
        try:
            return extract_splits(
                self.backbone,
                self.splits,
                batch_size=self.config.batch_size,
                workers=self.workers,
                device=self.device,
                precision=self.config.precision,
                cache_dir=self.cache_dir,
                progress=self.progress,
            )
        except UserError as error:
            return error

    @property
    def extracted(self) -> SplitFeatures | None:
        """The pooled features where a protocol has asked for them and they could be computed."""
        found = vars(self).get("_extracted")
        return found if isinstance(found, SplitFeatures) else None

    @property
    def run(self) -> dict[str, Any]:
        """What every protocol is told of the run."""
        return {"epoch": self.epoch, "seed": self.seed}

    @property
    def passes(self) -> dict[str, Any]:
        """What protocols that run the network are told beside that."""
        return {**self.run, "workers": self.workers, "device": self.device, "progress": self.progress}

    @property
    def network(self) -> nn.Module:
        """The backbone of protocols that look into it.

        Raises:
            UserError: Raw pixels have none.
        """
        if self.backbone is None:
            raise UserError("raw pixels have no network to look into.")
        return self.backbone


def _linear_probe(subject: Subject) -> list[Record]:
    config, choices = subject.config, subject.config.probe_features
    if config.probe_protocol is not None:
        return evaluate_paper_probe(subject.network, subject.splits, config, **subject.passes)
    features: SplitFeatures | dict[str, SplitFeatures]
    if choices == [POOLED]:
        features = subject.features
    else:
        features = choice_splits(
            subject.network,
            subject.splits,
            choices,
            batch_size=config.batch_size,
            workers=subject.workers,
            device=subject.device,
            precision=config.precision,
            progress=subject.progress,
        )
    return evaluate_linear_probe(features, config, **subject.run, device=subject.device, progress=subject.progress)


def _segmentation(subject: Subject) -> list[Record]:
    records, subject.segmented = evaluate_segmentation(
        subject.backbone, subject.splits, subject.config, **subject.passes
    )
    return records


#: What can be measured, by name, in the order it is measured in. Each raises a ``UserError`` where the data or the
#: network do not allow it.
PROTOCOLS: dict[str, Callable[[Subject], list[Record]]] = {
    "diagnostics": lambda s: evaluate_diagnostics(s.features, **s.run),
    "knn": lambda s: evaluate_knn(s.features, s.config, **s.run),
    "knn_loo": lambda s: evaluate_knn_loo(s.features, s.config, **s.run),
    "retrieval": lambda s: evaluate_retrieval(s.features, s.config, **s.run, progress=s.progress),
    "clustering": lambda s: evaluate_clustering(s.features, s.config, **s.run, progress=s.progress),
    "ridge": lambda s: evaluate_ridge(s.features, s.config, **s.run, device=s.device),
    "few_shot": lambda s: evaluate_few_shot(s.features, s.config, **s.run, device=s.device, progress=s.progress),
    "linear_probe": _linear_probe,
    "logistic": lambda s: evaluate_logistic(s.features, s.config, **s.run, device=s.device, progress=s.progress),
    "segmentation": _segmentation,
    "segmentation_knn": lambda s: evaluate_segmentation_knn(s.network, s.splits, s.config, **s.passes),
    "layers": lambda s: evaluate_layers(s.network, s.splits, s.config, head=s.head, **s.passes),
    "invariance": lambda s: evaluate_invariance(s.network, s.splits, s.config, **s.passes),
    "attention": lambda s: evaluate_attention(s.network, s.splits, s.config, **s.passes),
    "fine_tune": lambda s: evaluate_fine_tune(s.network, s.splits, s.config, **s.passes),
}
#: Those that are measured only when they are asked for by name: they take longer than all the others together.
BY_NAME = frozenset({"logistic", "fine_tune"})


def evaluate_all(
    backbone: nn.Module | None,
    splits: Splits,
    config: EvalConfig,
    *,
    protocols: Sequence[str] | None = None,
    run_dir: str | Path | None = None,
    epoch: int | None = None,
    facts: Record | None = None,
    head: nn.Module | None = None,
    seed: int = 0,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Run protocols on one extraction, and return the records.

    Args:
        backbone, splits, config, epoch, head, seed, workers, device, progress: See ``Subject``.
        protocols: Some of ``PROTOCOLS``; None is all but ``BY_NAME``. What the data or the network do not allow
            (segmentation without masks, kNN without labels) is left out with a warning, and the rest goes on.
        run_dir: Folder of the run. The records of each protocol are added to its ``results.json`` as they are found,
            figures are drawn into ``figures/`` and features kept in ``features/`` where the config says so. None only
            returns the records.
        facts: What else every record says, such as where the weights of a network from elsewhere come from.

    Raises:
        UserError: None of the protocols can run.
    """
    cache_dir = Path(run_dir) / "features" if run_dir is not None and config.cache else None
    subject = Subject(backbone, splits, config, head, epoch, seed, cache_dir, workers, device, progress)
    records: list[Record] = []
    left_out: dict[str, list[str]] = {}  # protocols by the reason
    for name in [name for name in PROTOCOLS if name not in BY_NAME] if protocols is None else protocols:
        try:
            found = [record | (facts or {}) for record in PROTOCOLS[name](subject)]
        except (UserError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            left_out.setdefault(str(error), []).append(name)
            continue
        records += found
        if run_dir is not None:
            add_results(run_dir, found)
    if left_out and not records:
        raise UserError(" ".join(left_out))
    if left_out:
        told = (f"{', '.join(names)} ({reason.rstrip('.')})" for reason, names in left_out.items())
        warnings.warn(f"Left out: {'; '.join(told)}.", stacklevel=2)
    if run_dir is not None and config.figures:
        draw_figures(subject, records, Path(run_dir) / "figures")
    return records


def draw_figures(subject: Subject, records: Sequence[Record], folder: Path) -> None:
    """Draw what the records and the features have to show; what cannot be drawn is told in a warning."""
    splits, device, pooled = subject.splits, subject.device, subject.extracted
    if pooled is not None:
        with _told("features"):
            draw_features(pooled, splits, folder)
    for record in records:
        if record["protocol"] == "linear_probe" and "confusion" in record:
            with _told("confusions"):
                draw_confusion(record, splits, folder)
    if subject.segmented is not None:
        with _told("segmentation"):
            draw_segmentation(subject.backbone, subject.segmented, splits, folder, device=device)
    with _told("diagnostics"):
        draw_diagnostics(subject.backbone, pooled, records, splits, folder, device=device, progress=subject.progress)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a picture into a warning: it must not cost the numbers."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"The figures of the {what} could not be drawn ({reason}); the results are kept.", stacklevel=4)


def draw_features(features: SplitFeatures, splits: Splits, folder: Path) -> list[Path]:
    """Draw the map of the features and the nearest neighbours of some images, and return the files."""
    from selfsup.eval.figures import feature_map, nearest_images

    split, scored = features.scored
    images = splits.holdout if splits.test is None else splits.test
    title = f"{features.details['data']}, {split}"
    return [
        feature_map(scored.features, scored.labels, images.classes, folder / "feature_map.png", title=title),
        nearest_images(features.train, splits.train, scored, images, folder / "neighbours.png"),
    ]


def draw_confusion(record: Record, splits: Splits, folder: Path) -> Path:
    """Draw which classes the linear probe takes for which, and return the file."""
    from selfsup.eval.probe_figures import confusion_chart

    return confusion_chart(record, splits.train.classes, folder / "confusion.png")


def draw_diagnostics(
    backbone: nn.Module | None,
    features: SplitFeatures | None,
    records: Sequence[Record],
    splits: Splits,
    folder: Path,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Path]:
    """Draw the spectrum, the layers, the augmentations, the attention and where similarities come from.

    Each is drawn where there is something to draw. The last goes with the ``diagnostics``, as it takes some hundred
    passes; it shows some scored images and the training image nearest to each.
    """
    from selfsup.eval import diagnostic_figures as draw

    charts = {
        "diagnostics": ("spectrum", draw.spectrum_curve),
        "layers": ("layers", draw.layers_chart),
        "invariance": ("invariance", draw.invariance_chart),
        "attention": ("attention", draw.attention_chart),
    }
    drawn = []
    for protocol, (name, chart) in charts.items():
        own = [record for record in records if record["protocol"] == protocol]
        if own:
            drawn.append(chart(own, folder / f"{name}.png"))
    diagnosed = any(record["protocol"] == "diagnostics" for record in records)
    if diagnosed and features is not None and backbone is not None and hasattr(backbone, "forward_dense"):
        images = splits.holdout if splits.test is None else splits.test
        drawn.append(
            draw.nearest_similarities(
                backbone,
                features.train,
                splits.train,
                features.scored[1],
                images,
                folder / "similarity.png",
                device=device,
                progress=progress,
            )
        )
    return drawn


def draw_segmentation(
    backbone: nn.Module | None,
    result: SegmentationResult,
    splits: Splits,
    folder: Path,
    *,
    device: torch.device | str | None = None,
) -> Path:
    """Draw image, true mask and predicted mask of some scored images, spaced evenly, and return the file."""
    from selfsup.eval.figures import segmentation_panels

    _, scored = _scored_images(splits)
    chosen = scored.subset(torch.linspace(0, len(scored) - 1, min(SEGMENTED_IMAGES, len(scored))).round().long())
    predicted, truth = segment(backbone, result.classifier, chosen, device=device)
    pictures = raw_pixels(chosen).features.view(len(truth), scored.channels, *truth.shape[1:])
    names = ("background", *(scored.classes or ()))
    return segmentation_panels(pictures, truth, predicted, folder / "segmentation.png", classes=names)


def _by_name(per_class: dict[int, float], scored: ImageDataset) -> dict[str, float]:
    names = ("background", *(scored.classes or ()))
    return {names[c] if c < len(names) else str(c): value for c, value in per_class.items()}


def _scored_images(splits: Splits) -> tuple[str, ImageDataset]:
    if splits.test is not None:
        return "test", splits.test
    if len(splits.holdout):
        return "holdout", splits.holdout
    raise UserError(NOTHING_TO_SCORE)


def _of_each_part(splits: Splits, compute: Callable[[ImageDataset, str], FeatureSet]) -> SplitFeatures:
    train = compute(splits.train, "train")
    holdout = compute(splits.holdout, "holdout") if len(splits.holdout) else None
    test = None if splits.test is None else compute(splits.test, "test")
    held, tested = (0 if part is None else len(part) for part in (holdout, test))
    return SplitFeatures(train, holdout, test, _images(splits, len(train), held, tested, train.features.shape[1]))


def _images(splits: Splits, train: int, holdout: int, test: int, dim: int | None = None) -> Record:
    size = splits.train.image_size
    return ({} if dim is None else {"dim": dim}) | {
        "data": splits.train.name,
        "image_size": size,
        "crop": f"short side {size}, centre crop {size}",
        "train_images": train,
        "holdout_images": holdout,
        "test_images": test,
    }


def _search_settings(config: EvalConfig) -> Record:
    return {"index": config.index, "effort": config.index_effort, "memory_mb": config.search_memory_mb}


def _knn_records(found: Sequence[KnnResult], head: Record, config: EvalConfig, common: Record) -> list[Record]:
    effort = {} if config.index == "flat" else {"index_effort": config.index_effort}
    return [
        head
        | {"value": result.accuracy, "k": result.k, "temperature": result.temperature, "weights": result.weights}
        | {"neighbours": result.neighbours, "index": config.index, **effort, "recall": round(result.recall, 4)}
        | {"primary": (result.k, result.temperature) == (config.knn_k[0], config.temperatures[0])}
        | common
        for result in found
    ]


def _setting(setting: Any) -> Record:
    found = asdict(setting)
    if not math.isfinite(setting.holdout_loss):  # it diverged, and JSON has no infinity
        found["holdout_loss"] = None
    return found


def _common(features: SplitFeatures, epoch: int | None, seed: int | None, seconds: float) -> Record:
    return {**features.details, **_measured(epoch, seed, seconds)}


def _measured(epoch: int | None, seed: int | None, seconds: float) -> Record:
    return {
        "epoch": epoch,
        "seed": seed,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
