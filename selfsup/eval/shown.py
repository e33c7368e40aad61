"""What figures show: pictures and features picked out for a person to look at, whoever draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selfsup.bars import progress_bar
from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder, frozen, input_channels, prepare_images
from selfsup.eval.features import FeatureSet, positions_of
from selfsup.eval.neighbours import search, search_others
from selfsup.functional.saliency import masking_map, similarity_maps, smooth_grad
from selfsup.unit_range import shown_channels

MAP_POINTS = 2000  # t-SNE takes seconds up to here, and more points hide one another
MAP_NEIGHBOURS = 8
PICTURE = 32  # side of the small pictures of a map's images
AT_ONCE = 256  # images read at a time


@dataclass(frozen=True)
class FeatureMap:
    """Features in the plane.

    Attributes:
        points: float ``[N,2]``.
        labels: int64 ``[N]``, or None; -1 where one is missing.
        classes: Names of the labels, or None for their numbers.
        title: Of the picture.
        index: int64 ``[N]``: which images they are of.
        neighbours: int64 ``[N,k]``: places in the map of the features most similar to each (cosine), nearest first.
        pictures: uint8 ``[N,3,32,32]``: the images, small.
    """

    points: Tensor
    labels: Tensor | None
    classes: Sequence[str] | None
    title: str
    index: Tensor
    neighbours: Tensor
    pictures: Tensor


@dataclass(frozen=True)
class NeighbourImages:
    """Queries and the images nearest to each, nearest first.

    Attributes:
        queries: ``[Q,C,H,W]``, as they are stored.
        neighbours: ``[Q,k,C,H,W]``.
        query_labels: int64 ``[Q]``, or None.
        neighbour_labels: int64 ``[Q,k]``, or None.
        classes: Names of the labels.
    """

    queries: Tensor
    neighbours: Tensor
    query_labels: Tensor | None = None
    neighbour_labels: Tensor | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class SimilarityMaps:
    """For pairs of images, which places their similarity comes from.

    Attributes:
        pictures: float ``[P,2,H,W,C]`` in [0, 1], first and second image of each pair.
        exact: float ``[P,2,h,w]``: the map of the cosine of the mean-pooled features; its sum is that cosine.
        smooth_grad, masking: float ``[P,·,·]``: of that cosine on the first image, with the second one fixed.
    """

    pictures: Tensor
    exact: Tensor
    smooth_grad: Tensor
    masking: Tensor


@dataclass(frozen=True)
class MatchedViews:
    """Two views of some images, and which cell of the second is most like each cell of the first.

    Attributes:
        images: float ``[N,2,C,H,W]`` in [0, 1].
        match: int64 ``[N,S²]``: the cell of the second view.
        same: bool ``[N,S²,S²]``: which cells of the first and the second view show the same place.
    """

    images: Tensor
    match: Tensor
    same: Tensor


@dataclass(frozen=True)
class SaliencyMaps:
    """What the similarity of some images to their nearest training image comes from, by several ways.

    Attributes:
        pictures: float ``[N,2,C,H,W]`` in [0, 1]: the image and the one that is nearest.
        similarity: float ``[N]``.
        maps: By way, float ``[N,H,W]``.
        curves: By way, float ``[P]``: the mean response at information 0 to 1, evenly.
    """

    pictures: Tensor
    similarity: Tensor
    maps: Mapping[str, Tensor]
    curves: Mapping[str, Tensor]


@dataclass(frozen=True)
class CueScenes:
    """Scenes in which all cues say the same, and scenes in which no two do.

    Attributes:
        equal: uint8 ``[V,3,H,W]``, one a class.
        opposed: uint8 ``[M,3,H,W]``.
        answer: int64 ``[M]``: the class that these were taken for.
    """

    equal: Tensor
    opposed: Tensor
    answer: Tensor


@dataclass(frozen=True)
class Panels:
    """Images with their masks.

    Attributes:
        images: float ``[N,C,S,S]`` in [0, 1].
        truth, predicted: int64 ``[N,S,S]``; 255 where the truth is unknown.
        classes: Names of the values of the masks.
    """

    images: Tensor
    truth: Tensor
    predicted: Tensor
    classes: Sequence[str] | None = None


def feature_map(features: FeatureSet, images: ImageDataset, split: str, seed: int = 0) -> FeatureMap:
    """Put features in the plane: L2-normalised, PCA to 50 dimensions, t-SNE of at most 2,000 of them.

    Which images are chosen depends on their number and the seed alone, so that they are the same for every network.

    Args:
        features: Some features.
        images: What they are of; the names of its classes and its own name go with them.
        split: What they are called, for the title.
        seed: Choice of the points and start of t-SNE.

    Raises:
        UserError: Fewer than five features.
    """
    if len(features) < 5:
        raise UserError(f"A map of the features needs at least 5 images and there are {len(features)}.")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:MAP_POINTS]
    normalized = F.normalize(features.features[chosen], dim=1)
    points = normalized.numpy()
    if min(points.shape) > 50:
        points = PCA(50, random_state=seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    plane = torch.from_numpy(TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points))
    index = features.index[chosen]
    return FeatureMap(
        plane,
        None if features.labels is None else features.labels[chosen],
        images.classes,
        f"{images.name}, {split}",
        index,
        search_others(normalized, min(MAP_NEIGHBOURS, len(chosen) - 1))[1],
        small_pictures(images, index),
    )


def small_pictures(images: ImageDataset, index: Tensor) -> Tensor:
    """Return images, by their stable index, as uint8 ``[N,3,32,32]``."""
    parts = []
    for positions in torch.split(positions_of(images, index), AT_ONCE):
        stored = images.read(positions)
        small = prepare_images(shown_channels(stored), PICTURE, 3)
        parts.append((255 * small).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def nearest_images(
    bank: tuple[FeatureSet, ImageDataset],
    queries: tuple[FeatureSet, ImageDataset],
    k: int = 8,
) -> NeighbourImages:
    """Return the ``k`` images of the bank nearest to eight queries, which are drawn at random with a fixed seed.

    Args:
        bank, queries: Features, and the images they are of.
    """
    (known, bank_images), (asked, query_images) = bank, queries
    chosen = torch.randperm(len(asked), generator=torch.Generator().manual_seed(0))[:8]
    position = search(known.features, asked.features[chosen], min(k, len(known)))[1]
    found = bank_images.read(positions_of(bank_images, known.index[position.flatten()]))
    return NeighbourImages(
        query_images.read(positions_of(query_images, asked.index[chosen])),
        found.view(*position.shape, *found.shape[1:]),
        None if asked.labels is None else asked.labels[chosen],
        None if known.labels is None else known.labels[position],
        query_images.classes,
    )


def nearest_similarities(
    encoder: Encoder, bank: tuple[FeatureSet, ImageDataset], queries: tuple[FeatureSet, ImageDataset], rows: int = 4
) -> SimilarityMaps:
    """Return :func:`similarities` of some queries, spaced evenly, and the bank image nearest to each."""
    (known, bank_images), (asked, query_images) = bank, queries
    chosen = torch.linspace(0, len(asked) - 1, min(rows, len(asked))).round().long()
    nearest = search(known.features, asked.features[chosen], 1)[1][:, 0]
    first = positions_of(query_images, asked.index[chosen])
    pairs = torch.stack([first, positions_of(bank_images, known.index[nearest])], 1)
    return similarities(encoder, query_images, pairs, bank_images)


def similarities(
    encoder: Encoder,
    dataset: ImageDataset,
    pairs: Tensor,
    partners: ImageDataset | None = None,
    *,
    noisy: int = 25,
    masks: int = 400,
) -> SimilarityMaps:
    """Find, for pairs of images, which places their similarity comes from.

    Args:
        encoder: A network with ``forward_dense``.
        dataset: Where the first image of each pair comes from.
        pairs: int64 ``[P,2]``: positions of the images.
        partners: Where the second image of each pair comes from; None is ``dataset``.
        noisy, masks: Samples of SmoothGrad and of the masking map.

    Raises:
        UserError: The network has no ``forward_dense``.
    """
    network = encoder.network
    if network is None or not hasattr(network, "forward_dense"):
        raise UserError("backbone: maps of the similarity need a network with forward_dense.")
    dense: Any = network.forward_dense
    shown = [dataset.read(pairs[:, 0]), (dataset if partners is None else partners).read(pairs[:, 1])]
    channels, size, statistics = input_channels(network, dataset), dataset.image_size, encoder.normalization(dataset)
    with (
        frozen(network, encoder.device) as (where, dtype),
        progress_bar(total=noisy + masks, desc="similarity", unit="pass", disable=not encoder.progress) as bar,
    ):
        first, second = (encoder.prepared(i.to(where), size, channels, statistics).to(dtype) for i in shown)
        maps1, maps2 = dense(first), dense(second)
        exact = similarity_maps(maps1, maps2)
        target = maps2.mean((2, 3))

        def score(images: Tensor) -> Tensor:
            bar.update()
            return F.cosine_similarity(dense(images).mean((2, 3)), target)

        masked = masking_map(score, first, masks, generator=torch.Generator().manual_seed(0))
        # tensors made in inference mode cannot take part in a gradient
        with torch.inference_mode(False):
            target = target.clone()
            random = torch.Generator(where).manual_seed(0)
            gradient = smooth_grad(score, first.clone(), noisy, generator=random).sum(1).sqrt()
    pictures = [shown_channels(encoder.prepared(i, size, channels)).permute(0, 2, 3, 1).clamp(0, 1) for i in shown]
    return SimilarityMaps(
        torch.stack(pictures, 1),
        torch.stack(list(exact), 1).float().cpu(),
        gradient.float().cpu(),
        masked.float().cpu(),
    )
