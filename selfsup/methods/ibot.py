"""iBOT: DINO on class tokens, and the same prediction token by token where the student's crop is masked.

The student sees its global crops with blocks of patches exchanged for a mask token. At these places it predicts what
the teacher, which sees the crop whole, says of its own patch tokens there; the class token is learnt as in DINO. Zhou
et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2021. Read: bytedance/ibot, da316d8.

Order within a step, as in the authors' code: loss with the centres as they were, then the centres move, that of the
patches to the mean over all patches of the global crops, masked or not; after the optimiser step the teacher follows.

Deviations: class and patch tokens share one head and one temperature, as in the released models (the flags of the
authors' code can part them); the head's last layer is always normalised, with a scale of 1 (an option of theirs, which
the released small models leave free); masks have the count of tokens that their ratio says, see ``block_mask``. Logits
are float32 under autocast. The teacher is in evaluation mode, without stochastic depth, and is what is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.distributed import world
from selfsup.functional import dino_loss, masked_cross_entropy
from selfsup.functional.collectives import gather
from selfsup.functional.masks import masked_places
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.distilled import GLOBAL_VIEWS, check_class_tokens, own_masks, risen
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, DINOHead, MaskToken, MomentumEncoder, token_grid
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class IBOTConfig(MethodConfig):
    """iBOT's settings, with the values of the authors' released ViT-S/16.

    Attributes:
        student_temperature: τ of the student's softmax.
        teacher_temperature: τ of the teacher's softmax after its warm-up, on class and patch tokens.
        warmup_teacher_temperature: The same in the first epoch.
        teacher_warmup_epochs: Epochs over which the one becomes the other, in equal steps; 0 is no warm-up.
        center_momentum: Share of the old centres that a step keeps.
        momentum: Share of the old teacher that the first step keeps; it rises to 1 along a cosine.
        freeze_last_layer_epochs: Epochs during which the head's last layer stays as it began.
        mask_share: Probability of a global crop to be masked.
        mask_ratios: Range of the share of its patches that is masked then.
        patch_weight: Factor on the term of the patches.
        hidden_dim: Width of the head's two hidden layers.
        bottleneck_dim: Width of the normalised layer before the last.
        output_dim: Number of outputs.
    """

    name: str = "ibot"
    student_temperature: float = setting(0.1, above=0)
    teacher_temperature: float = setting(0.07, above=0)
    warmup_teacher_temperature: float = setting(0.04, above=0)
    teacher_warmup_epochs: int = setting(30, least=0)
    center_momentum: float = setting(0.9, least=0, most=1)
    momentum: float = setting(0.996, least=0, most=1)
    freeze_last_layer_epochs: int = setting(1, least=0)
    mask_share: float = setting(0.5, least=0, most=1)
    mask_ratios: list[float] = setting([0.1, 0.5], least=0, most=1)
    patch_weight: float = setting(1.0, least=0)
    hidden_dim: int = setting(2048, least=1)
    bottleneck_dim: int = setting(256, least=1)
    output_dim: int = setting(8192, least=1)


@methods.register("ibot", IBOTConfig, optimizer="dino", augment="ibot", backbone="vit_small")
class IBOT(Method):
    """Learn class tokens as DINO does, and masked patch tokens from those that the teacher sees."""

    view_count = (GLOBAL_VIEWS, None)

    def __init__(self, config: IBOTConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_class_tokens(parts, config.mask_ratios)
        self.config = config
        self.head = DINOHead(self.backbone.dim, config.hidden_dim, config.bottleneck_dim, config.output_dim)
        self.mask_token = MaskToken(self.backbone.dim)
        self.teacher = MomentumEncoder(self.backbone, evaluates=True)
        self.teacher_head = MomentumEncoder(self.head, evaluates=True)
        self.center: Tensor
        self.patch_center: Tensor
        self.register_buffer("center", torch.zeros(config.output_dim))
        self.register_buffer("patch_center", torch.zeros(config.output_dim))

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which the authors evaluate."""
        return self.teacher.module  # type: ignore[return-value]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return DINO's loss and that of the masked patches, then move the centres."""
        config, images = self.config, torch.cat([view.image for view in views[:GLOBAL_VIEWS]])
        draws = [self.draw(batch.index, view) for view in range(GLOBAL_VIEWS)]
        grid = token_grid(self.backbone.network, (images.shape[-2], images.shape[-1]))
        mask = own_masks(draws, grid, config.mask_ratios, config.mask_share)
        image, place = (index.to(images.device) for index in masked_places(mask))
        temperature = risen(config, self.current_epoch)
        tokens = self.teacher.forward_tokens(images)
        targets = self.teacher_head(tokens.prefix[:, 0])
        patch_targets = self.teacher_head(tokens.patches.flatten(0, 1))
        seen = self.backbone.forward_tokens(images, mask.to(images.device), self.mask_token())
        local = [self.encode(views[GLOBAL_VIEWS:]).flatten(0, 1)] if len(views) > GLOBAL_VIEWS else []
        student = self.head(torch.cat([seen.prefix[:, 0], *local])).chunk(len(views))
        loss = dino_loss(
            student, targets.chunk(GLOBAL_VIEWS), self.center.clone(), config.student_temperature, temperature
        )
        wanted = patch_targets[image * mask.shape[1] + place] - self.patch_center
        patch_loss = masked_cross_entropy(
            self.head(seen.patches[image, place]),
            (wanted / temperature).softmax(1),
            image,
            len(images),
            config.student_temperature,
        )
        for center, found in ((self.center, targets), (self.patch_center, patch_targets)):
            mean = gather(found.mean(dim=0, keepdim=True), world()).mean(dim=0)
            center.lerp_(mean.to(center.dtype), 1 - config.center_momentum)
        logs = {"class_loss": loss, "patch_loss": patch_loss}
        return StepOutput(loss + config.patch_weight * patch_loss, logs)

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        momentum = cosine_schedule(self.config.momentum, 1.0, self.progress)
        self.teacher.update(self.backbone, momentum)
        self.teacher_head.update(self.head, momentum)

    def frozen_parameters(self) -> Iterable[torch.nn.Parameter]:
        """The head's last layer, in the first epochs."""
        return (self.head.weight,) if self.current_epoch < self.config.freeze_last_layer_epochs else ()
