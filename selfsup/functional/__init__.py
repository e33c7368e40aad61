"""Pure tensor functions: losses, geometry, diagnostics. They import torch only, keep no state and log nothing."""

from selfsup.functional.contrastive import info_nce, nt_xent
from selfsup.functional.diagnostics import alignment, feature_std, rank_me, uniformity
from selfsup.functional.geometry import location_grid

__all__ = ["alignment", "feature_std", "info_nce", "location_grid", "nt_xent", "rank_me", "uniformity"]
