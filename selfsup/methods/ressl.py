"""ReSSL: a view's similarities to earlier images follow those of another, weakly augmented view.

A queue holds keys of earlier batches. The key of an image, a crop and a flip that a momentum encoder sees, is compared
with all of them, and a low temperature makes a sharp distribution of the result; the query, which is augmented as in
MoCo v2, must give the same distribution. There are no negatives: an image that resembles an earlier one is to go on
doing so. Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", 2021.

Order within a step, as in the authors' code (KyleZheng1997/ReSSL, 4d67daa): encode keys in shuffled company, compare
with the queue as it was, then enqueue. The momentum update follows the optimiser step, as in MoCo here.

Deviations: ``bn_groups`` fixes how many parts of the batch have BatchNorm statistics of their own, see MoCo. The five
crops of the authors' second recipe are not built.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import ressl_loss
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue, groups_of_a_rank
from selfsup.nn import FeatureQueue, MomentumEncoder, projection_head, shuffle, split_batch_norm, unshuffle
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class ReSSLConfig(MethodConfig):
    """ReSSL's settings, with the defaults of the authors' code for ImageNet.

    Attributes:
        temperature: τ of the query's distribution.
        key_temperature: τ of the key's, lower: it sharpens the target.
        queue_size: Number of earlier keys that images are compared with, at least one batch.
        momentum: Share of the old key encoder that a step keeps; the paper takes 0.99 for small data sets.
        hidden_dim: Width of the head's hidden layer.
        output_dim: Width of query and key.
        bn_groups: Parts of the whole batch with BatchNorm statistics of their own, see MoCo.
    """

    name: str = "ressl"
    temperature: float = setting(0.1, above=0)
    key_temperature: float = setting(0.04, above=0)
    queue_size: int = setting(131072, least=1)
    momentum: float = setting(0.999, least=0, most=1)
    hidden_dim: int = setting(4096, least=1)
    output_dim: int = setting(512, least=1)
    bn_groups: int = setting(8, least=1)


@methods.register("ressl", ReSSLConfig, optimizer="sgd", augment="ressl")
class ReSSL(Method):
    """Let a view's similarities to earlier images follow those of a weakly augmented view."""

    sync_batchnorm = False  # ShuffleBN needs statistics per rank
    chunkable = False  # bn_groups are parts of the whole batch, and keys wait in a queue

    def __init__(self, config: ReSSLConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_queue(config.queue_size, parts.batch_size, "keys")
        groups = groups_of_a_rank(config.bn_groups, parts)
        self.config = config
        self.head = projection_head([self.backbone.dim, config.hidden_dim, config.output_dim])
        if groups > 1:
            split_batch_norm(self.backbone, groups)
        self.key_encoder = MomentumEncoder(self.encoder)
        self.queue = FeatureQueue(config.queue_size, config.output_dim)

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and head: what the key encoder follows."""
        return nn.Sequential(self.backbone, self.head)

    def encode_keys(self, images: Tensor) -> Tensor:
        """Return the keys of a view, computed in shuffled company."""
        order = self.batch_permutation(len(images))
        return unshuffle(self.key_encoder(shuffle(images, order, world())), order, world())

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the cross-entropy of the two distributions over the queue as it was, then enqueue the keys."""
        query_view, key_view = views
        key = self.encode_keys(key_view.image)
        query = self.encoder(query_view.image)
        loss = ressl_loss(query, key, self.queue.negatives(), self.config.temperature, self.config.key_temperature)
        self.queue.enqueue(key)
        return StepOutput(loss)

    def after_optimizer_step(self) -> None:
        """Let the key encoder follow."""
        self.key_encoder.update(self.encoder, self.config.momentum)
