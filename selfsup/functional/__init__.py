"""Pure tensor functions: losses, geometry, diagnostics. They import torch only, keep no state and log nothing."""

from selfsup.functional.clustering import dino_loss, sinkhorn, swapped_prediction
from selfsup.functional.contrastive import cross_view_nce, info_nce, nearest_neighbor, nt_xent, supervised_contrastive
from selfsup.functional.dense import dense_info_nce, dense_match, pixcontrast_loss, pixpro_loss, pixpro_mask
from selfsup.functional.diagnostics import (
    alignment,
    feature_std,
    rank_me,
    uniformity,
)
from selfsup.functional.geometry import location_grid
from selfsup.functional.prediction import negative_cosine
from selfsup.functional.redundancy import barlow_twins_loss, vicreg_loss
from selfsup.functional.whitening import whiten, whitening_mse

__all__ = [
    "alignment",
    "barlow_twins_loss",
    "cross_view_nce",
    "dense_info_nce",
    "dense_match",
    "dino_loss",
    "feature_std",
    "info_nce",
    "location_grid",
    "nearest_neighbor",
    "negative_cosine",
    "nt_xent",
    "pixcontrast_loss",
    "pixpro_loss",
    "pixpro_mask",
    "rank_me",
    "sinkhorn",
    "supervised_contrastive",
    "swapped_prediction",
    "uniformity",
    "vicreg_loss",
    "whiten",
    "whitening_mse",
]
