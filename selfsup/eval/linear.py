"""The linear probe of features: a grid of softmax classifiers trained at once, one chosen, tested once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.feature_choices import POOLED
from selfsup.eval.features import FeatureSet
from selfsup.eval.probing import ProbeParts, ProbeResult, better, prepare_parts
from selfsup.functional.arguments import is_count

MOMENTUM = 0.9
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class ProbeSetting:
    """A learning rate, a weight decay and features, and what came of them on the images set aside for the choice."""

    learning_rate: float
    weight_decay: float
    holdout_accuracy: float
    holdout_loss: float
    features: str = POOLED


def linear_probe(
    train: FeatureSet | Mapping[str, FeatureSet],
    test: FeatureSet | Mapping[str, FeatureSet],
    *,
    holdout: FeatureSet | Mapping[str, FeatureSet] | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> ProbeResult[ProbeSetting]:
    """Train a linear classifier with every learning rate and weight decay, choose one, and test it once.

    Features are standardised with the mean and standard deviation of the training features, so that one grid of
    learning rates suits every backbone. The classifiers start at zero and take the same batches; see
    ``train_classifiers``. Test images of a class that no training image has count as errors, with a warning.

    Args:
        train: Features to train on. Several features of the same images by name, such as those of the last layers, are
            one more dimension of the grid; ``test`` and ``holdout`` then have the same names.
        test: Features the chosen classifier is tested on.
        holdout: Features the choice is made on; None sets 10 % of ``train`` aside, drawn with ``seed``, and
            ``ProbeResult.selected_on`` says so.
        learning_rates: Learning rates as SGD takes them, not scaled by the batch size.
        weight_decays: Each is paired with every learning rate.
        epochs: Passes over the training features.
        batch_size: Features in a step.
        seed: Order of the batches, and the split.
        device: Where to compute; None is the GPU when there is one.
        progress: Show a progress bar.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, an empty grid.
    """
    start = time.perf_counter()
    if not learning_rates or not weight_decays:
        raise UserError(
            "eval.linear_probe.learning_rates and eval.linear_probe.weight_decays: give at least one value each."
        )
    if not all(map(is_count, (epochs, batch_size))):
        raise UserError("eval.linear_probe.epochs and eval.linear_probe.batch_size: give whole numbers, at least 1.")
    choices = train if isinstance(train, Mapping) else {POOLED: train}
    grid = [(rate, decay) for rate in learning_rates for decay in weight_decays]
    settings: list[ProbeSetting] = []
    best: tuple[ProbeSetting, ProbeParts, Tensor, Tensor] | None = None
    for name in choices:
        parts = prepare_parts(
            choices[name],
            test[name] if isinstance(test, Mapping) else test,
            holdout[name] if isinstance(holdout, Mapping) else holdout,
            seed,
            device,
        )
        weights, biases = train_classifiers(
            parts.inputs["train"],
            parts.targets["train"],
            len(parts.classes),
            grid,
            epochs,
            batch_size,
            seed,
            progress,
        )
        for (rate, decay), weight, bias in zip(grid, weights, biases, strict=True):
            setting = ProbeSetting(rate, decay, *parts.on_holdout(weight, bias), name)
            settings.append(setting)
            if best is None or better(setting, best[0]):
                best = setting, parts, weight.clone(), bias.clone()
    if best is None:
        raise UserError("eval.linear_probe.features: name at least one.")
    chosen, parts, weight, bias = best
    return parts.result(settings, chosen, weight, bias, start)


@torch.no_grad()
def train_classifiers(
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    grid: Sequence[tuple[float, float]],
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train one softmax classifier for each (learning rate, weight decay) of the grid, all in the same matrix products.

    Each is what SGD with Nesterov momentum 0.9 gives for it alone: mean cross-entropy over the batch, weight decay on
    weight and bias, learning rate ``η ½ (1 + cos(π t/T))`` at step ``t`` of ``T``, zero at the start. The order of each
    epoch is the next ``torch.randperm`` of a CPU generator seeded with ``seed``; the last batch may be smaller.

    Args:
        inputs: float ``[N,D]``.
        targets: int64 ``[N]``, 0 to ``classes - 1``.

    Returns:
        Weights ``[G,D,C]`` and biases ``[G,C]`` for the ``G`` settings.
    """
    count, width = inputs.shape
    heads = len(grid)
    # the bias is the weight of a constant input: one product and one update for both
    inputs = torch.cat([inputs, inputs.new_ones(count, 1)], dim=1)
    rates, decays = (inputs.new_tensor(values) for values in zip(*grid, strict=True))
    # heads stand last: what differs between them then runs along memory, softmax and updates too
    weight = inputs.new_zeros(width + 1, classes, heads)
    velocity = torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(count / batch_size)
    step = 0
    for _ in progress_bar(range(epochs), desc=f"linear probe, {heads} settings", unit="epoch", disable=not progress):
        order = torch.randperm(count, generator=generator).to(inputs.device)
        for positions in torch.split(order, batch_size):
            rows = len(positions)
            batch = inputs.index_select(0, positions)
            error = (batch @ weight.flatten(1)).view(rows, classes, heads).softmax(1)
            error[torch.arange(rows, device=error.device), targets[positions]] -= 1
            decayed = (weight * decays).flatten(1)
            gradient = torch.addmm(decayed, batch.T, error.flatten(1), alpha=1 / rows).view_as(weight)
            velocity.mul_(MOMENTUM).add_(gradient)
            gradient.add_(velocity, alpha=MOMENTUM)
            weight.addcmul_(gradient, rates, value=-0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1
    weight = weight.permute(2, 0, 1).contiguous()
    return weight[:, :-1], weight[:, -1]
