"""DINOv2: iBOT with a head of its own for patches, balanced codes in place of centres, and images kept apart.

Class tokens learn as in DINO and masked patch tokens as in iBOT, with Sinkhorn-Knopp's codes of the teacher's outputs
as targets: class tokens of both global crops together, masked patch tokens as one pool, over all ranks. KoLeo pushes
class tokens away from their nearest neighbours. Oquab et al., "DINOv2: Learning Robust Visual Features without
Supervision", 2023; Siméoni et al., "DINOv3", 2025. Read: facebookresearch/dinov2, b8931f7, and dinov3, 6876159.

Exactly half of the crops are masked, so at uniform outputs the term of the patches is half of ln K. Registers are the
network's (``backbone.kwargs.reg_tokens=4``). ``gram_weight`` adds DINOv3's Gram anchoring: how similar the patches of a
student's crop are to each other is held to an earlier teacher.

Deviations: last layers have a scale of 1, and lose their gradient in the first epoch, where the authors' rate is 0.
Stochastic depth is timm's. KoLeo looks for neighbours on all ranks. The earlier teacher sees the student's crop, where
DINOv3's sees it undistorted and at twice the size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from selfsup.distributed import world
from selfsup.functional import gram_loss, koleo_loss, masked_cross_entropy, sinkhorn, swapped_prediction
from selfsup.functional.masks import masked_places
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.distilled import GLOBAL_VIEWS, check_class_tokens, risen, spread_masks
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, DINOHead, MaskToken, MomentumEncoder, token_grid
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class DINOv2Config(MethodConfig):
    """DINOv2's settings, with the values of the authors' ViT-L/16 on ImageNet-1k.

    Attributes:
        student_temperature: τ of the student's softmax.
        teacher_temperature: Smoothness ε of the teacher's codes after its warm-up.
        warmup_teacher_temperature: The same in the first epoch.
        teacher_warmup_epochs: Epochs over which the one becomes the other, in equal steps; 0 is no warm-up.
        momentum: Share of the old teacher that the first step keeps; it rises to 1 along a cosine.
        freeze_last_layer_epochs: Epochs during which the heads' last layers stay as they began.
        mask_share: Share of the global crops that is masked.
        mask_ratios: Range of the share of a crop's patches that is masked then, evenly spread over the batch.
        patch_weight: Factor on the term of the patches.
        koleo_weight: Factor on KoLeo, of each global crop.
        gram_weight: Factor on the Gram loss; 0 is without. DINOv3 has 2, late in a long training.
        gram_start_epoch: Epoch from which it counts; the teacher of then is what is held to.
        gram_every_epochs: Epochs after which the teacher of then takes its place, at most three times.
        hidden_dim: Width of the heads' two hidden layers.
        bottleneck_dim: Width of the normalised layer before the last.
        output_dim: Number of outputs of each head.
    """

    name: str = "dinov2"
    student_temperature: float = setting(0.1, above=0)
    teacher_temperature: float = setting(0.07, above=0)
    warmup_teacher_temperature: float = setting(0.04, above=0)
    teacher_warmup_epochs: int = setting(30, least=0)
    momentum: float = setting(0.992, least=0, most=1)
    freeze_last_layer_epochs: int = setting(1, least=0)
    mask_share: float = setting(0.5, least=0, most=1)
    mask_ratios: list[float] = setting([0.1, 0.5], least=0, most=1)
    patch_weight: float = setting(1.0, least=0)
    koleo_weight: float = setting(0.1, least=0)
    gram_weight: float = setting(0.0, least=0)
    gram_start_epoch: int = setting(0, least=0)
    gram_every_epochs: int = setting(10, least=1)
    hidden_dim: int = setting(2048, least=1)
    bottleneck_dim: int = setting(256, least=1)
    output_dim: int = setting(65536, least=1)


@methods.register("dinov2", DINOv2Config, optimizer="dinov2", augment="dinov2", backbone="vit_small")
class DINOv2(Method):
    """Learn class tokens and masked patch tokens from a teacher's balanced codes, and keep images apart."""

    view_count = (GLOBAL_VIEWS, None)
    couples_images = True

    def __init__(self, config: DINOv2Config, parts: Parts) -> None:
        super().__init__(parts)
        check_class_tokens(parts, config.mask_ratios)
        self.config = config
        widths = self.backbone.dim, config.hidden_dim, config.bottleneck_dim, config.output_dim
        self.head, self.patch_head = DINOHead(*widths), DINOHead(*widths)
        self.mask_token = MaskToken(self.backbone.dim)
        self.teacher = MomentumEncoder(self.backbone, evaluates=True)
        self.teacher_head = MomentumEncoder(self.head, evaluates=True)
        self.teacher_patch_head = MomentumEncoder(self.patch_head, evaluates=True)
        if config.gram_weight:
            self.gram_teacher = MomentumEncoder(self.backbone, evaluates=True)
        self.gram_renewals: Tensor
        self.register_buffer("gram_renewals", torch.zeros((), dtype=torch.long))
        self._gram_looked_at: tuple[int, int] | None = None

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which the authors publish."""
        return self.teacher.module  # type: ignore[return-value]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the losses of class tokens, masked patches, neighbours and, where asked for, patch similarities."""
        config, images = self.config, torch.cat([view.image for view in views[:GLOBAL_VIEWS]])
        draws = [self.draw(batch.index, view) for view in range(GLOBAL_VIEWS)]
        grid = token_grid(self.backbone.network, (images.shape[-2], images.shape[-1]))
        mask = spread_masks(draws, self.draw_whole(1), grid, config.mask_ratios, config.mask_share)
        image, place = (index.to(images.device) for index in masked_places(mask))
        epsilon = risen(config, self.current_epoch)
        tokens = self.teacher.forward_tokens(images)
        targets = sinkhorn(self.teacher_head(tokens.prefix[:, 0]), epsilon, group=world())
        seen = self.backbone.forward_tokens(images, mask.to(images.device), self.mask_token())
        local = [self.encode(views[GLOBAL_VIEWS:]).flatten(0, 1)] if len(views) > GLOBAL_VIEWS else []
        student = self.head(torch.cat([seen.prefix[:, 0], *local])).chunk(len(views))
        class_loss = swapped_prediction(student, targets.chunk(GLOBAL_VIEWS), config.student_temperature)
        patches = self.patch_head(seen.patches[image, place])
        codes = sinkhorn(self.teacher_patch_head(tokens.patches[image, place]), epsilon, group=world())
        patch_loss = masked_cross_entropy(patches, codes, image, len(images), config.student_temperature)
        koleo = torch.stack([koleo_loss(x, world()) for x in seen.prefix[:, 0].chunk(GLOBAL_VIEWS)]).sum()
        logs = {"class_loss": class_loss, "patch_loss": patch_loss, "koleo": koleo}
        loss = class_loss + config.patch_weight * patch_loss + config.koleo_weight * koleo
        if config.gram_weight and self.current_epoch >= config.gram_start_epoch:
            self.renew_gram_teacher()
            logs["gram"] = gram_loss(seen.patches, self.gram_teacher.forward_tokens(images).patches)
            loss = loss + config.gram_weight * logs["gram"]
        return StepOutput(loss, logs)

    def renew_gram_teacher(self) -> None:
        """Let the network that the Gram loss holds to become the teacher of now, when it is time."""
        if self._gram_looked_at == (self.gram_renewals._version, self.current_epoch):
            return  # reading the count waits for the device
        since = self.current_epoch - self.config.gram_start_epoch
        wanted = 1 + min(since // self.config.gram_every_epochs, 3)
        if int(self.gram_renewals) < wanted:
            self.gram_teacher.update(self.teacher.module, 0.0)
            self.gram_renewals.fill_(wanted)
        self._gram_looked_at = self.gram_renewals._version, self.current_epoch

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        momentum = cosine_schedule(self.config.momentum, 1.0, self.progress)
        self.teacher.update(self.backbone, momentum)
        self.teacher_head.update(self.head, momentum)
        self.teacher_patch_head.update(self.patch_head, momentum)

    def frozen_parameters(self) -> Iterable[torch.nn.Parameter]:
        """The heads' last layers, in the first epochs."""
        frozen = self.current_epoch < self.config.freeze_last_layer_epochs
        return (self.head.weight, self.patch_head.weight) if frozen else ()
