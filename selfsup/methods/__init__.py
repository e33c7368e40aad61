"""Methods. Importing this package registers all of them."""

from selfsup.methods.base import Method, MethodConfig, Parts
from selfsup.methods.moco import MoCo, MoCoConfig
from selfsup.methods.simclr import SimCLR, SimCLRConfig

__all__ = ["Method", "MethodConfig", "MoCo", "MoCoConfig", "Parts", "SimCLR", "SimCLRConfig"]
