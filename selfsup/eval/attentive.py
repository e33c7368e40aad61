"""Classifiers that look at all tokens of a frozen network, in the forms that papers report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CapiPool(nn.Module):
    """A classifier that looks at tokens with one query a head: ``Linear(concat_h softmax(q_h K_hᵀ / √d) V_h)``.

    Because the query is the same for all images, ``q_h · W_k x`` is ``(W_kᵀ q_h) · x``: tokens are scored and averaged
    as they are, and only the averages are projected, for a fraction of the arithmetic. The key's bias moves all scores
    of a head alike, so it has no effect and is left out.

    Args:
        width: Channels D of the tokens.
        heads: Attention heads, a divisor of D.
        classes: Number of classes.
        generator: Draws the start: weights and query normal with 0.02, biases zero.

    Source:
        Darcet et al., "Cluster and Predict Latent Patches for Improved Masked Image Modeling", 2025.
    """

    def __init__(self, width: int, heads: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, width))
        self.key = nn.Parameter(torch.empty(width, width))
        self.value, self.linear = nn.Linear(width, width), nn.Linear(width, classes)
        _start(self, generator)

    def scorers(self) -> Tensor:
        """Return what tokens are multiplied with for their scores, ``[h,D]``."""
        width = len(self.key)
        query, key = self._query().view(self.heads, -1, 1), self.key.view(self.heads, -1, width)
        return (query * key).sum(1) / math.sqrt(width // self.heads)

    def forward(self, seen: Tensor) -> Tensor:
        """Return the scores of the classes: tokens as each head averages them, ``[N,h,D]``, to ``[N,C]``."""
        logits: Tensor = self.linear(self._values(seen))
        return logits

    def _query(self) -> Tensor:
        return self.query[0]

    def _values(self, seen: Tensor) -> Tensor:
        """Return ``concat_h V_h``, ``[N,D]``."""
        weight = self.value.weight.view(self.heads, -1, seen.shape[-1])
        return torch.einsum("nhd,hed->nhe", seen, weight).flatten(1) + self.value.bias


class JepaPool(CapiPool):
    """V-JEPA's attentive classifier: the query's projection, a norm before the tokens, residual, MLP, linear layer.

    ``y = q + concat_h softmax(W_q q … )``, ``z = y + MLP(LN(y))``, then the linear layer. The tokens that it is given
    are normalised without weights; its own norm's weights go into key and value. There is no projection behind the
    attention: the authors applied one for a while (787b04a) and took it back (a0517b4).

    Source:
        Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", 2024.
    """

    def __init__(self, width: int, heads: int, classes: int, generator: torch.Generator) -> None:
        super().__init__(width, heads, classes, generator)
        self.to_query = nn.Linear(width, width)
        self.norm1_weight, self.norm1_bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.norm2 = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.to_query, self.fc1, self.fc2):
            _start(layer, generator)
        with torch.no_grad():
            self.fc2.weight.div_(math.sqrt(2))

    def scorers(self) -> Tensor:
        """Return what normalised tokens are multiplied with for their scores, ``[h,D]``."""
        return super().scorers() * self.norm1_weight  # the norm's bias moves all scores of a head alike

    def forward(self, seen: Tensor) -> Tensor:
        """Return the scores of the classes: normalised tokens as each head averages them, to ``[N,C]``."""
        x = self.query + self._values(seen * self.norm1_weight + self.norm1_bias)
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        logits: Tensor = self.linear(x)
        return logits

    def _query(self) -> Tensor:
        projected: Tensor = self.to_query(self.query)
        return projected[0]


@dataclass(frozen=True)
class Published:
    """How a form was trained by its authors.

    Attributes:
        learning_rates, weight_decays: Their grid.
        batch_size: Images in a step.
        scaled: The learning rate is multiplied by the batch over 256.
        warmup: Share of the steps in which the rate rises from 0.
        betas: Of AdamW.
        vectors_decay: Whether one-dimensional weights other than biases decay.
    """

    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    batch_size: int
    scaled: bool
    warmup: float
    betas: tuple[float, float]
    vectors_decay: bool


CAPI_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
#: facebookresearch/capi 1b8c704 and facebookresearch/jepa 51c59d5. CAPI's decays everything but what is named bias.
FORMS = {
    "capi": Published(CAPI_RATES, (5e-4, 1e-3, 5e-2), 128, True, 0.1, (0.9, 0.95), True),
    "v_jepa": Published((1e-3,), (1e-3,), 1024, False, 0.0, (0.9, 0.999), False),
}


#: The classifiers by the names of ``FORMS``, which help texts read without torch.
POOLS = {"capi": CapiPool, "v_jepa": JepaPool}


def all_logits(pools: Sequence[CapiPool], tokens: Tensor) -> Tensor:
    """Return the scores of every classifier: tokens ``[N,L,D]`` to ``[G,N,C]``, in two products for all of them."""
    if isinstance(pools[0], JepaPool):
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
    scorers = torch.cat([pool.scorers() for pool in pools])
    weights = (tokens @ scorers.T).softmax(1)
    seen = weights.transpose(1, 2) @ tokens
    return torch.stack([pool(part) for pool, part in zip(pools, seen.chunk(len(pools), 1), strict=True)])


@torch.no_grad()
def _start(module: nn.Module, generator: torch.Generator) -> None:
    for name, weight in module.named_parameters():
        if "bias" in name:
            weight.zero_()
        else:
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
