"""Object discovery: LOST and TokenCut find the object of an image in frozen features, and masks say how well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import check_finite, positions_of
from selfsup.eval.pixels import IGNORED, masks_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.eval.tokens import transformer_of
from selfsup.functional.objects import lost, token_cut
from selfsup.nn.backbone import Backbone
from selfsup.nn.tokens import token_grid
from selfsup.settings import setting
from selfsup.unit_range import shown_channels

METHODS = ("lost", "token_cut")
SHOWN = 6  # images in the figure
HIT = 0.5  # overlap of boxes from which an object counts as found


@dataclass
class ObjectDiscoverySettings:
    """How objects are looked for.

    Attributes:
        methods: Some of ``lost`` and ``token_cut``.
        candidates: Patches of the lowest degree that may vote in LOST; the paper's 100 are of some 600.
        threshold: Of the cosine, from which TokenCut takes two patches for alike.
        images: Most scored images, spaced evenly.
        batch_size: Images in a forward pass.
    """

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    candidates: int = setting(100, least=1)
    threshold: float = setting(0.2)
    images: int = setting(1000, least=1)
    batch_size: int = setting(32, least=1)


@protocol("object_discovery", ObjectDiscoverySettings, needs=("network", "masks"), shown=("method",))
def evaluate(subject: Subject, settings: ObjectDiscoverySettings) -> Iterator[Record]:
    """How often LOST and TokenCut find an object of the image in the keys of a vision transformer's last block.

    ``corloc`` is the share of images in which the box of what was found has an intersection over union of at least 0.5
    with that of an object; ``mask_iou`` the mean over images of the intersection over union with the object that fits
    best, in pixels. Nothing is trained, and one object an image is looked for. Objects are the connected parts of each
    class of the masks, so that two of a class that touch are one; images without any are left out. ``whole_image`` is
    what taking all of each image for the object would give: a number near it says nothing.
    """
    unknown = [name for name in settings.methods if name not in METHODS]
    if unknown or not settings.methods:
        which = f"there is no '{unknown[0]}'" if unknown else "none is named"
        raise UserError(f"eval.object_discovery.methods: {which}; give some of {', '.join(METHODS)}.")
    backbone = transformer_of(subject.network)
    split, scored = subject.scored
    images = evenly(scored, settings.images)
    encoder = replace(subject.encoder, batch_size=settings.batch_size)
    grid = token_grid(backbone.network, images.image_size)
    ways: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
        "lost": (lost, {"candidates": settings.candidates}),
        "token_cut": (token_cut, {"threshold": settings.threshold}),
    }
    keys, images = last_keys(encoder, backbone, images)
    masks = masks_of(encoder, images, torch.arange(len(images)))
    known, truth = masks != IGNORED, [objects_of(mask) for mask in masks]
    seen = [number for number, objects in enumerate(truth) if len(objects)]
    if not seen:
        raise UserError(f"object_discovery: no mask of '{images.name}' {split} has an object; its masks are empty.")
    found = {}
    for name in settings.methods:
        way, own = ways[name]
        parts = torch.split(keys, settings.batch_size)
        found[name] = _large(torch.cat([way(part.float(), grid, **own) for part in parts]), known.shape[1:])
        how = {"method": name, **own, "features": "keys of the last block", "map_size": list(grid)}
        how |= {"images": len(seen), "dim": keys.shape[2]}
        pairs = [overlaps(found[name][n] & known[n], truth[n]) for n in seen]
        plain = [overlaps(known[n], truth[n]) for n in seen]
        for metric, value, whole in zip(("corloc", "mask_iou"), _means(pairs), _means(plain), strict=True):
            more = {"whole_image": whole}
            yield Record(split=split, metric=metric, value=value, unit=FRACTION, how=how, found=more)
    chosen = torch.tensor(seen)[torch.linspace(0, len(seen) - 1, min(SHOWN, len(seen))).round().long()]

    def shown() -> FoundObjects:
        pictures = shown_channels(encoder.prepared(images.read(chosen), images.image_size, images.channels))
        objects = [truth[number].any(0) for number in chosen.tolist()]
        return FoundObjects(pictures, torch.stack(objects), {name: masks[chosen] for name, masks in found.items()})

    subject.shown["object_discovery"] = shown


@dataclass(frozen=True)
class FoundObjects:
    """Images with their objects and what was taken for one.

    Attributes:
        images: float ``[N,C,H,W]`` in [0, 1].
        truth: bool ``[N,H,W]``, the pixels of any object.
        found: bool ``[N,H,W]`` by method.
    """

    images: Tensor
    truth: Tensor
    found: dict[str, Tensor]


def last_keys(encoder: Encoder, backbone: Backbone, images: ImageDataset) -> tuple[Tensor, ImageDataset]:
    """Return the keys of the patches in the last block, float32 ``[N,L,D]``, and the images that they are of.

    Raises:
        UserError: Its attention is of another kind than timm's plain one, or keys are not finite.
    """
    network: Any = backbone.network
    attention: Any = getattr(network.blocks[-1], "attn", None)
    if not isinstance(attention, Attention):
        raise UserError(
            f"object_discovery: the blocks of {type(network).__name__} have an attention of another kind than timm's "
            "plain one, whose keys are not known here; take a vit_… or deit_…."
        )
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        count, length, width = output.shape[0], output.shape[1], output.shape[2] // 3
        heads = output[..., width : 2 * width].view(count, length, attention.num_heads, -1).transpose(1, 2)
        keys = attention.k_norm(heads).transpose(1, 2).flatten(2)
        kept.append(keys[:, network.num_prefix_tokens :].float().cpu())

    handle = attention.qkv.register_forward_hook(keep)
    index = []
    try:
        with encoder.passes(images, "keys of the last block") as batches:
            for prepared, batch in batches:
                backbone(prepared)
                index.append(batch.index)
    finally:
        handle.remove()
    keys = torch.cat(kept)
    check_finite(keys.flatten(1), f"keys of '{images.name}'")
    return keys, images.subset(positions_of(images, torch.cat(index)))


def objects_of(mask: Tensor) -> Tensor:
    """Return the connected parts of every class, bool ``[K,H,W]``, of a mask uint8 ``[H,W]``; they touch by corners."""
    found = []
    for value in torch.unique(mask).tolist():
        if value not in (0, IGNORED):
            parts, count = ndimage.label((mask == value).numpy(), structure=np.ones((3, 3)))
            found += [torch.from_numpy(parts == number) for number in range(1, count + 1)]
    return torch.stack(found) if found else torch.zeros(0, *mask.shape, dtype=torch.bool)


def overlaps(found: Tensor, objects: Tensor) -> tuple[float, float]:
    """Return the largest intersection over union with any object: of the boxes, and of the pixels.

    Args:
        found: bool ``[H,W]``; nothing gives 0.
        objects: bool ``[K,H,W]``.
    """
    if not bool(found.any()):
        return 0.0, 0.0
    box = _filled(found)
    boxes = torch.stack([_filled(one) for one in objects])
    return tuple(
        float(((one & others).sum((1, 2)).double() / (one | others).sum((1, 2))).max())
        for one, others in ((box, boxes), (found, objects))
    )  # type: ignore[return-value]


def _filled(mask: Tensor) -> Tensor:
    """Return the box of a mask that is not empty, as a mask."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = torch.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def _large(patches: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(patches[:, None].float(), size, mode="nearest-exact")[:, 0] > 0.5


def _means(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the share of boxes that hit, and the mean overlap in pixels."""
    return sum(box >= HIT for box, _ in pairs) / len(pairs), sum(pixels for _, pixels in pairs) / len(pairs)
