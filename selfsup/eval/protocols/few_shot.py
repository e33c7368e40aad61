"""Few-shot episodes: classes told apart from a handful of labelled images each."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet, check_finite, check_widths, known_labels
from selfsup.eval.logistic import fit_logistic
from selfsup.eval.record import Record, Spread
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject
from selfsup.settings import setting

EPISODES_AT_ONCE = 100
CLASSIFIERS = ("centroid", "logistic")
LOGISTIC_STRENGTH = 1.0


@dataclass
class FewShotSettings:
    """What the episodes are.

    Attributes:
        ways: Classes of an episode.
        shots: Labelled images of each; one measurement for every entry.
        queries: Images of each class to be classified.
        episodes: Their number.
    """

    ways: int = setting(5, least=2)
    shots: list[int] = setting([1, 5], least=1)
    queries: int = setting(15, least=1)
    episodes: int = setting(600, least=2)


@protocol("few_shot", FewShotSettings, needs=("labels",), shown=("ways", "shots", "classifier"))
def evaluate(subject: Subject, settings: FewShotSettings) -> Iterator[Record]:
    """Accuracy over episodes of a few labelled images a class, with its 95 % interval; nothing is chosen.

    The labelled images of an episode are training images, its queries scored ones. One record for every number of
    shots and classifier.
    """
    features = subject.features
    split, scored = features.scored
    for shots in settings.shots:
        for classifier in CLASSIFIERS:
            result = few_shot(
                features.train,
                scored,
                ways=settings.ways,
                shots=shots,
                queries=settings.queries,
                episodes=settings.episodes,
                classifier=classifier,
                seed=subject.seed,
                device=subject.encoder.device,
                progress=subject.encoder.progress,
            )
            how: dict[str, Any] = {
                "ways": settings.ways,
                "shots": shots,
                "queries": settings.queries,
                "episodes": settings.episodes,
            }
            how |= {"classifier": classifier, "features": "centred, L2-normalised", **features.how}
            how["primary"] = (shots, classifier) == (settings.shots[0], CLASSIFIERS[0])
            if classifier == "logistic":
                how["c"] = LOGISTIC_STRENGTH
            spread = Spread(result.interval, "interval")
            found = {"seconds": round(result.seconds, 3)}
            yield Record(split=split, metric="top1", value=result.accuracy, spread=spread, how=how, found=found)


@dataclass(frozen=True)
class FewShotResult:
    """Accuracy over episodes.

    Attributes:
        accuracy: Mean over the episodes of the fraction of queries whose class is right.
        interval: Half the width of the 95 % interval of that mean, ``1.96 · standard deviation / √episodes``.
        accuracies: float64 ``[E]``, the accuracy of each episode.
        seconds: Time taken.
    """

    accuracy: float
    interval: float
    accuracies: Tensor
    seconds: float


def few_shot(
    support: FeatureSet,
    query: FeatureSet,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    classifier: str = "centroid",
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> FewShotResult:
    """Classify queries by a few labelled images a class, over many random episodes.

    An episode draws ``ways`` classes, ``shots`` images of each from ``support`` and ``queries`` of each from ``query``,
    without replacement. Features have the mean of all support features taken off and are then L2-normalised (CL2N of
    SimpleShot, Wang et al., arXiv:1911.04623). ``centroid`` takes the class whose mean is nearest; ``logistic`` fits a
    logistic regression with ``C = 1`` to the labelled images. Both see the same episodes for one seed.

    Args:
        support: Where the labelled images come from: the training part.
        query: Where the images to classify come from: the scored part.
        ways, shots, queries: Classes of an episode, labelled images and queries of each.
        episodes: Number of episodes.
        classifier: ``centroid`` or ``logistic``.
        seed: Of the episodes.
        device: Where to compute; None is the GPU when there is one.
        progress: Show a progress bar.

    Raises:
        UserError: Missing labels, different widths, features that are not finite, too few classes with enough images.
    """
    start = time.perf_counter()
    if classifier not in CLASSIFIERS:
        raise UserError(f"few_shot: there is no classifier '{classifier}'; use one of {', '.join(CLASSIFIERS)}.")
    if ways < 2 or min(shots, queries) < 1 or episodes < 2:
        raise UserError(
            "eval.few_shot.ways and eval.few_shot.episodes: give at least 2; eval.few_shot.shots and "
            "eval.few_shot.queries: at least 1."
        )
    labels = {"support": known_labels(support, "support"), "query": known_labels(query, "query")}
    check_widths(support, query)
    check_finite(support.features, "support features")
    check_finite(query.features, "query features")
    drawn = draw_episodes(labels["support"], labels["query"], ways, shots, queries, episodes, seed)
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    mean = support.features.mean(0)
    known, asked = (F.normalize(part.features - mean, dim=1) for part in (support, query))
    of_known = torch.arange(ways).repeat_interleave(shots).to(where)
    of_asked = torch.arange(ways).repeat_interleave(queries).to(where)
    right = []
    with progress_bar(total=episodes, desc=f"{ways}-way {shots}-shot", unit="episode", disable=not progress) as bar:
        for support_rows, query_rows in zip(*(torch.split(rows, EPISODES_AT_ONCE) for rows in drawn), strict=True):
            x, q = known[support_rows].to(where), asked[query_rows].to(where)
            if classifier == "centroid":
                centres = x.view(len(x), ways, shots, -1).mean(2)
                # ‖q - c‖² without ‖q‖², which is the same for every class
                scores = 2 * q @ centres.transpose(1, 2) - centres.square().sum(2).unsqueeze(1)
            else:
                weight, bias = fit_logistic(x, of_known, ways, [LOGISTIC_STRENGTH] * len(x))
                scores = q @ weight + bias.unsqueeze(1)
            right.append((scores.argmax(2) == of_asked).double().mean(1).cpu())
            bar.update(len(x))
    accuracies = torch.cat(right)
    interval = 1.96 * accuracies.std().item() / math.sqrt(episodes)
    return FewShotResult(accuracies.mean().item(), interval, accuracies, time.perf_counter() - start)


def draw_episodes(
    support: Tensor, query: Tensor, ways: int, shots: int, queries: int, episodes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw the rows of every episode, grouped by class.

    Args:
        support, query: int64 labels ``[N]`` and ``[M]``.
        ways, shots, queries, episodes, seed: See ``few_shot``.

    Returns:
        int64 ``[E, ways · shots]`` rows of the support and ``[E, ways · queries]`` of the query part. Two runs that
        differ in ``shots`` alone draw the same classes and queries.

    Raises:
        UserError: Fewer than ``ways`` classes have enough images in both parts.
    """
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for label in torch.unique(support).tolist():
        mine = (support == label).nonzero().flatten(), (query == label).nonzero().flatten()
        if len(mine[0]) >= shots and len(mine[1]) >= queries:
            rows[label] = mine
    if len(rows) < ways:
        raise UserError(
            f"eval.few_shot.ways is {ways} and {len(rows)} classes have {shots} training and {queries} scored images; "
            "lower eval.few_shot.ways, eval.few_shot.shots or eval.few_shot.queries."
        )
    labels = list(rows)
    # one generator for each part, so that the number of shots does not change what else is drawn
    which, known, asked = (torch.Generator().manual_seed(3 * seed + part) for part in range(3))
    support_rows, query_rows = [], []
    for _ in range(episodes):
        chosen = [rows[labels[i]] for i in torch.randperm(len(labels), generator=which)[:ways].tolist()]
        support_rows.append(torch.cat([_draw(mine, shots, known) for mine, _ in chosen]))
        query_rows.append(torch.cat([_draw(mine, queries, asked) for _, mine in chosen]))
    return torch.stack(support_rows), torch.stack(query_rows)


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:count]]
