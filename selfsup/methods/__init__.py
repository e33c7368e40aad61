"""Methods. Importing this package registers all of them."""

from selfsup.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig
from selfsup.methods.base import Method, MethodConfig, Parts
from selfsup.methods.byol import BYOL, BYOLConfig
from selfsup.methods.densecl import DenseCL, DenseCLConfig
from selfsup.methods.dino import DINO, DINOConfig
from selfsup.methods.moco import MoCo, MoCoConfig, MoCoV1Config
from selfsup.methods.moco_v3 import MoCoV3, MoCoV3Config
from selfsup.methods.nnclr import NNCLR, NNCLRConfig
from selfsup.methods.pixcontrast import PixContrast, PixContrastConfig
from selfsup.methods.pixpro import PixPro, PixProConfig
from selfsup.methods.simclr import SimCLR, SimCLRConfig
from selfsup.methods.simsiam import SimSiam, SimSiamConfig
from selfsup.methods.supcon import SupCon, SupConConfig
from selfsup.methods.swav import SwAV, SwAVConfig
from selfsup.methods.vicreg import VICReg, VICRegConfig
from selfsup.methods.wmse import WMSE, WMSEConfig

__all__ = [
    "BYOL",
    "DINO",
    "NNCLR",
    "WMSE",
    "BYOLConfig",
    "BarlowTwins",
    "BarlowTwinsConfig",
    "DINOConfig",
    "DenseCL",
    "DenseCLConfig",
    "Method",
    "MethodConfig",
    "MoCo",
    "MoCoConfig",
    "MoCoV1Config",
    "MoCoV3",
    "MoCoV3Config",
    "NNCLRConfig",
    "Parts",
    "PixContrast",
    "PixContrastConfig",
    "PixPro",
    "PixProConfig",
    "SimCLR",
    "SimCLRConfig",
    "SimSiam",
    "SimSiamConfig",
    "SupCon",
    "SupConConfig",
    "SwAV",
    "SwAVConfig",
    "VICReg",
    "VICRegConfig",
    "WMSEConfig",
]
