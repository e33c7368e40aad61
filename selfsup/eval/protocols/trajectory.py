"""What a checkpoint can be chosen by without labels, and beside it the kNN accuracy that a choice would be for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from selfsup.augment import RECIPES, ViewGenerator, fold_in
from selfsup.errors import UserError
from selfsup.eval.encoder import frozen
from selfsup.eval.features import check_finite
from selfsup.eval.protocols.invariance import SMALL_IMAGE
from selfsup.eval.published import encode_views
from selfsup.eval.record import Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.voting import knn_grid, search_settings
from selfsup.functional.diagnostics import alpha_req, lidar, rank_me
from selfsup.settings import setting
from selfsup.types import height_width


@dataclass
class TrajectorySettings:
    """On how many images.

    Attributes:
        images: Most training images that RankMe and α-ReQ are computed on, and kNN looks for neighbours in.
        queries: Most images that kNN classifies.
        lidar_images: Most training images of LiDAR.
        views: Views of each of these.
    """

    images: int = setting(25_600, least=2)
    queries: int = setting(2000, least=1)
    lidar_images: int = setting(1000, least=2)
    views: int = setting(10, least=2)


@protocol("trajectory", TrajectorySettings, needs=("network",), by_name=True)
def evaluate(subject: Subject, settings: TrajectorySettings) -> Iterator[Record]:
    """RankMe, LiDAR and α-ReQ of a checkpoint, and kNN accuracy where there are labels.

    ``selfsup trajectory RUN`` runs it on every checkpoint that a run has kept. RankMe and α-ReQ are of the pooled
    features of training images, LiDAR of views by the SimCLR recipe of some of them, whatever recipe the network was
    trained with; none reads labels. kNN is that of the hold-out where there is one, as a checkpoint may be chosen by
    it: by the first of ``eval.knn.k`` and ``eval.knn.temperatures``. Compare checkpoints of one run by these, and not
    methods or networks of another width.
    """
    encoder = replace(subject.encoder, network=subject.network)
    bank_images = evenly(subject.splits.train, settings.images)
    if len(bank_images) < 2:
        raise UserError("data.limit: RankMe and LiDAR need at least two training images; raise it.")
    bank = encoder.features(bank_images)
    how = {"images": len(bank), "dim": bank.features.shape[1]}
    yield Record(split="train", metric="rank_me", value=rank_me(bank.features).item(), how=how)
    few = evenly(subject.splits.train, settings.lidar_images)
    name = "simclr_small" if max(height_width(few.image_size)) <= SMALL_IMAGE else "simclr"
    generator = ViewGenerator([RECIPES[name][0][0]], [few.image_size], encoder.normalization(few))
    with frozen(subject.network, encoder.device):
        inside = replace(encoder, device=None)
        seeds = [fold_in(subject.seed, draw) for draw in range(settings.views)]
        views = torch.stack([encode_views(inside, few, generator, seed).features for seed in seeds], 1).cpu()
    check_finite(views.flatten(1), f"features of views of '{few.name}'")
    own = {"images": len(views), "views": settings.views, "recipe": name, "dim": how["dim"]}
    yield Record(split="train", metric="lidar", value=lidar(views).item(), how=own)
    with contextlib.suppress(ValueError):  # too few eigenvalues above rounding error
        yield Record(split="train", metric="alpha_req", value=alpha_req(bank.features).item(), how=how)
    split, unseen = subject.unseen
    asked = evenly(unseen, settings.queries)
    labelled = all(part.labels is not None and bool((part.labels >= 0).all()) for part in (bank_images, asked))
    if labelled:
        votes = subject.config.of("knn")
        k, temperature = votes.k[0], votes.temperatures[0]
        queries = encoder.features(asked)
        search = search_settings(subject.config)
        (result,) = knn_grid(bank, queries, [k], [temperature], weights=("distance",), **search)
        own = {"k": k, "temperature": temperature, "index": subject.config.index, "queries": len(queries), **how}
        yield Record(split=split, metric="top1", value=result.accuracy, how=own)
