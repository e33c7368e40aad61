"""One file a protocol; each registers itself, and this folder is walked."""

from selfsup.eval.registry import PROTOCOLS
from selfsup.registry import import_files

__all__ = ["PROTOCOLS"]

import_files(__name__, __path__)
