"""DenseCL: MoCo v2 once for the image and once for every cell of its feature map.

The cells of the query's map look for their keys among the cells of the key's map, by the cosine of the backbones'
features; a dense head's outputs at matched cells attract, and a second queue of other images' keys repels. So the map,
and not only its mean, learns what goes together. Wang et al., "Dense Contrastive Learning for Self-Supervised Visual
Pre-Training", 2021.

All keys come from the momentum encoder, in shuffled company as in MoCo, and the two key maps return to their order
before they are matched. The dense queue holds one key an image, the normalised mean of the dense head's map. With
``dense_weight=0`` the loss is MoCo v2's.

Deviations: ``bn_groups``, as in MoCo here. The global head's linear layers start as torch starts them, 2.4 times
smaller than the authors' (Kaiming normal, biases at zero); their dense head's start as torch's, as ours do.

Memory: the dense logits are [N·S², queue_size + 1] on each device, see ``dense_info_nce``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from selfsup.distributed import world
from selfsup.functional import dense_info_nce, dense_match, info_nce
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue, groups_of_a_rank
from selfsup.nn import (
    DenseEncoder,
    FeatureQueue,
    MomentumEncoder,
    check_dense,
    dense_head,
    projection_head,
    shuffle,
    split_batch_norm,
    unshuffle,
)
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class DenseCLConfig(MethodConfig):
    """DenseCL's settings, with the paper's defaults.

    Attributes:
        dense_weight: λ, the share of the dense loss; the global loss has the rest.
        dense_warmup_steps: Optimiser steps during which λ is 0: cells match at random before the features mean
            something. The authors' runs have none.
        temperature: τ of both losses.
        queue_size: Number of keys kept in each of the two queues, at least one batch.
        momentum: Share of the old key encoder that a step keeps.
        hidden_dim: Width of the hidden layer of both heads; None is the width of the backbone's feature.
        output_dim: Width of query and key.
        bn_groups: Parts of the whole batch with BatchNorm statistics of their own, see MoCo.
    """

    name: str = "densecl"
    dense_weight: float = setting(0.5, least=0, most=1)
    dense_warmup_steps: int = 0
    temperature: float = setting(0.2, above=0)
    queue_size: int = setting(65536, least=1)
    momentum: float = setting(0.999, least=0, most=1)
    hidden_dim: int | None = setting(None, least=1)
    output_dim: int = setting(128, least=1)
    bn_groups: int = setting(8, least=1)


@methods.register("densecl", DenseCLConfig, optimizer="sgd", augment="moco_v2")
class DenseCL(Method):
    """Contrast images and, matched by the backbone's features, the cells of their maps (InfoNCE, two queues)."""

    sync_batchnorm = False  # ShuffleBN needs statistics per rank
    chunkable = False  # bn_groups are parts of the whole batch, and keys wait in a queue

    def __init__(self, config: DenseCLConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_queue(config.queue_size, parts.batch_size, "keys")
        groups = groups_of_a_rank(config.bn_groups, parts)
        check_dense(self.backbone, self.views.sizes)
        self.temperature, self.momentum = config.temperature, config.momentum
        self.dense_weight, self.dense_warmup_steps = config.dense_weight, config.dense_warmup_steps
        widths = [self.backbone.dim, config.hidden_dim or self.backbone.dim, config.output_dim]
        self.head = projection_head(widths)
        self.dense_head = dense_head(widths)
        if groups > 1:
            split_batch_norm(self.backbone, groups)
        self.key_encoder = MomentumEncoder(self.encoder)
        self.queue = FeatureQueue(config.queue_size, config.output_dim)
        self.dense_queue = FeatureQueue(config.queue_size, config.output_dim)

    @property
    def encoder(self) -> DenseEncoder:
        """Backbone and heads: what the key encoder follows."""
        return DenseEncoder(self.backbone, self.dense_head, self.head)

    def encode_keys(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's map, the dense keys and the keys of a view, computed in shuffled company."""
        order = self.batch_permutation(len(images))
        outputs = self.key_encoder(shuffle(images, order, world()))
        return [unshuffle(output, order, world()) for output in outputs]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the weighted losses of images and cells against the queues as they were, then enqueue the keys."""
        query_view, key_view = views
        key_features, dense_keys, keys = self.encode_keys(key_view.image)
        query_features, dense_queries, queries = self.encoder(query_view.image)
        match = dense_match(query_features, key_features)
        image_loss = info_nce(queries, keys, self.queue.negatives(), self.temperature)
        cell_loss = dense_info_nce(dense_queries, dense_keys, match, self.dense_queue.negatives(), self.temperature)
        self.queue.enqueue(keys)
        self.dense_queue.enqueue(dense_keys.mean(dim=(2, 3)))
        # the product, not a branch: DDP wants a gradient, if only of zeros, for the dense head
        weight = self.dense_weight if self.steps_done >= self.dense_warmup_steps else 0.0
        loss = (1 - weight) * image_loss + weight * cell_loss
        return StepOutput(loss, {"image_loss": image_loss, "cell_loss": cell_loss})

    def after_optimizer_step(self) -> None:
        """Let the key encoder follow."""
        self.key_encoder.update(self.encoder, self.momentum)
