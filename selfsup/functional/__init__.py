"""Pure tensor functions: losses, geometry, diagnostics. They import torch only, keep no state and log nothing."""

from selfsup.functional.anchoring import gram_distance
from selfsup.functional.assignment import dino_loss, sinkhorn, swapped_prediction
from selfsup.functional.attention import attention_distance, attention_nmi, fourier_log_amplitude, patch_attention
from selfsup.functional.contrastive import cross_view_nce, info_nce, nearest_neighbor, nt_xent, supervised_contrastive
from selfsup.functional.dense import dense_info_nce, dense_match, pixcontrast_loss, pixpro_loss, pixpro_mask
from selfsup.functional.diagnostics import (
    alignment,
    alpha_req,
    effective_rank,
    feature_std,
    lidar,
    linear_cka,
    orthogonal_equivariance,
    rank_me,
    singular_values,
    tolerance,
    uniformity,
)
from selfsup.functional.geometry import location_grid
from selfsup.functional.masks import (
    block_mask,
    grid_mask,
    inverse_block_mask,
    kept_index,
    mask_of,
    mixed_ratios,
    multi_block_masks,
    random_mask,
    stratified_ratios,
)
from selfsup.functional.prediction import negative_cosine
from selfsup.functional.redundancy import barlow_twins_loss, vicreg_loss
from selfsup.functional.saliency import masking_map, similarity_maps, smooth_grad
from selfsup.functional.self_distillation import gram_loss, koleo_loss, masked_cross_entropy
from selfsup.functional.whitening import whiten, whitening_mse

__all__ = [
    "alignment",
    "alpha_req",
    "attention_distance",
    "attention_nmi",
    "barlow_twins_loss",
    "block_mask",
    "cross_view_nce",
    "dense_info_nce",
    "dense_match",
    "dino_loss",
    "effective_rank",
    "feature_std",
    "fourier_log_amplitude",
    "gram_distance",
    "gram_loss",
    "grid_mask",
    "info_nce",
    "inverse_block_mask",
    "kept_index",
    "koleo_loss",
    "lidar",
    "linear_cka",
    "location_grid",
    "mask_of",
    "masked_cross_entropy",
    "masking_map",
    "mixed_ratios",
    "multi_block_masks",
    "nearest_neighbor",
    "negative_cosine",
    "nt_xent",
    "orthogonal_equivariance",
    "patch_attention",
    "pixcontrast_loss",
    "pixpro_loss",
    "pixpro_mask",
    "random_mask",
    "rank_me",
    "similarity_maps",
    "singular_values",
    "sinkhorn",
    "smooth_grad",
    "stratified_ratios",
    "supervised_contrastive",
    "swapped_prediction",
    "tolerance",
    "uniformity",
    "vicreg_loss",
    "whiten",
    "whitening_mse",
]
