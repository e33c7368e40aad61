"""Views of a batch, made on the training device: recipes, the view generator and its operations."""

from selfsup.augment.base import OPERATIONS, Operation, operation
from selfsup.augment.config import AugmentConfig
from selfsup.augment.figure import save_views_figure
from selfsup.augment.generator import IMAGENET, ViewGenerator, build_views, colors_left_out, multi_crop, two_crop
from selfsup.augment.recipes import RECIPES, ViewRecipe
from selfsup.random import fold_in
from selfsup.types import View

__all__ = [
    "IMAGENET",
    "OPERATIONS",
    "RECIPES",
    "AugmentConfig",
    "Operation",
    "View",
    "ViewGenerator",
    "ViewRecipe",
    "build_views",
    "colors_left_out",
    "fold_in",
    "multi_crop",
    "operation",
    "save_views_figure",
    "two_crop",
]
