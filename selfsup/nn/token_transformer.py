"""A small transformer from the tokens that a network saw to those that it did not: decoders and predictors."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.tokens import sincos_positions

MODES = ("fill", "query", "cross")
_norm = partial(nn.LayerNorm, eps=1e-6)


class CrossBlock(nn.Module):
    """Pre-norm attention of queries to a context, which stays as it is, then an MLP; queries do not see each other.

    Args:
        width: Channels of queries and context.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return the queries ``[N,Q,W]`` after they have looked at ``[N,K,W]``."""
        query = self.query(self.norm1(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.proj(seen)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TokenTransformer(nn.Module):
    """A pre-norm transformer of its own width over tokens of a grid, with fixed sine-cosine positions and a mask token.

    ``fill`` lays the tokens that are there on their places, a mask token on every other, and returns all places (the
    decoder of MAE). ``query`` puts a mask token for each place that is asked for behind the tokens that are there, each
    block of places by itself, and returns these (the predictor of I-JEPA). In ``cross`` the places asked for look at
    the tokens, and neither at each other nor the tokens at them (the predictor of CAPI, which has rotary positions).

    Weights start as in MAE: linear layers uniform by Xavier and Glorot with biases 0, the mask token normal with 0.02.

    Args:
        in_dim, out_dim: Channels of the tokens that are given, and of what is returned.
        grid: Rows and columns of the places.
        width: Channels inside, a multiple of four and of ``heads``.
        depth: Blocks.
        heads: Attention heads.
        mode: One of ``MODES``.

    Raises:
        UserError: A width that does not fit.
        ValueError: No such mode.
    """

    def __init__(
        self, in_dim: int, out_dim: int, grid: tuple[int, int], width: int, depth: int, heads: int, mode: str = "fill"
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if width % heads:
            raise UserError(f"A transformer of width {width} cannot have {heads} heads; take a divisor of the width.")
        self.mode = mode
        self.embed = nn.Linear(in_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        blocks = (
            CrossBlock(width, heads) if mode == "cross" else Block(width, heads, qkv_bias=True, norm_layer=_norm)
            for _ in range(depth)
        )
        self.blocks = nn.ModuleList(blocks)
        self.norm = _norm(width)
        self.head = nn.Linear(width, out_dim)
        self.apply(_initialise)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, patches: Tensor, keep: Tensor, target: Tensor | None = None, prefix: Tensor | None = None
    ) -> Tensor:
        """Return ``[N,L,out]`` at all places in the mode ``fill``, else ``[N,…,out]`` at those of ``target``.

        Args:
            patches: ``[N,K,in]``, the tokens that are there.
            keep: int64 ``[N,K]``, their places.
            target: int64 ``[N,Q]``, places that are asked for; in the mode ``query`` also ``[N,T,Q]``, ``T`` blocks,
                each of which is a sequence of its own.
            prefix: ``[N,R,in]``, tokens without a place, that are seen and not returned.

        Raises:
            ValueError: ``target`` where all places are filled, or none where places are asked for.
        """
        if (target is None) != (self.mode == "fill"):
            raise ValueError(f"the mode {self.mode} {'needs' if target is None else 'takes no'} target")
        x = self.embed(patches)
        before = x[:, :0] if prefix is None else self.embed(prefix)
        places, token = self.positions.to(x.dtype), self.mask_token.to(x.dtype)
        if target is None:
            filled = token.expand(len(x), len(places), -1).scatter(1, keep[..., None].expand_as(x), x)
            x = self._through(torch.cat([before, filled + places], dim=1))
            return self._out(x[:, before.shape[1] :])
        context = torch.cat([before, x + places[keep]], dim=1)
        queries = token + places[target.flatten(1)]
        if self.mode == "cross":
            for block in self.blocks:
                queries = block(queries, context)
            return self._out(queries)
        blocks = 1 if target.ndim == 2 else target.shape[1]
        queries = queries.reshape(len(x) * blocks, target.shape[-1], -1)
        x = self._through(torch.cat([context.repeat_interleave(blocks, dim=0), queries], dim=1))
        return self._out(x[:, context.shape[1] :]).reshape(*target.shape, -1)

    def _through(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def _out(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(x))
        return out


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
