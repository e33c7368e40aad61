"""DINO: a student network predicts, from any view, what its own moving average says about the global views.

Teacher and student end in a softmax over many outputs. The teacher's is centred, so that no output wins everywhere, and
sharpened, so that not all are equal: the two keep each other from collapse. The student also sees small local crops and
learns from the global views of the teacher, which follows it slowly and gets no gradient. Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers", 2021.

Order within a step, as in the authors' code: loss with the centre as it was, then the centre moves to the mean of the
teacher's outputs over all ranks; after the optimiser step the teacher follows.

Deviations: the last layer's weight normalisation always has its scale fixed at 1 (an option of the authors'). Student
and teacher are the same network, so a backbone with stochastic depth has it in the teacher too. Logits are float32
under autocast. The network that is evaluated is the teacher's, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.functional import dino_loss
from selfsup.functional.collectives import gather
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.distilled import GLOBAL_VIEWS, check_global_views, risen
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, DINOHead, MomentumEncoder
from selfsup.optimization import cosine_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class DINOConfig(MethodConfig):
    """DINO's settings, with the defaults of the paper.

    Attributes:
        student_temperature: τ of the student's softmax.
        teacher_temperature: τ of the teacher's softmax after its warm-up.
        warmup_teacher_temperature: The same in the first epoch.
        teacher_warmup_epochs: Epochs over which the one becomes the other, in equal steps; 0 is no warm-up. The last
            of them has ``teacher_temperature``.
        center_momentum: Share of the old centre that a step keeps.
        momentum: Share of the old teacher that the first step keeps; it rises to 1 along a cosine.
        freeze_last_layer_epochs: Epochs during which the head's last layer stays as it began.
        hidden_dim: Width of the head's two hidden layers.
        bottleneck_dim: Width of the normalised layer before the last.
        output_dim: Number of outputs.
        head_batch_norm: BatchNorm in the head, an option of the authors'. Short runs of small convolutional networks
            end at the uniform output, a loss of ln(output_dim), without it.
    """

    name: str = "dino"
    student_temperature: float = setting(0.1, above=0)
    teacher_temperature: float = setting(0.07, above=0)
    warmup_teacher_temperature: float = setting(0.04, above=0)
    teacher_warmup_epochs: int = 30
    center_momentum: float = setting(0.9, least=0, most=1)
    momentum: float = setting(0.996, least=0, most=1)
    freeze_last_layer_epochs: int = 1
    hidden_dim: int = setting(2048, least=1)
    bottleneck_dim: int = setting(256, least=1)
    output_dim: int = setting(65536, least=1)
    head_batch_norm: bool = False


@methods.register("dino", DINOConfig, optimizer="dino", augment="dino")
class DINO(Method):
    """Predict the centred, sharpened output of a momentum teacher from other views, small crops included."""

    view_count = (GLOBAL_VIEWS, None)

    def __init__(self, config: DINOConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_global_views(parts, "DINO")
        self.config = config
        self.head = DINOHead(
            self.backbone.dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.output_dim,
            batch_norm=config.head_batch_norm,
        )
        self.teacher = MomentumEncoder(nn.Sequential(self.backbone, self.head))
        self.center: Tensor
        self.register_buffer("center", torch.zeros(config.output_dim))

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which is the better one; the authors publish it."""
        return cast(Backbone, cast(nn.Sequential, self.teacher.module)[0])

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature in the present epoch."""
        return risen(self.config, self.current_epoch)

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the student's cross-entropy with the teacher's global views, then move the centre."""
        targets = self.teacher(torch.cat([view.image for view in views[:GLOBAL_VIEWS]]))
        student = self.head(self.encode(views).flatten(0, 1)).chunk(len(views))
        loss = dino_loss(
            student,
            targets.chunk(GLOBAL_VIEWS),
            self.center.clone(),
            self.config.student_temperature,
            self.teacher_temperature,
        )
        mean = gather(targets.mean(dim=0, keepdim=True), world()).mean(dim=0)
        self.center.lerp_(mean.to(self.center.dtype), 1 - self.config.center_momentum)
        return StepOutput(loss)

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        momentum = cosine_schedule(self.config.momentum, 1.0, self.progress)
        self.teacher.update(nn.Sequential(self.backbone, self.head), momentum)

    def frozen_parameters(self) -> Iterable[nn.Parameter]:
        """The head's last layer, in the first epochs."""
        return (self.head.weight,) if self.current_epoch < self.config.freeze_last_layer_epochs else ()
