"""What a network keeps and what it throws away: by layer, by augmentation, and beside another network."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from selfsup.augment import RECIPES, ViewGenerator, ViewRecipe
from selfsup.data.base import ImageDataset, Splits
from selfsup.data.loader import eval_batches
from selfsup.errors import UserError
from selfsup.eval.config import EvalConfig
from selfsup.eval.features import FeatureSet, check_finite, frozen, input_channels, prepare_images
from selfsup.eval.knn import knn_grid
from selfsup.eval.results import Record, peak_memory_mb
from selfsup.functional.attention import attention_distance, attention_nmi, fourier_log_amplitude, patch_attention
from selfsup.functional.diagnostics import alignment, lidar, linear_cka, orthogonal_equivariance, rank_me
from selfsup.random import fold_in

LAYER_BANK, LAYER_QUERIES = 5000, 2000  # a table of every layer is kept in memory
ATTENTION_IMAGES, ATTENTION_BATCH = 256, 16  # a batch holds images × heads × tokens² numbers
SHARED_DRAWS = 4  # operations applied to all images alike, for the equivariance
LIDAR_VIEWS = 10
SMALL_IMAGE = 64  # largest side that takes the recipe for small images, as in training
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
COLOUR_ONLY = ("saturation", "hue", "gray")
WITHOUT_CHOICE = ("flip", "gray", "solarize")  # applied or not: there is nothing to draw


def layer_features(
    backbone: nn.Module,
    dataset: ImageDataset,
    *,
    head: nn.Module | None = None,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> dict[str, FeatureSet]:
    """Compute the features of a dataset after every stage of a network, in one pass.

    Feature maps are averaged over places, tokens over the patches. Stages are those that timm names; of another network
    the children of its outermost container, or the activations among them where there are any.

    Args:
        backbone, dataset, batch_size, workers, device, progress: As ``extract_features``.
        head: What the method trained on top of the pooled feature, or None.

    Returns:
        By name and in order: the stages, ``backbone`` (the pooled feature), and the head's layers, ``head.1`` and so
        on, each behind its activation, the last the embedding.

    Raises:
        UserError: As ``extract_features``.
    """
    if len(dataset) == 0:
        raise UserError(f"data: the {dataset.split} split of '{dataset.name}' is empty; there is nothing to evaluate.")
    normalization = getattr(backbone, "normalization", None) or dataset.normalization
    channels = input_channels(backbone, dataset)
    rows: dict[str, list[Tensor]] = {}
    labels, index = [], []
    whole = nn.ModuleDict({"backbone": backbone} | ({} if head is None else {"head": head}))
    with (
        frozen(whole, device) as (where, dtype),
        _watch(backbone, head) as seen,
        tqdm(total=len(dataset), desc="features of every layer", unit="image", disable=not progress) as bar,
    ):
        for batch in eval_batches(dataset, batch_size, workers):
            images = prepare_images(batch.image.to(where), dataset.image_size, channels, normalization)
            pooled = backbone(images.to(dtype, memory_format=torch.channels_last))
            seen["backbone"] = pooled
            if head is not None:
                embedding = head(pooled)
                seen[f"head.{len(_head_steps(head)) + 1}"] = embedding
            for name, output in seen.items():
                rows.setdefault(name, []).append(output.to("cpu", torch.float32))
            labels.append(batch.label)
            index.append(batch.index)
            bar.update(len(batch.index))
    known = [label for label in labels if label is not None]
    label = torch.cat(known) if known else None
    found = {name: FeatureSet(torch.cat(parts), label, torch.cat(index)) for name, parts in rows.items()}
    for name, part in found.items():
        check_finite(part.features, f"features of layer {name}")
    return found


def evaluate_layers(
    backbone: nn.Module,
    splits: Splits,
    config: EvalConfig,
    *,
    head: nn.Module | None = None,
    epoch: int | None = None,
    seed: int | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return ``layers`` records: kNN accuracy and effective rank after every stage and every layer of the head.

    They show where information is lost; methods whose head throws much away keep it in the layers before (Ouyang et
    al., arXiv:2403.11391, where the layer to use is read off such a table). As a layer may be chosen by them, the
    accuracies are those of the hold-out where there is one. Without labels the ranks alone are returned.

    Args:
        backbone: The network.
        splits: The parts of a source; at most 5,000 training and 2,000 scored images are used, spaced evenly.
        config: The first of ``knn_k`` and ``temperatures``.
        head, workers, device, progress: As :func:`layer_features`.
        epoch, seed: Of the training run, for the record.

    Raises:
        UserError: As :func:`layer_features`.
    """
    start = time.perf_counter()
    split, scored = _unseen(splits)
    options: dict[str, Any] = {"head": head, "workers": workers, "device": device, "progress": progress}
    bank_images, queries_images = _evenly(splits.train, LAYER_BANK), _evenly(scored, LAYER_QUERIES)
    bank = layer_features(backbone, bank_images, batch_size=config.batch_size, **options)
    labelled = all(part.labels is not None and bool((part.labels >= 0).all()) for part in (bank_images, queries_images))
    queries = layer_features(backbone, queries_images, batch_size=config.batch_size, **options) if labelled else {}
    k, temperature = config.knn_k[0], config.temperatures[0]
    records: list[Record] = []
    for depth, (layer, features) in enumerate(bank.items()):
        place: Record = {"protocol": "layers", "layer": layer, "depth": depth, "dim": features.features.shape[1]}
        rank = rank_me(features.features).item()
        records.append(place | {"split": "train", "metric": "rank_me", "value": rank})
        if labelled:
            (result,) = knn_grid(features, queries[layer], [k], [temperature], weights=("distance",))
            accuracy = {"split": split, "metric": "top1", "value": result.accuracy, "weights": result.weights}
            records.append(place | accuracy | {"k": result.k, "temperature": temperature})
    common = _common(splits.train, epoch, seed, start)
    common |= {"train_images": len(bank_images), "scored_images": len(queries_images) if labelled else 0}
    return [record | common for record in records]


