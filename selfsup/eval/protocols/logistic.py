"""Logistic regression on frozen features, solved to its minimum for every strength of the penalty."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.logistic import fit_logistic
from selfsup.eval.probing import ProbeResult, better, pooled_probe, prepare_parts
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.functional.arguments import is_count
from selfsup.settings import setting

C = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)


@dataclass
class LogisticSettings:
    """How the logistic regression is fitted.

    Attributes:
        c: Inverse penalties among which one is chosen, as scikit-learn's ``C``.
        iterations: Most iterations of L-BFGS.
    """

    c: list[float] = setting(list(C), above=0)
    iterations: int = setting(1000, least=1)


@protocol("logistic", LogisticSettings, needs=("labels",), by_name=True, shown=("selected_on",))
def evaluate(subject: Subject, settings: LogisticSettings) -> Iterator[Record]:
    """Accuracy of a logistic regression, its penalty chosen on the hold-out."""
    grid = {
        "c": list(settings.c),
        "iterations": settings.iterations,
        "optimizer": "L-BFGS, all images at once",
        "features": "standardised",
    }
    probe = partial(logistic_probe, c=settings.c, iterations=settings.iterations, progress=subject.encoder.progress)
    yield pooled_probe(subject, grid, probe)


@dataclass(frozen=True)
class LogisticSetting:
    """A strength ``c`` (a larger one penalises less), and what came of it on the images set aside for the choice."""

    c: float
    holdout_accuracy: float
    holdout_loss: float


def logistic_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    holdout: FeatureSet | None = None,
    c: Sequence[float] = C,
    iterations: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeResult[LogisticSetting]:
    """Fit a logistic regression for every ``c``, choose one, and test it once.

    Each minimises ``c Σ_n cross-entropy_n + ½ ‖weight‖²`` as scikit-learn's ``LogisticRegression(C=c)`` does, on
    standardised features. DINOv2 (Oquab et al., arXiv:2304.07193) evaluates so, with 45 values of ``c``.

    Args:
        train, test, holdout, device: As ``linear_probe``.
        c: Inverse strengths of the penalty.
        iterations: Most iterations of L-BFGS.
        seed: Of the images that are set aside where there is no hold-out.
        progress: Show a progress bar.

    Raises:
        UserError: As ``linear_probe``; no ``c`` or one that is not above 0.
    """
    start = time.perf_counter()
    if not c or not all(0 < value < math.inf for value in c) or not is_count(iterations):
        raise UserError("eval.logistic.c: give at least one value, all above 0; eval.logistic.iterations: at least 1.")
    parts = prepare_parts(train, test, holdout, seed, device)
    inputs, targets, classes = parts.inputs["train"], parts.targets["train"], len(parts.classes)
    fitted = fit_logistic(inputs, targets, classes, c, iterations, progress=progress)
    settings = [
        LogisticSetting(value, *parts.on_holdout(weight, bias)) for value, weight, bias in zip(c, *fitted, strict=True)
    ]
    best = 0
    for place, tried in enumerate(settings):
        if better(tried, settings[best]):
            best = place
    return parts.result(settings, settings[best], fitted[0][best], fitted[1][best], start)
