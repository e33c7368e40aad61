"""Ridge regression to one-hot labels: a linear probe in closed form, for a first look."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.probing import ProbeResult, better, pooled_probe, prepare_parts
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.ridge import LARGEST, solve_ridge
from selfsup.eval.subject import Subject
from selfsup.settings import setting

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclass
class RidgeSettings:
    """How the ridge regression is fitted.

    Attributes:
        penalties: Among which one is chosen, for each training image.
    """

    penalties: list[float] = setting(list(PENALTIES), above=0)


@protocol("ridge", RidgeSettings, needs=("labels",), shown=("selected_on",))
def evaluate(subject: Subject, settings: RidgeSettings) -> Iterator[Record]:
    """Accuracy of a ridge regression in closed form, its penalty chosen on the hold-out."""
    grid = {"penalties": list(settings.penalties), "optimizer": "closed form", "features": "standardised"}
    yield pooled_probe(subject, grid, partial(ridge_probe, penalties=settings.penalties))


@dataclass(frozen=True)
class RidgeSetting:
    """A penalty, and what came of it on the images set aside for the choice."""

    penalty: float
    holdout_accuracy: float
    holdout_loss: float


def ridge_probe(
    train: FeatureSet,
    test: FeatureSet,
    *,
    holdout: FeatureSet | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ProbeResult[RidgeSetting]:
    """Fit a ridge regression to one-hot labels for every penalty, choose one, and test it once.

    Features are standardised, and the class with the highest output is predicted. The penalty counts per training
    image, so that one grid suits every size of data: ``penalty · N`` is scikit-learn's ``Ridge(alpha)``.

    Args:
        train, test, holdout, device: As ``linear_probe``.
        penalties: Weights of ``‖weight‖²`` beside the mean squared error.
        seed: Of the images that are set aside where there is no hold-out.

    Raises:
        UserError: As ``linear_probe``; no penalty or one that is not above 0; more than 8192 images and dimensions.
    """
    start = time.perf_counter()
    if not penalties or min(penalties) <= 0:
        raise UserError("eval.ridge.penalties: give at least one value, all above 0.")
    parts = prepare_parts(train, test, holdout, seed, device)
    inputs = parts.inputs["train"]
    if min(inputs.shape) > LARGEST:
        raise UserError(
            f"ridge: {inputs.shape[0]} images of {inputs.shape[1]} dimensions are too many for a closed form; "
            f"lower data.limit to {LARGEST}, or use the linear probe."
        )
    weights, biases = fit_ridge(inputs, parts.targets["train"], len(parts.classes), penalties)
    settings = [
        RidgeSetting(penalty, *parts.on_holdout(weight, bias))
        for penalty, weight, bias in zip(penalties, weights, biases, strict=True)
    ]
    best = 0
    for place, tried in enumerate(settings):
        if better(tried, settings[best]):
            best = place
    return parts.result(settings, settings[best], weights[best], biases[best], start)


def fit_ridge(inputs: Tensor, targets: Tensor, classes: int, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Minimise ``mean_n ‖y_n - W x_n - b‖² + λ ‖W‖²`` with one-hot ``y`` for every penalty ``λ``; see ``solve_ridge``.

    Args:
        inputs: float ``[N,D]``.
        targets: int64 ``[N]``, 0 to ``classes - 1``.
        classes: ``C``.
        penalties: ``G`` values above 0.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]``, in the type of the inputs.
    """
    share = torch.bincount(targets, minlength=classes).double() / len(inputs)
    return solve_ridge(inputs, lambda rows: F.one_hot(targets[rows], classes).double(), share, penalties)