def operations(recipe: ViewRecipe, channels: int = 3) -> dict[str, ViewRecipe]:
    """Return recipes that differ from an unchanged view in one operation each, and ``all``, the whole recipe.

    The strengths are those of ``recipe``; probabilities are 1, so that every image is changed. Operations on colour are
    left out for grey images.

    Args:
        recipe: Whose strengths are taken.
        channels: 1 or 3.
    """
    still = unchanged(recipe)
    changes: dict[str, dict[str, Any]] = {
        "crop": {"scale": recipe.scale, "ratio": recipe.ratio},
        "flip": {"flip_p": 1.0},
        "brightness": {"jitter_p": 1.0, "brightness": recipe.brightness},
        "contrast": {"jitter_p": 1.0, "contrast": recipe.contrast},
        "saturation": {"jitter_p": 1.0, "saturation": recipe.saturation},
        "hue": {"jitter_p": 1.0, "hue": recipe.hue},
        "gray": {"gray_p": 1.0},
        "blur": {"blur_p": 1.0},
        "solarize": {"solarize_p": 1.0},
    }
    found = {
        name: replace(still, **change) for name, change in changes.items() if channels == 3 or name not in COLOUR_ONLY
    }
    return found | {"all": recipe}


def unchanged(recipe: ViewRecipe) -> ViewRecipe:
    """Return the recipe with every operation off: the central square of the image, resized."""
    return replace(
        recipe,
        scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        flip_p=0.0,
        jitter_p=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        gray_p=0.0,
        blur_p=0.0,
        solarize_p=0.0,
    )


