"""The ways to find what a similarity comes from: one file each. Importing this registers all of them."""

from selfsup.eval.ways import WAYS, way
from selfsup.registry import import_files

__all__ = ["WAYS", "way"]

import_files(__name__, __path__)
