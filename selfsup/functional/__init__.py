"""Pure tensor functions: losses, geometry, diagnostics. They import torch only, keep no state and log nothing."""

from selfsup.functional.clustering import dino_loss, sinkhorn, swapped_prediction
from selfsup.functional.contrastive import cross_view_nce, info_nce, nearest_neighbor, nt_xent, supervised_contrastive
from selfsup.functional.diagnostics import (
    alignment,
    feature_std,
    rank_me,
    uniformity,
)
from selfsup.functional.geometry import location_grid
from selfsup.functional.redundancy import barlow_twins_loss, vicreg_loss
from selfsup.functional.whitening import whiten, whitening_mse

__all__ = [
    "alignment",
    "barlow_twins_loss",
    "cross_view_nce",
    "dino_loss",
    "feature_std",
    "info_nce",
    "location_grid",
    "nearest_neighbor",
    "nt_xent",
    "rank_me",
    "sinkhorn",
    "supervised_contrastive",
    "swapped_prediction",
    "uniformity",
    "vicreg_loss",
    "whiten",
    "whitening_mse",
]
