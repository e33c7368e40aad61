"""Parts of methods: backbones, heads, momentum encoder, queue, split BatchNorm."""

from selfsup.nn.adapters import AdaptedLinear, adapt, merge
from selfsup.nn.backbone import Backbone, BackboneConfig
from selfsup.nn.batch_norm import SplitBatchNorm2d, batch_statistics, shuffle, split_batch_norm, unshuffle
from selfsup.nn.building import any_size, build_backbone, idle_settings, side_step
from selfsup.nn.dense import DenseEncoder, PixelPropagation, check_dense, dense_head
from selfsup.nn.dino_head import DINOHead
from selfsup.nn.freezing import freeze
from selfsup.nn.heads import projection_head
from selfsup.nn.memory import ImageMemory, ImageNumbers
from selfsup.nn.mixture import NeighborMixture
from selfsup.nn.momentum import MomentumEncoder
from selfsup.nn.prototypes import CosinePrototypes, Prototypes
from selfsup.nn.queue import FeatureQueue
from selfsup.nn.recompute import in_chunks, unchanged_statistics
from selfsup.nn.subset_depth import SubsetBlock, drop_images
from selfsup.nn.teacher import Teacher
from selfsup.nn.token_transformer import TokenTransformer
from selfsup.nn.tokens import MaskToken, Tokens, check_tokens, fix_positions, token_grid, token_stride
from selfsup.nn.wrap import give_backbone, own_backbone, wrap_backbone

__all__ = [
    "AdaptedLinear",
    "Backbone",
    "BackboneConfig",
    "CosinePrototypes",
    "DINOHead",
    "DenseEncoder",
    "FeatureQueue",
    "ImageMemory",
    "ImageNumbers",
    "MaskToken",
    "MomentumEncoder",
    "NeighborMixture",
    "PixelPropagation",
    "Prototypes",
    "SplitBatchNorm2d",
    "SubsetBlock",
    "Teacher",
    "TokenTransformer",
    "Tokens",
    "adapt",
    "any_size",
    "batch_statistics",
    "build_backbone",
    "check_dense",
    "check_tokens",
    "dense_head",
    "drop_images",
    "fix_positions",
    "freeze",
    "give_backbone",
    "idle_settings",
    "in_chunks",
    "merge",
    "own_backbone",
    "projection_head",
    "shuffle",
    "side_step",
    "split_batch_norm",
    "token_grid",
    "token_stride",
    "unchanged_statistics",
    "unshuffle",
    "wrap_backbone",
]
