"""CAPI: predict, for patches that are not seen, the clusters that a teacher's patches fall into.

The student sees a third of an image. For some of the other places a predictor, whose queries look at what the student
made of the seen ones, names the cluster of the patch that is there. Clusters are learnt on line by a linear layer over
the teacher's patch tokens, with a loss of its own; assignments are balanced over the images of the batch, at each place
by itself. Nothing else is contrasted, reconstructed or pooled. Darcet et al., "Cluster and Predict Latent Patches for
Improved Masked Image Modeling", 2025. Read: facebookresearch/capi, 98b4fa1.

Deviations: the network is timm's (``backbone.kwargs`` of the preset: no class token, 16 registers), with LayerNorm and
positions that are added, where the authors have RMSNorm and rotary ones, and so is the predictor, of the network's
width and heads, without their stochastic depth. The last layer of the predictor's head keeps its scale of 1. One
optimiser moves all, clusters at half the rate, as there. The feature is the mean of the teacher's patch tokens
(``backbone=vit_small_mean``); the authors' is the mean over all places of the predictor's first block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import chosen_places, code_prediction, inverse_block_mask, kept_index, positionwise_sinkhorn
from selfsup.functional.arguments import full_precision
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.masked import check_masked, check_pooling
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, CosinePrototypes, MomentumEncoder, TokenTransformer
from selfsup.optimization import cosine_schedule, decay_groups, linear_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class CAPIConfig(MethodConfig):
    """CAPI's settings, with the authors' for ViT-L/14.

    Attributes:
        mask_ratio: Share of the patches that the student does not see.
        prediction_share: Share of these that are predicted; at least one in each image.
        clusters: Number of clusters. Codes are sharp with several images a cluster; with fewer they spread.
        positionwise: Balance the clusters over the images at each place by itself. False takes the patches of all
            places together, which helps batches of fewer images than clusters.
        student_temperature: τ of the prediction.
        target_temperature: Smoothness of the assignments.
        clustering_temperature: τ of the clusters' own loss.
        sinkhorn_iterations: Rounds of the assignment.
        clustering_lr_scale: Factor on the learning rate of the clusters.
        clustering_weight_decay: Decay of the clusters.
        momentum: Share of the old teacher that a step keeps after the warm-up; it rises to 1 along a cosine.
        momentum_warmup: Share of the training in which the momentum falls from 1 to that.
        predictor_depth: Blocks of the predictor.
    """

    name: str = "capi"
    mask_ratio: float = setting(0.65, above=0, below=1)
    prediction_share: float = setting(0.05, above=0, most=1)
    clusters: int = setting(16384, least=2)
    positionwise: bool = True
    student_temperature: float = setting(0.12, above=0)
    target_temperature: float = setting(0.06, above=0)
    clustering_temperature: float = setting(0.12, above=0)
    sinkhorn_iterations: int = setting(3, least=1)
    clustering_lr_scale: float = setting(0.5, least=0)
    clustering_weight_decay: float = setting(0.01, least=0)
    momentum: float = setting(0.999, least=0, most=1)
    momentum_warmup: float = setting(0.1, least=0, below=1)
    predictor_depth: int = setting(12, least=1)


@methods.register("capi", CAPIConfig, optimizer="capi", augment="capi", backbone="vit_small_mean")
class CAPI(Method):
    """Predict the clusters of a teacher's patches at places that are not seen."""

    view_count = (1, 1)
    couples_images = True

    def __init__(self, config: CAPIConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_pooling(parts, "CAPI")
        self.config = config
        self.grid, _ = check_masked(parts, config.mask_ratio)
        network: Any = self.backbone.network
        dim, heads = self.backbone.dim, int(network.blocks[0].attn.num_heads)
        self.predictor = TokenTransformer(dim, dim, self.grid, dim, config.predictor_depth, heads, "cross")
        self.head = CosinePrototypes(config.clusters, dim)
        self.clusters = nn.Linear(dim, config.clusters)
        nn.init.normal_(self.clusters.weight)
        nn.init.zeros_(self.clusters.bias)
        self.teacher = MomentumEncoder(self.backbone, evaluates=True)

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which the authors evaluate at the end."""
        return self.teacher.module  # type: ignore[return-value]

    def param_groups(self) -> list[dict[str, Any]]:
        """Return all parameters, those of the clusters with a rate and a decay of their own."""
        config = self.config
        rest = nn.ModuleList([self.backbone, self.predictor, self.head])
        groups = decay_groups(rest, self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d)
        own = {"lr_scale": config.clustering_lr_scale, "weight_decay": config.clustering_weight_decay}
        return [*groups, {"params": list(self.clusters.parameters()), **own}]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the cross-entropies of the student with the codes, and of the clusters with them."""
        config, images, draw = self.config, views[0].image, self.draw(batch.index, 0)
        mask = inverse_block_mask(draw, self.grid, config.mask_ratio)
        wanted = chosen_places(draw, mask, config.prediction_share).to(images.device)
        keep = kept_index(mask).to(images.device)
        codes, clustering = self.assign(self.teacher.forward_tokens(images).patches)
        seen = self.backbone.forward_tokens(images, keep=keep)
        scores = self.head(self.predictor(seen.patches, keep, wanted, prefix=seen.prefix))
        codes = codes[torch.arange(len(images), device=images.device)[:, None], wanted]
        prediction = code_prediction(scores.flatten(0, 1)[None], codes.flatten(0, 1), config.student_temperature)
        entropy = torch.special.entr(codes).sum(dim=2).mean()
        logs = {"prediction_loss": prediction, "clustering_loss": clustering, "code_entropy": entropy}
        return StepOutput(prediction + clustering, logs)

    def assign(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes ``[N,L,K]`` of the teacher's patches, and the loss of the clusters that they are from."""
        config = self.config
        with torch.autocast(patches.device.type, enabled=False):  # products of unit vectors, over a small temperature
            scores = self.clusters(F.normalize(full_precision(patches), dim=2))
        pooled = scores if config.positionwise else scores.flatten(0, 1)[:, None]
        codes = positionwise_sinkhorn(pooled, config.target_temperature, config.sinkhorn_iterations, world())
        codes = codes.reshape(scores.shape)
        flat = scores.flatten(0, 1)[None], codes.flatten(0, 1)
        return codes, code_prediction(*flat, config.clustering_temperature)

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        config, done = self.config, self.progress
        if done < config.momentum_warmup:
            momentum = linear_schedule(1.0, config.momentum, done / config.momentum_warmup)
        else:
            fraction = (done - config.momentum_warmup) / (1 - config.momentum_warmup)
            momentum = cosine_schedule(config.momentum, 1.0, fraction)
        self.teacher.update(self.backbone, momentum)
