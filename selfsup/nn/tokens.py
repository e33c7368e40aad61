"""The tokens of a vision transformer: some replaced by a mask token, some left out, and those of any of its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import PatchEmbed, apply_keep_indices_nlc, build_sincos2d_pos_embed
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfsup.errors import UserError
from selfsup.types import Size, height_width

#: Families of timm's transformers whose way from image to tokens is known here; Eva's have rotary positions.
FAMILIES = (VisionTransformer, Eva)
#: Those that attend within windows and merge tokens from stage to stage: patches can be replaced, and not left out.
WINDOWED = (SwinTransformer, SwinTransformerV2)


class Tokens(NamedTuple):
    """What a transformer makes of images, token by token.

    Attributes:
        prefix: ``[N,R,D]``, the class token, if there is one, then the registers.
        patches: ``[N,L,D]``, row by row of the grid; with ``keep``, ``[N,K,D]`` in the order of its indices. Of a Swin
            transformer they are those of the last stage, fewer than there are patches.
        layers: The same after each of the blocks that were asked for.
    """

    prefix: Tensor
    patches: Tensor
    layers: tuple[Tokens, ...] = ()


class Seams(NamedTuple):
    """Where tokens are exchanged or left out, and what is seen of the blocks; see ``Backbone.forward_tokens``."""

    mask_token: Tensor | None
    layers: Sequence[int]
    normalize_layers: bool


class MaskToken(nn.Module):
    """A learned token for places that a network may not see; it belongs to the student alone.

    Args:
        dim: Width of the tokens, ``Backbone.dim``.
        std: Standard deviation of its random start.
    """

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(1, 1, dim))

    def forward(self) -> Tensor:
        """Return the token ``[1,1,D]``."""
        return self.weight.clone()  # sharded training takes the weight itself away after the call


def token_grid(network: nn.Module, size: Size, windowed: bool = False) -> tuple[int, int]:
    """Return the rows and columns of the patches of images of this size.

    Args:
        network: Timm's, ``Backbone.network``.
        size: Side of the images in pixels, or (height, width).
        windowed: As for :func:`check_tokens`.

    Raises:
        UserError: The network is no transformer whose tokens are known here.
    """
    transformer: Any = check_tokens(network, windowed)
    rows, columns = transformer.patch_embed.dynamic_feat_size(height_width(size))
    return int(rows), int(columns)


def token_stride(network: nn.Module) -> int:
    """Return the side in pixels of what one token at the end of a network stands for."""
    transformer: Any = check_tokens(network, windowed=True)
    stages = len(transformer.layers) if isinstance(network, WINDOWED) else 1
    return int(transformer.patch_embed.patch_size[0]) << (stages - 1)  # each stage halves the sides


def check_tokens(network: nn.Module, windowed: bool = False) -> Any:
    """Return the network, whose tokens can be replaced, left out and looked at.

    Args:
        network: Timm's, ``Backbone.network``.
        windowed: Whether it may be a Swin transformer, whose patches can be replaced alone.

    Raises:
        UserError: It is another kind of network, ends without its norm, or drops patches by itself.
    """
    transformer: Any = network
    forward = getattr(type(network), "forward_features", None)
    open_patches = isinstance(getattr(transformer, "patch_embed", None), PatchEmbed)  # others see their neighbours
    if windowed and open_patches and forward in [family.forward_features for family in WINDOWED]:
        return transformer
    if not open_patches or forward not in [family.forward_features for family in FAMILIES]:
        kinds, others = ("a plain vision transformer or a Swin", ", swin_…") if windowed else ("a plain vision", "")
        raise UserError(
            f"backbone: this method needs the tokens of {kinds} transformer, and {type(network).__name__} is "
            f"none; take backbone=vit_small, or another of timm's vit_…, deit_…, eva02_…{others} or …_dinov3 by "
            "backbone.name."
        )
    if isinstance(transformer.norm, nn.Identity) and not isinstance(transformer.fc_norm, nn.Identity):
        word = "use_fc_norm" if isinstance(transformer, Eva) else "fc_norm"
        raise UserError(
            "backbone.kwargs: this network has its last norm behind the pooling (global_pool=avg), so that its tokens "
            f"end without one; add backbone.kwargs.{word}=false to have it before."
        )
    if isinstance(transformer.patch_drop, nn.Module) and not isinstance(transformer.patch_drop, nn.Identity):
        raise UserError(
            "backbone.kwargs.patch_drop_rate leaves tokens out by itself, and this method must know which; leave it "
            "out of backbone.kwargs."
        )
    return transformer


def fix_positions(network: nn.Module) -> None:
    """Give a transformer sine-cosine positions that are not learned, zero at class token and registers.

    Channels are in timm's order, [sin row, sin column, cos row, cos column].

    Raises:
        UserError: A width that is no multiple of four, or a network without one position for each of its patches.

    Source:
        He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, as in MoCo v3.
    """
    learned, embedding = getattr(network, "pos_embed", None), getattr(network, "patch_embed", None)
    if not isinstance(learned, nn.Parameter) or not isinstance(embedding, PatchEmbed):
        raise UserError(
            f"backbone.fixed_positions: {type(network).__name__} has no positions to fix; leave it out, or "
            "take backbone=vit_small."
        )
    places = sincos_positions(embedding.grid_size, learned.shape[-1])
    with torch.no_grad():
        learned.zero_()
        learned[0, learned.shape[1] - len(places) :] = places.to(learned)
    learned.requires_grad_(False)


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed sine-cosine positions, float32 ``[rows · columns, width]``.

    Raises:
        UserError: A width that is no multiple of four.
    """
    if width % 4:
        raise UserError(f"Sine-cosine positions need a width that is a multiple of 4, not {width}.")
    found: Tensor = build_sincos2d_pos_embed(list(grid), dim=width)
    return found


