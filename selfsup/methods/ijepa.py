"""I-JEPA: from one part of an image predict what the teacher makes of four other parts.

The student sees the patches of a large block without four smaller ones. From what it makes of them a narrow
transformer, asked for the places of a smaller block, predicts the features that the teacher, which sees the whole
image, has there. Nothing is contrasted and no colour is changed; the moving average and the predictor alone keep it
from collapse. Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",
2023. Read: facebookresearch/ijepa, 52c1ae9.

As in the authors' code the loss is smooth-L1 (the paper writes the squared distance), targets are layer-normed without
weights, and the teacher's momentum rises to 1 along a line. The feature is the mean of the teacher's patch tokens
(``backbone=vit_small_mean``); they have no class token (``backbone.kwargs.class_token=false``).

Deviations: blocks reach every row and column, and the contexts of a batch are cut at random to its smallest, see
``multi_block_masks``: of the whole batch, where the authors cut those of each GPU. Linear layers of the predictor start
uniform by Xavier and Glorot, and none is scaled down with depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import kept_index, multi_block_masks
from selfsup.functional.arguments import full_precision
from selfsup.functional.collectives import rank_of
from selfsup.methods.base import Method, MethodConfig
from selfsup.methods.masked import check_pooling
from selfsup.methods.parts import Parts
from selfsup.nn import Backbone, MomentumEncoder, TokenTransformer, token_grid
from selfsup.optimization import linear_schedule
from selfsup.registry import methods
from selfsup.settings import setting
from selfsup.types import Batch, StepOutput, View


@dataclass
class IJEPAConfig(MethodConfig):
    """I-JEPA's settings, with the paper's defaults for ViT-H.

    Attributes:
        targets: Blocks to predict.
        target_scale: Range of a block's share of the patches.
        target_aspect: Range of its height over width.
        context_scale: Range of the share of the block that the student sees, before the targets are taken out.
        min_context: Patches that the student should see.
        momentum: Share of the old teacher that the first step keeps; it rises to 1 along a line.
        predictor_width: Channels of the predictor, a multiple of four and of its heads.
        predictor_depth: Blocks of the predictor; 6 for ViT-B.
        predictor_heads: Attention heads of the predictor.
    """

    name: str = "ijepa"
    targets: int = setting(4, least=1)
    target_scale: list[float] = setting([0.15, 0.2], above=0, most=1)
    target_aspect: list[float] = setting([0.75, 1.5], above=0)
    context_scale: list[float] = setting([0.85, 1.0], above=0, most=1)
    min_context: int = setting(10, least=1)
    momentum: float = setting(0.996, least=0, most=1)
    predictor_width: int = setting(384, least=4)
    predictor_depth: int = setting(12, least=1)
    predictor_heads: int = setting(12, least=1)


@methods.register("ijepa", IJEPAConfig, optimizer="ijepa", augment="ijepa", backbone="vit_small_mean")
class IJEPA(Method):
    """Predict a teacher's features of blocks from those of the rest of the image."""

    view_count = (1, 1)
    couples_images = True  # by the sizes of the blocks, which a batch has in common

    def __init__(self, config: IJEPAConfig, parts: Parts) -> None:
        super().__init__(parts)
        check_pooling(parts, "I-JEPA")
        self.config = config
        self.grid = token_grid(self.backbone.network, parts.views.sizes[0])
        _check(config, self.grid)
        dim, width = self.backbone.dim, config.predictor_width
        self.predictor = TokenTransformer(
            dim, dim, self.grid, width, config.predictor_depth, config.predictor_heads, "query"
        )
        self.teacher = MomentumEncoder(self.backbone, evaluates=True)

    @property
    def evaluated_backbone(self) -> Backbone:
        """The teacher's, which the authors evaluate."""
        return self.teacher.module  # type: ignore[return-value]

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the smooth L1 distance of the predicted features of the blocks from the teacher's."""
        config, images = self.config, views[0].image
        count, first = len(images), rank_of(world()) * len(images)
        masks = multi_block_masks(
            self.draw_whole(count),
            self.grid,
            config.targets,
            (config.target_scale[0], config.target_scale[1]),
            (config.target_aspect[0], config.target_aspect[1]),
            (config.context_scale[0], config.context_scale[1]),
            config.min_context,
        )
        hidden, blocks = (mask[first : first + count] for mask in masks)
        keep = kept_index(hidden).to(images.device)
        place = kept_index(~blocks.flatten(0, 1)).view(count, config.targets, -1).to(images.device)
        patches = full_precision(self.teacher.forward_tokens(images).patches)
        target = F.layer_norm(patches, patches.shape[-1:])
        wanted = target[torch.arange(count, device=images.device)[:, None, None], place]
        seen = self.backbone.forward_tokens(images, keep=keep)
        prediction = full_precision(self.predictor(seen.patches, keep, place))
        loss = F.smooth_l1_loss(prediction, wanted)
        return StepOutput(loss, {"target_std": target.std(dim=0).mean(), "context": torch.tensor(float(keep.shape[1]))})

    def after_optimizer_step(self) -> None:
        """Let the teacher follow."""
        self.teacher.update(self.backbone, linear_schedule(self.config.momentum, 1.0, self.progress))


def _check(config: IJEPAConfig, grid: tuple[int, int]) -> None:
    for name in ("target_scale", "target_aspect", "context_scale"):
        value = getattr(config, name)
        if len(value) != 2 or value[0] > value[1]:
            raise UserError(f"method.{name}={value} must be two numbers, the lower first.")
    if min(grid) < 2:
        raise UserError(
            f"method=ijepa: views have {grid[0]}×{grid[1]} patches, too few for a block and a context; take smaller "
            "patches (backbone.kwargs.patch_size) or larger views."
        )
