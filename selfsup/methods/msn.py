"""MSN and PMSN: a view with patches left out belongs to the same soft cluster as another view that is whole.

Embeddings are compared with trainable prototypes. The teacher's assignment of one whole view, sharpened and balanced,
is predicted from another view of which some patches are left out, and from small crops; no pixel and no token is
reconstructed. The mean assignment of all anchors must be even, so that not everything falls into one cluster. Assran et
al., "Masked Siamese Networks for Label-Efficient Learning", 2022. Read: facebookresearch/msn, 4388dc1.

PMSN holds the mean assignment to a power law instead, for images whose classes are not equally frequent. Assran et al.,
"The Hidden Uniform Cluster Prior in Self-Supervised Learning", 2023, of which there is no code of the authors'. Codes
that are balanced would contradict such a prior, so that it has none.

Deviations: patches are left out of each image by itself, where the authors leave out the same of a whole batch, and
round(ratio · L) of them, 29 of 196 (theirs are 30); prototypes always learn, with the mean of the ranks' gradients (a
sum there, which Adam hides). The authors' term of the anchors' own entropy has the weight 0 in their configuration, and
is left out. The teacher is what is evaluated, as theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from selfsup.distributed import world
from selfsup.functional import code_prediction, kept_index, prior_divergence, random_mask, sharpened_codes
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.distilled import check_class_token, check_global_views
from selfsup.methods.masked import check_masked
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, CosinePrototypes, MomentumEncoder, projection_head
from selfsup.optimization import decay_groups, linear_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class MSNConfig(MethodConfig):
    """MSN's settings, with the authors' for ViT-S/16.

    Attributes:
        mask_ratio: Share of the patches that is left out of the large anchors.
        prototypes: Number of prototypes.
        temperature: τ of the assignments.
        sharpening: Exponent 1/T of the target; the smaller, the nearer it is to a single prototype.
        sinkhorn_iterations: Rounds of Sinkhorn-Knopp that balance the targets; 0 is none.
        prior_weight: Factor on the distance of the mean assignment from the prior.
        prior_exponent: The k-th prototype is wanted with a share proportional to k to the power of minus this; 0 is
            evenly.
        momentum: Share of the old teacher that the first step keeps; it rises along a line that would be at 1 after
            1.25 times the training, as the authors'.
        hidden_dim: Width of the head's two hidden layers.
        output_dim: Width of the embedding.
    """

    name: str = "msn"
    mask_ratio: float = setting(0.15, above=0, below=1)
    prototypes: int = setting(1024, least=1)
    temperature: float = setting(0.1, above=0)
    sharpening: float = setting(0.25, above=0)
    sinkhorn_iterations: int = setting(3, least=0)
    prior_weight: float = setting(1.0, least=0)
    prior_exponent: float = setting(0.0, least=0)
    momentum: float = setting(0.996, least=0, most=1)
    hidden_dim: int = setting(2048, least=1)
    output_dim: int = setting(256, least=1)


@dataclass
class PMSNConfig(MSNConfig):
    """PMSN's settings: a prior that is a power law, and targets that are not balanced."""

    name: str = "pmsn"
    sinkhorn_iterations: int = setting(0, least=0)
    prior_exponent: float = setting(0.25, least=0)


@methods.register("pmsn", PMSNConfig, optimizer="msn", augment="msn", backbone="vit_small")
@methods.register("msn", MSNConfig, optimizer="msn", augment="msn", backbone="vit_small")
class MSN(Method):
    """Predict the soft cluster of a whole view from views with patches left out; MSN and PMSN."""

    view_count = (2, None)
    couples_images = True

    def __init__(self, config: MSNConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_global_views(parts, "MSN")
        check_class_token(parts)
        self.config = config
        self.grid, _ = check_masked(parts, config.mask_ratio)
        widths = [self.backbone.dim, config.hidden_dim, config.hidden_dim, config.output_dim]
        self.head = projection_head(widths, batch_norm=True, activation=nn.GELU)
        self.prototypes = CosinePrototypes(config.prototypes, config.output_dim)
        self.teacher = MomentumEncoder(nn.Sequential(self.backbone, self.head))

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which the authors evaluate."""
        return cast(Backbone, cast(nn.Sequential, self.teacher.module)[0])

    def param_groups(self) -> list[dict[str, Any]]:
        """Return all parameters; prototypes do not decay."""
        rest = nn.ModuleList([self.backbone, self.head])
        groups = decay_groups(rest, self.optimizer_config.weight_decay, self.optimizer_config.exclude_1d)
        return [*groups, {"params": list(self.prototypes.parameters()), "weight_decay": 0.0, "adapt": False}]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the cross-entropy of the anchors with the first view's code, and the distance from the prior."""
        config, target = self.config, views[0].image
        large = [number for number, view in enumerate(views) if number and view.image.shape == target.shape]
        small = [view for view in views[1:] if view.image.shape != target.shape]
        mask = torch.cat([random_mask(self.draw(batch.index, view), self.grid, config.mask_ratio) for view in large])
        images, keep = torch.cat([views[view].image for view in large]), kept_index(mask).to(target.device)
        anchors = [self.head(self.backbone.forward_tokens(images, keep=keep).prefix[:, 0])]
        if small:
            anchors.append(self.head(self.encode(small).flatten(0, 1)))
        scores = self.prototypes(torch.cat(anchors))
        with torch.no_grad():
            wanted = self.prototypes(self.teacher(target))
        temperature, group = config.temperature, world()
        codes = sharpened_codes(wanted, temperature, config.sharpening, config.sinkhorn_iterations, group)
        prediction = code_prediction(scores.unflatten(0, (len(views) - 1, -1)), codes, temperature)
        prior = prior_divergence(scores, temperature, config.prior_exponent, group)
        loss = prediction + config.prior_weight * prior
        return StepOutput(loss, {"prediction_loss": prediction, "prior_loss": prior})

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        momentum = linear_schedule(self.config.momentum, 1.0, self.progress / 1.25)
        self.teacher.update(nn.Sequential(self.backbone, self.head), momentum)
