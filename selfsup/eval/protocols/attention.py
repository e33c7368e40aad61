"""What the blocks of a vision transformer attend to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from selfsup.data.base import ImageDataset
from selfsup.errors import UserError
from selfsup.eval.encoder import Encoder
from selfsup.eval.features import positions_of
from selfsup.eval.pixels import IGNORED, masks_of
from selfsup.eval.record import FRACTION, Record
from selfsup.eval.registry import protocol
from selfsup.eval.subject import Subject, evenly
from selfsup.functional.attention import (
    attention_distance,
    attention_iou,
    attention_nmi,
    commonest_offset,
    fourier_log_amplitude,
    patch_attention,
)

IMAGES, BATCH = 256, 16  # a batch holds images × heads × tokens² numbers


@protocol("attention", needs=("network",), shown=("layer",))
def evaluate(subject: Subject, settings: None) -> Iterator[Record]:
    """Attention distance, attention NMI and high frequencies of every block of a vision transformer.

    ``attention_distance`` in pixels, ``attention_nmi`` (both among patches, means over images and heads, with
    ``per_head``) and ``high_frequency``, the relative log amplitude of the block's output at the highest frequency,
    with the whole curve as ``amplitude``; see :mod:`selfsup.functional.attention`. ``offset_share`` is how often the
    patch with the most attention lies at the head's commonest ``offsets`` (down, right) from the query: the largest of
    the heads, near 1 for one that moves features by a constant step. Where there are masks and a class token,
    ``object_iou`` is the intersection over union of the objects and the patches that hold 60 % of its attention, of
    the best head. At most 256 training images are used, spaced evenly.
    """
    backbone = subject.network
    obstacle = attention_obstacle(backbone)
    if obstacle is not None:
        raise UserError(f"backbone: there is no attention to measure, as {obstacle}; choose a ViT.")
    network: Any = getattr(backbone, "network", backbone)
    images = evenly(subject.splits.train, IMAGES)
    prefix, side = int(network.num_prefix_tokens), int(network.patch_embed.grid_size[0])
    has_class_token = getattr(network, "cls_token", None) is not None
    pixels = float(network.patch_embed.patch_size[0])
    distances: list[list[Tensor]] = [[] for _ in network.blocks]
    shares: list[list[Tensor]] = [[] for _ in network.blocks]
    amplitudes: list[list[Tensor]] = [[] for _ in network.blocks]
    nearest: list[list[Tensor]] = [[] for _ in network.blocks]
    ious: list[list[Tensor]] = [[] for _ in network.blocks]
    objects: list[Tensor] = []  # of the batch that passes

    def before_attention(depth: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            whole = attention_of(module, inputs[0])
            maps = patch_attention(whole, prefix)
            nearest[depth].append(maps.argmax(3).cpu())
            if objects:
                ious[depth].append(attention_iou(whole[:, :, 0, prefix:], objects[0].to(whole.device)).cpu())
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
    encoder = replace(subject.encoder, batch_size=min(subject.encoder.batch_size, BATCH))
    try:
        with encoder.passes(images, "attention") as batches:
            for prepared, batch in batches:
                objects[:] = _objects(encoder, images, batch.index, side) if has_class_token else []
                backbone(prepared)
    finally:
        for handle in handles:
            handle.remove()
    for depth in range(len(network.blocks)):
        how = {"layer": f"blocks.{depth}", "depth": depth, "images": len(images)}
        for metric, found in (("attention_distance", distances), ("attention_nmi", shares)):
            heads = torch.cat(found[depth]).mean(0)
            own = {"per_head": heads.tolist()}
            yield Record(split="train", metric=metric, value=heads.mean().item(), how=how, found=own)
        offsets, often = commonest_offset(torch.cat(nearest[depth]))
        own = {"per_head": often.tolist(), "offsets": offsets.tolist()}
        yield Record(split="train", metric="offset_share", value=often.max().item(), unit=FRACTION, how=how, found=own)
        if ious[depth] and torch.cat(ious[depth]).isfinite().any():
            heads = torch.cat(ious[depth]).nanmean(0)
            own = {"per_head": heads.tolist()}
            yield Record(split="train", metric="object_iou", value=heads.max().item(), how=how, found=own)
        curve = torch.cat(amplitudes[depth]).mean(0)
        own = {"amplitude": curve.tolist()}
        yield Record(split="train", metric="high_frequency", value=curve[-1].item(), how=how, found=own)


def _objects(encoder: Encoder, images: ImageDataset, index: Tensor, side: int) -> list[Tensor]:
    """Return which patches show more object than background, bool ``[B,P]``, as a list of one; empty without masks."""
    if images.read_masks(torch.arange(0)) is None:
        return []
    masks = masks_of(encoder, images, positions_of(images, index))
    inside = (masks > 0) & (masks != IGNORED)
    return [F.adaptive_avg_pool2d(inside[:, None].float(), side).flatten(1) > 0.5]


def attention_obstacle(backbone: nn.Module | None) -> str | None:
    """Say why there is no attention to look at, or None when there is."""
    network = getattr(backbone, "network", backbone)
    if not isinstance(network, VisionTransformer):
        return "the network is not a vision transformer of timm"
    if not all(isinstance(getattr(block, "attn", None), Attention) for block in network.blocks):
        return "its blocks have an attention of another kind than timm's plain one"
    rows, columns = network.patch_embed.grid_size
    return None if rows == columns else f"its patches lie on a grid of {rows} × {columns}, which is not square"


def attention_of(module: nn.Module, tokens: Tensor) -> Tensor:
    """Return the attention ``[B,h,T,T]`` that timm's ``Attention`` gives to tokens ``[B,T,D]``.

    timm computes it inside a fused kernel that does not return it.
    """
    plain: Any = module
    projected: Tensor = plain.qkv(tokens)
    query, key, _ = projected.view(*tokens.shape[:2], 3, plain.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores: Tensor = (plain.q_norm(query) * plain.scale) @ plain.k_norm(key).transpose(2, 3)
    return scores.softmax(3)
