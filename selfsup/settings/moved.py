"""Settings that had another name before: the old one goes on working, with a note."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

#: Keys that settings had before, and what they are now.
MOVED = {
    "eval.knn_k": ("eval.knn.k",),
    "eval.temperatures": ("eval.knn.temperatures",),
    "eval.retrieval_k": ("eval.retrieval.k",),
    "eval.clusters": ("eval.clustering.clusters",),
    "eval.probe_learning_rates": ("eval.linear_probe.learning_rates",),
    "eval.probe_weight_decays": ("eval.linear_probe.weight_decays",),
    "eval.probe_epochs": ("eval.linear_probe.epochs",),
    "eval.probe_batch_size": ("eval.linear_probe.batch_size",),
    "eval.probe_features": ("eval.linear_probe.features",),
    "eval.probe_protocol": ("eval.linear_probe.paper",),
    "eval.probe_protocol_epochs": ("eval.linear_probe.paper_epochs",),
    "eval.ridge_penalties": ("eval.ridge.penalties",),
    "eval.logistic_c": ("eval.logistic.c",),
    "eval.logistic_iterations": ("eval.logistic.iterations",),
    "eval.few_shot_ways": ("eval.few_shot.ways",),
    "eval.few_shot_shots": ("eval.few_shot.shots",),
    "eval.few_shot_queries": ("eval.few_shot.queries",),
    "eval.few_shot_episodes": ("eval.few_shot.episodes",),
    "eval.fine_tune_learning_rates": ("eval.fine_tune.learning_rates",),
    "eval.fine_tune_layer_decay": ("eval.fine_tune.layer_decay",),
    "eval.fine_tune_weight_decay": ("eval.fine_tune.weight_decay",),
    "eval.fine_tune_epochs": ("eval.fine_tune.epochs",),
    "eval.fine_tune_batch_size": ("eval.fine_tune.batch_size",),
    "eval.segmentation_images": ("eval.segmentation.images", "eval.segmentation_knn.images"),
    "eval.segmentation_learning_rates": ("eval.segmentation.learning_rates",),
    "eval.segmentation_epochs": ("eval.segmentation.epochs",),
    "eval.segmentation_batch_size": ("eval.segmentation.batch_size", "eval.segmentation_knn.batch_size"),
    "eval.segmentation_k": ("eval.segmentation_knn.k",),
    "eval.segmentation_temperature": ("eval.segmentation_knn.temperature",),
    "eval.segmentation_cells": ("eval.segmentation_knn.cells",),
    "eval.invariance_images": ("eval.invariance.images",),
}


def renamed(overrides: Sequence[str]) -> list[str]:
    """Return overrides with the names that settings have now, with a note of each that had another."""
    found = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if key in MOVED:
            tell_moved(key)
        found += [f"{now}{equals}{value}" for now in MOVED.get(key, (key,))]
    return found


def tell_moved(old: str) -> None:
    """Say what a setting is called now."""
    warnings.warn(f"{old} is {' and '.join(MOVED[old])} now; the old name goes on working.", stacklevel=3)