def evaluate_invariance(
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
    """Return ``invariance`` records: what the features do when one augmentation changes the images.

    For every operation of the SimCLR recipe, whatever recipe the network was trained with, and for all of them
    together, of ``f`` the unchanged and ``g`` the changed images' L2-normalised features:

    - ``cosine``: ``mean_i f_i·g_i``, parameters drawn for each image.
    - ``invariance``: ``(cosine - other) / (1 - other)`` with ``other = mean_{i≠j} f_i·g_j``. 1 when the operation
      moves nothing, 0 when an image is as far from its changed self as from the others.
    - ``equivariance``: :func:`~selfsup.functional.diagnostics.orthogonal_equivariance` with the same parameters for all
      images, mean over 4 draws: whether features move, where they do, all in one way.

    For ``all`` also ``alignment`` of two views and ``lidar`` of ten, both on views of the whole recipe.

    Args:
        backbone: The network.
        splits: The parts of a source. Images of the hold-out are used, or training images where there is none.
        config: ``invariance_images`` and ``batch_size``.
        epoch: Of the training run, for the record.
        seed: Of the augmentations.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: Fewer than three images, or a network that gives all images the same features.
    """
    start = time.perf_counter()
    part = splits.holdout if len(splits.holdout) >= 3 else splits.train
    images = _evenly(part, config.invariance_images)
    if len(images) < 3:
        raise UserError("eval.invariance_images: invariance needs at least 3 images; give it more.")
    name = "simclr_small" if images.image_size <= SMALL_IMAGE else "simclr"
    recipe = RECIPES[name][0][0]
    channels = input_channels(backbone, images)
    tried = operations(recipe, images.channels)
    shared = {operation: 1 if operation in WITHOUT_CHOICE else SHARED_DRAWS for operation in tried}
    passes = 1 + sum(1 + draws for draws in shared.values()) + LIDAR_VIEWS
    normalization = getattr(backbone, "normalization", None) or images.normalization
    records: list[Record] = []
    decoded = list(eval_batches(images, config.batch_size, workers))  # once, for all the passes
    with (
        frozen(backbone, device) as (where, dtype),
        tqdm(total=passes * len(images), desc="invariance", unit="image", disable=not progress) as bar,
    ):

        def encode(view: ViewRecipe, draw: int, together: bool = False) -> Tensor:
            generator = ViewGenerator([view], [images.image_size], normalization)
            features = []
            for batch in decoded:
                source = batch.image.to(where)
                if source.shape[1] == 1 and channels == 3:
                    source = source.expand(-1, 3, -1, -1)
                # images of one index get the same parameters
                index = torch.zeros_like(batch.index) if together else batch.index
                changed = generator(source, seed=fold_in(seed, draw), index=index)[0].image
                features.append(backbone(changed.to(dtype, memory_format=torch.channels_last)).float())
                bar.update(len(source))
            found = torch.cat(features)
            check_finite(found, f"features of augmented images of '{images.name}'")
            return found

        still = encode(unchanged(recipe), 0)
        if _cosines(still, still)[1] > 1 - 1e-5:
            raise UserError("checkpoint: the network gives all images the same features; it has collapsed.")
        for operation, view in tried.items():
            own, other = _cosines(still, encode(view, 0))
            moved = [orthogonal_equivariance(still, encode(view, draw, True)) for draw in range(shared[operation])]
            values = {
                "cosine": own,
                "invariance": (own - other) / (1 - other),
                "equivariance": torch.stack(moved).mean().item(),
            }
            records += [{"operation": operation, "metric": metric, "value": v} for metric, v in values.items()]
        views = torch.stack([encode(recipe, 1 + draw) for draw in range(LIDAR_VIEWS)], 1)
        whole = {"alignment": alignment(views[:, 0], views[:, 1]), "lidar": lidar(views)}
        records += [{"operation": "all", "metric": metric, "value": v.item()} for metric, v in whole.items()]
    split = "holdout" if part is splits.holdout else "train"
    common = _common(images, epoch, seed, start) | {"protocol": "invariance", "split": split, "recipe": name}
    common |= {"images": len(images), "dim": still.shape[1]}
    return [record | common for record in records]


def attention_obstacle(backbone: nn.Module | None) -> str | None:
    """Say why there is no attention to look at, or None when there is."""
    network = getattr(backbone, "network", backbone)
    if not isinstance(network, VisionTransformer):
        return "the network is no vision transformer of timm"
    if not all(isinstance(getattr(block, "attn", None), Attention) for block in network.blocks):
        return "its blocks have an attention of another kind than timm's plain one"
    rows, columns = network.patch_embed.grid_size
    return None if rows == columns else f"its patches lie on a grid of {rows} × {columns}, which is not square"


def evaluate_attention(
    backbone: nn.Module,
    splits: Splits,
    config: EvalConfig,
    *,
    epoch: int | None = None,
    seed: int | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> list[Record]:
    """Return ``attention`` records for every block of a vision transformer.

    ``attention_distance`` in pixels, ``attention_nmi`` (both among patches, means over images and heads, with
    ``per_head``) and ``high_frequency``, the relative log amplitude of the block's output at the highest frequency,
    with the whole curve as ``amplitude``; see :mod:`selfsup.functional.attention`.

    Args:
        backbone: A timm ``VisionTransformer``, bare or in a ``Backbone``.
        splits: The parts of a source; at most 256 training images are used, spaced evenly.
        config: Unused but for ``batch_size``, which can make the batches smaller.
        epoch, seed: Of the training run, for the record.
        workers, device, progress: As ``extract_features``.

    Raises:
        UserError: The network is another kind.
    """
    obstacle = attention_obstacle(backbone)
    if obstacle is not None:
        raise UserError(f"backbone: there is no attention to measure, as {obstacle}; choose a ViT.")
    start = time.perf_counter()
    network: Any = getattr(backbone, "network", backbone)
    images = _evenly(splits.train, ATTENTION_IMAGES)
    channels = input_channels(backbone, images)
    normalization = getattr(backbone, "normalization", None) or images.normalization
    prefix, side = int(network.num_prefix_tokens), int(network.patch_embed.grid_size[0])
    pixels = float(network.patch_embed.patch_size[0])
    distances: list[list[Tensor]] = [[] for _ in network.blocks]
    shares: list[list[Tensor]] = [[] for _ in network.blocks]
    amplitudes: list[list[Tensor]] = [[] for _ in network.blocks]

    def before_attention(depth: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps = patch_attention(attention_of(module, inputs[0]), prefix)
            distances[depth].append(attention_distance(maps, pixels).cpu())
            shares[depth].append(attention_nmi(maps).cpu())

        return hook

    def after_block(depth: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            tokens = output[:, prefix:].transpose(1, 2).reshape(len(output), -1, side, side)
            amplitudes[depth].append(fourier_log_amplitude(tokens).cpu())

        return hook

    handles = [block.attn.register_forward_pre_hook(before_attention(d)) for d, block in enumerate(network.blocks)]
    handles += [block.register_forward_hook(after_block(d)) for d, block in enumerate(network.blocks)]
    try:
        with (
            frozen(backbone, device) as (where, dtype),
            tqdm(total=len(images), desc="attention", unit="image", disable=not progress) as bar,
        ):
            for batch in eval_batches(images, min(config.batch_size, ATTENTION_BATCH), workers):
                backbone(prepare_images(batch.image.to(where), images.image_size, channels, normalization).to(dtype))
                bar.update(len(batch.index))
    finally:
        for handle in handles:
            handle.remove()
    common = _common(images, epoch, seed, start) | {"protocol": "attention", "split": "train", "images": len(images)}
    records: list[Record] = []
    for depth in range(len(network.blocks)):
        place = common | {"layer": f"blocks.{depth}", "depth": depth}
        for metric, found in (("attention_distance", distances), ("attention_nmi", shares)):
            heads = torch.cat(found[depth]).mean(0)
            records.append(place | {"metric": metric, "value": heads.mean().item(), "per_head": heads.tolist()})
        curve = torch.cat(amplitudes[depth]).mean(0)
        records.append(place | {"metric": "high_frequency", "value": curve[-1].item(), "amplitude": curve.tolist()})
    return records


def attention_of(module: nn.Module, tokens: Tensor) -> Tensor:
    """Return the attention ``[B,h,T,T]`` that timm's ``Attention`` gives to tokens ``[B,T,D]``.

    timm computes it inside a fused kernel that does not return it.
    """
    plain: Any = module
    projected: Tensor = plain.qkv(tokens)
    query, key, _ = projected.view(*tokens.shape[:2], 3, plain.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores: Tensor = (plain.q_norm(query) * plain.scale) @ plain.k_norm(key).transpose(2, 3)
    return scores.softmax(3)


@dataclass(frozen=True)
class CkaTable:
    """Linear CKA of every pair of representations.

    Attributes:
        names: Of the representations, a run or ``run: layer``.
        values: float ``[R,R]``, symmetric with ones on the diagonal.
        images: Number of images it is computed on.
    """

    names: tuple[str, ...]
    values: Tensor
    images: int

    def __str__(self) -> str:
        wide = max(map(len, self.names))
        lines = [f"{'':{wide}s}  " + "  ".join(f"{number + 1:5d}" for number in range(len(self.names)))]
        for number, (name, row) in enumerate(zip(self.names, self.values.tolist(), strict=True)):
            lines.append(f"{name:{wide}s}  " + "  ".join(f"{value:5.2f}" for value in row) + f"   {number + 1}")
        return "\n".join(lines)

    def save(self, folder: str | Path) -> None:
        """Write ``cka.csv`` and ``cka.png``."""
        from selfsup.eval.diagnostic_figures import cka_picture

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "cka.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["", *self.names])
            writer.writerows([name, *row] for name, row in zip(self.names, self.values.tolist(), strict=True))
        cka_picture(self, folder / "cka.png")


def cka(
    backbones: Mapping[str, nn.Module],
    dataset: ImageDataset,
    *,
    layers: bool = False,
    images: int = LAYER_BANK,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> CkaTable:
    """Compare networks by what they make of the same images: linear CKA without bias, see ``linear_cka``.

    Args:
        backbones: Networks by name.
        dataset: Images; labels are not read.
        layers: Compare every stage of every network, not the pooled features alone.
        images: Most images, spaced evenly over the dataset.
        batch_size, workers, device, progress: As ``extract_features``.

    Raises:
        UserError: Fewer than two networks or four images, or features that do not vary.
    """
    if len(backbones) < 2:
        raise UserError("cka: name at least two runs.")
    part = _evenly(dataset, images)
    if len(part) < 4:
        raise UserError(f"data: CKA needs at least 4 images and there are {len(part)}.")
    found: dict[str, Tensor] = {}
    for name, backbone in backbones.items():
        features = layer_features(
            backbone, part, batch_size=batch_size, workers=workers, device=device, progress=progress
        )
        if layers:
            found |= {f"{name}: {layer}": rows.features for layer, rows in features.items()}
        else:
            found[name] = features["backbone"].features
    names = tuple(found)
    values = torch.eye(len(names))
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            try:
                values[i, j] = values[j, i] = linear_cka(found[first], found[second], unbiased=True)
            except ValueError as error:
                raise UserError(f"cka: {first} and {second}: {error}; a network may have collapsed.") from error
    return CkaTable(names, values, len(part))


def stages(backbone: nn.Module) -> dict[str, tuple[nn.Module, int | None]]:
    """Return the stages of a network by name, in order, each with the number of its channels where that is known."""
    network: nn.Module = getattr(backbone, "network", backbone)
    modules = dict(network.named_modules())
    information: Any = getattr(network, "feature_info", None) or ()
    known = {
        str(entry["module"]): (modules[str(entry["module"])], int(entry["num_chs"]))
        for entry in (information if isinstance(information, Sequence) else ())
        if str(entry.get("module")) in modules
    }
    if known:
        return dict(known)
    path, children = "", dict(network.named_children())
    while len(children) == 1 and any(True for _ in next(iter(children.values())).children()):
        name, inside = next(iter(children.items()))
        path, children = f"{path}{name}.", dict(inside.named_children())
    activations = {name: module for name, module in children.items() if isinstance(module, ACTIVATIONS)}
    return {f"{path}{name}": (module, None) for name, module in (activations or children).items()}


@contextmanager
def _watch(backbone: nn.Module, head: nn.Module | None) -> Iterator[dict[str, Tensor]]:
    """Fill a dictionary with the pooled output of every stage and every step of the head at each forward pass."""
    network: nn.Module = getattr(backbone, "network", backbone)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    seen: dict[str, Tensor] = {}

    def keep(name: str, channels: int | None) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and 2 <= output.ndim <= 4:
                seen[name] = _pooled(output, channels, prefix)

        return hook

    handles = [module.register_forward_hook(keep(name, wide)) for name, (module, wide) in stages(backbone).items()]
    if head is not None:
        for number, module in enumerate(_head_steps(head), start=1):
            handles.append(module.register_forward_hook(keep(f"head.{number}", None)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _head_steps(head: nn.Module) -> list[nn.Module]:
    """Return the hidden activations of a head; what follows the last of them is its embedding."""
    return [module for module in head.children() if isinstance(module, ACTIVATIONS)]


def _pooled(output: Tensor, channels: int | None, prefix: int) -> Tensor:
    if output.ndim == 4:
        innermost = channels is not None and output.shape[1] != channels and output.shape[3] == channels
        return output.mean((1, 2) if innermost else (2, 3))
    if output.ndim == 3:
        return output[:, prefix:].mean(1)
    # a copy, as an activation that works in place may follow
    return output.clone()


def _cosines(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the mean cosine of the same rows and that of different rows."""
    u, v = F.normalize(first, dim=1).double(), F.normalize(second, dim=1).double()
    same = (u * v).sum()
    return (same / len(u)).item(), ((u.sum(0) @ v.sum(0) - same) / (len(u) * (len(u) - 1))).item()


def _evenly(dataset: ImageDataset, most: int) -> ImageDataset:
    """Return at most so many images, spaced evenly."""
    if len(dataset) <= most:
        return dataset
    return dataset.subset(torch.linspace(0, len(dataset) - 1, most).round().long())


def _unseen(splits: Splits) -> tuple[str, ImageDataset]:
    """Return the hold-out, or the test images where there is none: a layer may be chosen by what is found."""
    if len(splits.holdout):
        return "holdout", splits.holdout
    if splits.test is not None:
        return "test", splits.test
    raise UserError("data.holdout: the source has no test images; set aside some of the training images (0.1).")


def _common(dataset: ImageDataset, epoch: int | None, seed: int | None, start: float) -> Record:
    size = dataset.image_size
    return {
        "data": dataset.name,
        "image_size": size,
        "crop": f"short side {size}, centre crop {size}",
        "epoch": epoch,
        "seed": seed,
        "seconds": round(time.perf_counter() - start, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
