"""MoCo v1 and v2: a query finds the key of its own image among a queue of keys of earlier batches.

Keys come from a slowly moving average of the query network, so the queue stays consistent and the number of negatives
does not depend on the batch. The key images are shuffled so that BatchNorm statistics cannot give a key away. He et
al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2020; Chen et al., "Improved Baselines with
Momentum Contrastive Learning", 2020.

Order within a step, as in the authors' code: encode keys, contrast with the queue as it was, then enqueue. The momentum
update follows the optimiser step, which is the same sequence as theirs just before the next key pass.

Deviations: ``bn_groups`` fixes how many parts of the batch have BatchNorm statistics of their own, however many devices
there are (the authors always had one part a device, eight of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import info_nce
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.parts import Parts
from selfsup.methods.queued import check_queue, groups_of_a_rank
from selfsup.nn import FeatureQueue, MomentumEncoder, projection_head, shuffle, split_batch_norm, unshuffle
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class MoCoConfig(MethodConfig):
    """MoCo's settings, with the defaults of the v2 paper.

    Attributes:
        temperature: τ of the loss.
        queue_size: Number of keys kept, at least one batch.
        momentum: Share of the old key encoder that a step keeps.
        head_layers: Linear layers of the head: 2 in v2, 1 in v1.
        hidden_dim: Width of the head's hidden layers; None is the width of the backbone's feature.
        output_dim: Width of query and key.
        symmetric: Let each view be the query once; the two losses are averaged and both views' keys are enqueued.
        bn_groups: Parts of the whole batch with BatchNorm statistics of their own. Each rank has its share of them,
            at least one. With 1 on a single device BatchNorm lets the network recognise keys by their batch.
    """

    of_loss: ClassVar[tuple[str, ...]] = ("temperature",)

    name: str = "moco"
    temperature: float = setting(0.2, above=0)
    queue_size: int = setting(65536, least=1)
    momentum: float = setting(0.999, least=0, most=1)
    head_layers: int = setting(2, least=1)
    hidden_dim: int | None = setting(None, least=1)
    output_dim: int = setting(128, least=1)
    symmetric: bool = False
    bn_groups: int = setting(8, least=1)


@dataclass
class MoCoV1Config(MoCoConfig):
    """The settings of MoCo v1: another temperature and a head of one linear layer; see :class:`MoCoConfig`."""

    name: str = "moco_v1"
    temperature: float = setting(0.07, above=0)
    head_layers: int = setting(1, least=1)


@methods.register("moco_v1", MoCoV1Config, optimizer="sgd", augment="moco_v1", over=("queue",))
@methods.register("moco", MoCoConfig, also=("moco_v2",), optimizer="sgd", augment="moco_v2", over=("queue",))
class MoCo(Method):
    """Find the momentum encoder's key of the same image among a queue of earlier keys; MoCo v1 and v2."""

    sync_batchnorm = False  # ShuffleBN needs statistics per rank
    chunkable = False  # bn_groups are parts of the whole batch, and keys wait in a queue

    def __init__(self, config: MoCoConfig, parts: Parts) -> None:
        super().__init__(parts)
        keys_a_step = parts.batch_size * (2 if config.symmetric else 1)
        check_queue(config.queue_size, keys_a_step, "keys")
        groups = groups_of_a_rank(config.bn_groups, parts)
        self.temperature, self.momentum, self.symmetric = config.temperature, config.momentum, config.symmetric
        dim = self.backbone.dim
        hidden = [config.hidden_dim or dim] * (config.head_layers - 1)
        self.head = projection_head([dim, *hidden, config.output_dim])
        if groups > 1:
            split_batch_norm(self.backbone, groups)
        self.key_encoder = MomentumEncoder(nn.Sequential(self.backbone, self.head))
        self.queue = FeatureQueue(config.queue_size, config.output_dim)

    def encode_keys(self, images: Tensor) -> Tensor:
        """Return the keys of a view, computed in shuffled company."""
        order = self.batch_permutation(len(images))
        return unshuffle(self.key_encoder(shuffle(images, order, world())), order, world())

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return InfoNCE of the queries against the queue as it was before this batch, then enqueue the keys."""
        first, second = views
        pairs = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        losses, logs, keys, generator = [], {}, [], self.batch_generator()
        for query_view, key_view in pairs:
            keys.append(self.encode_keys(key_view.image))
            query = self.head(self.backbone(query_view.image))
            if self.objective is None and self.negatives is None:
                losses.append(info_nce(query, keys[-1], self.queue.negatives(), self.temperature))
                continue
            pair = torch.stack([query, keys[-1]])
            output = self.apply_objective(pair, batch, self.queue.negatives(), generator, self.temperature)
            losses.append(output.loss)
            logs = output.logs
        for view_keys in keys:  # one view after the other: the same order however many ranks there are
            self.queue.enqueue(view_keys)
        return StepOutput(torch.stack(losses).mean(), logs)

    def after_optimizer_step(self) -> None:
        """Let the key encoder follow."""
        self.key_encoder.update(nn.Sequential(self.backbone, self.head), self.momentum)
