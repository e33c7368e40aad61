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
from selfsup.eval.subject import Subject
from selfsup.settings import setting

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
LARGEST = 8192  # side of the matrix that is decomposed: half a gigabyte, and minutes on few cores
BLOCK = 2**24  # numbers that are held in float64 at a time


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
    """Minimise ``mean_n ‖y_n - W x_n - b‖² + λ ‖W‖²`` for every penalty ``λ`` by one eigen-decomposition.

    With centred ``X = inputs - mean`` and one-hot ``Y``, ``W = V (S + λN)⁻¹ Vᵀ Xᵀ Y`` where ``XᵀX = V S Vᵀ``; where
    there are fewer images than dimensions ``XXᵀ`` is decomposed in its place. Computed in float64.

    Args:
        inputs: float ``[N,D]``.
        targets: int64 ``[N]``, 0 to ``classes - 1``.
        classes: ``C``.
        penalties: ``G`` values above 0.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]``, in the type of the inputs.
    """
    count, width = inputs.shape
    share = torch.bincount(targets, minlength=classes).double() / count
    blocks = torch.split(torch.arange(count, device=inputs.device), max(1, BLOCK // width))
    mean = sum((inputs[block].double().sum(0) for block in blocks), inputs.new_zeros(width, dtype=torch.double)) / count
    penalised = torch.tensor([penalty * count for penalty in penalties], dtype=torch.double, device=inputs.device)

    def centred(block: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[block].double() - mean, F.one_hot(targets[block], classes).double() - share

    # V and what the weights are in its coordinates, before the division by the penalised eigenvalues
    if count >= width:
        scatter = inputs.new_zeros(width, width, dtype=torch.double)
        product = inputs.new_zeros(width, classes, dtype=torch.double)
        for block in blocks:
            x, y = centred(block)
            scatter += x.T @ x
            product += x.T @ y
        values, vectors = torch.linalg.eigh(scatter)
        along, basis = vectors.T @ product, vectors
    else:
        x, y = centred(torch.arange(count, device=inputs.device))
        values, vectors = torch.linalg.eigh(x @ x.T)
        along, basis = vectors.T @ y, x.T @ vectors
    weights = torch.stack([basis @ (along / (values.clamp_min(0) + p)[:, None]) for p in penalised])
    biases = share - mean @ weights
    return weights.to(inputs.dtype), biases.to(inputs.dtype)