def sequences(
    network: Any, seams: Seams, images: Tensor, mask: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the tokens ``[N,R+K,D]`` at the end of a network, then those after each of the blocks asked for."""
    x = network.patch_embed(images)
    if mask is not None:
        x = _replaced(x, mask, seams.mask_token)
    if isinstance(network, WINDOWED):
        return (network.norm(network.layers(x)).flatten(1, 2),)
    embedded = network._pos_embed(x)
    x, rotary = embedded if isinstance(embedded, tuple) else (embedded, None)
    if keep is not None:
        x, rotary = _kept(network, x, rotary, keep)
    x = network.norm_pre(x)
    count = len(network.blocks)
    if any(not -count <= layer < count for layer in seams.layers):
        raise ValueError(f"layers {list(seams.layers)} must lie between {-count} and {count - 1}, of {count} blocks")
    wanted = [layer % count for layer in seams.layers]
    found: dict[int, Tensor] = {}
    for number, block in enumerate(network.blocks):
        step: Callable[[Tensor], Tensor] = block
        if rotary is not None:
            step = partial(block, rope=rotary[number] if getattr(network, "rope_mixed", False) else rotary)
        x = checkpoint(step, x, use_reentrant=False) if network.grad_checkpointing else step(x)
        if number in wanted:
            found[number] = network.norm(x) if seams.normalize_layers else x
    return (network.norm(x), *(found[number] for number in wanted))


def _replaced(x: Tensor, mask: Tensor, mask_token: Tensor | None) -> Tensor:
    """Return embedded patches, ``[N,L,D]`` or ``[N,rows,columns,D]``, with the mask token where the mask is true."""
    if mask_token is None:
        raise ValueError("mask needs a mask_token")
    places = x.shape[:-1]
    if mask.dtype != torch.bool or mask.shape != (len(x), places[1:].numel()):
        raise ValueError(
            f"mask must be bool {[len(x), places[1:].numel()]}, one for each patch, not {mask.dtype} {list(mask.shape)}"
        )
    token = mask_token.to(x.dtype).reshape(-1)  # under autocast the patches come in half precision
    return torch.where(mask.reshape(*places, 1), token, x)


def _kept(network: Any, x: Tensor, rotary: Tensor | None, keep: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the prefix and the kept patches of ``[N,R+L,D]``, and their rotary positions."""
    if keep.dtype != torch.int64 or keep.ndim != 2 or len(keep) != len(x):
        raise ValueError(f"keep must be int64 [{len(x)},K], not {keep.dtype} {list(keep.shape)}")
    prefix, patches = x[:, : network.num_prefix_tokens], x[:, network.num_prefix_tokens :]
    x = torch.cat([prefix, patches.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))], dim=1)
    if rotary is None:
        return x, None
    own = apply_keep_indices_nlc(x, rotary, keep)  # [N,(depth,heads,)K,…]
    return x, own.transpose(0, 1) if getattr(network, "rope_mixed", False) else own.unsqueeze(1)
