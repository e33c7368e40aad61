"""Pure tensor functions: losses, geometry, diagnostics. They import torch only, keep no state and log nothing."""

from selfsup.functional.anchoring import gram_distance
from selfsup.functional.assignment import (
    deepcluster_loss,
    dino_loss,
    group_prediction,
    momentum_groups,
    sinkhorn,
    spherical_lloyd,
    swapped_prediction,
    twist_loss,
)
from selfsup.functional.attention import attention_distance, attention_nmi, fourier_log_amplitude, patch_attention
from selfsup.functional.channel_whitening import channel_whiten, channel_whitening_mse, intl_loss, iterative_whiten
from selfsup.functional.contrastive import (
    cross_view_nce,
    info_nce,
    nearest_neighbor,
    nearest_neighbors,
    nt_xent,
    ressl_loss,
    supervised_contrastive,
)
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
from selfsup.functional.distillation import map_distillation, resample_map, similarity_distillation
from selfsup.functional.geometry import location_grid
from selfsup.functional.latent_clusters import chosen_places, positionwise_sinkhorn
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
from selfsup.functional.matching import vicregl_loss
from selfsup.functional.objects import lost, token_cut
from selfsup.functional.prediction import centroid_distance, mec_loss, negative_cosine
from selfsup.functional.reconstruction import (
    layer_target,
    masked_absolute_error,
    masked_smooth_l1,
    masked_squared_error,
    normalize_patches,
    patchify,
    unpatchify,
)
from selfsup.functional.redundancy import barlow_twins_loss, feature_loss, vibcreg_loss, vicreg_loss
from selfsup.functional.saliency import masking_map, similarity_maps, smooth_grad
from selfsup.functional.self_distillation import gram_loss, koleo_loss, masked_cross_entropy
from selfsup.functional.siamese import code_prediction, prior_divergence, sharpened_codes
from selfsup.functional.sketching import sigreg, visreg
from selfsup.functional.spectrum import coding_rate, emp_ssl_loss, frossl_loss, mmcr_loss, tico_loss
from selfsup.functional.whitening import whiten, whitening_mse

__all__ = [
    "alignment",
    "alpha_req",
    "attention_distance",
    "attention_nmi",
    "barlow_twins_loss",
    "block_mask",
    "centroid_distance",
    "channel_whiten",
    "channel_whitening_mse",
    "chosen_places",
    "code_prediction",
    "coding_rate",
    "cross_view_nce",
    "deepcluster_loss",
    "dense_info_nce",
    "dense_match",
    "dino_loss",
    "effective_rank",
    "emp_ssl_loss",
    "feature_loss",
    "feature_std",
    "fourier_log_amplitude",
    "frossl_loss",
    "gram_distance",
    "gram_loss",
    "grid_mask",
    "group_prediction",
    "info_nce",
    "intl_loss",
    "inverse_block_mask",
    "iterative_whiten",
    "kept_index",
    "koleo_loss",
    "layer_target",
    "lidar",
    "linear_cka",
    "location_grid",
    "lost",
    "map_distillation",
    "mask_of",
    "masked_absolute_error",
    "masked_cross_entropy",
    "masked_smooth_l1",
    "masked_squared_error",
    "masking_map",
    "mec_loss",
    "mixed_ratios",
    "mmcr_loss",
    "momentum_groups",
    "multi_block_masks",
    "nearest_neighbor",
    "nearest_neighbors",
    "negative_cosine",
    "normalize_patches",
    "nt_xent",
    "orthogonal_equivariance",
    "patch_attention",
    "patchify",
    "pixcontrast_loss",
    "pixpro_loss",
    "pixpro_mask",
    "positionwise_sinkhorn",
    "prior_divergence",
    "random_mask",
    "rank_me",
    "resample_map",
    "ressl_loss",
    "sharpened_codes",
    "sigreg",
    "similarity_distillation",
    "similarity_maps",
    "singular_values",
    "sinkhorn",
    "smooth_grad",
    "spherical_lloyd",
    "stratified_ratios",
    "supervised_contrastive",
    "swapped_prediction",
    "tico_loss",
    "token_cut",
    "tolerance",
    "twist_loss",
    "uniformity",
    "unpatchify",
    "vibcreg_loss",
    "vicreg_loss",
    "vicregl_loss",
    "visreg",
    "whiten",
    "whitening_mse",
]
