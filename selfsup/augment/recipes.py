"""What each paper does to an image before the network sees it.

Sources: google-research/simclr, facebookresearch/moco and its CIFAR notebook, deepmind-research/byol,
facebookresearch/swav, dino, dinov2, msn, ijepa, capi, mae and data2vec_vision, bytedance/ibot, microsoft/SimMIM, and
solo-learn's CIFAR configurations. Where an author's code measures the strength in PIL terms, the torchvision argument
of the same meaning is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

import selfsup.augment.operations  # noqa: F401 - registers them
from selfsup.augment.base import OPERATIONS, Drawn, Operation, Part
from selfsup.augment.crop import Crop
from selfsup.errors import UserError
from selfsup.imports import hint
from selfsup.random import uniform
from selfsup.registry import find, nearest

STANDARD = ("flip", "jitter", "gray", "blur", "solarize")
_OLD = "gray_before_jitter"  # what said the order of these two before operations had one


@dataclass(frozen=True, init=False)
class ViewRecipe:
    """Distribution of one view: a crop, and the operations that follow, in order.

    Settings go by the keys of ``augment.override``: ``ViewRecipe(blur_p=0.5)``, ``recipe.blur_p``,
    ``dataclasses.replace(recipe, blur_p=0.1)``. Each class in ``selfsup/augment/operations/`` says what its own mean.
    """

    crop: Crop
    operations: tuple[Operation, ...]

    def __init__(
        self, operations: Iterable[str | Operation] = STANDARD, crop: Crop | None = None, **settings: Any
    ) -> None:
        """Build the recipe.

        Args:
            operations: In order, by name or as they are.
            crop: None is torchvision's default.
            settings: What differs, by key; ``gray_before_jitter`` sets the order of these two.

        Raises:
            UserError: No such operation or setting, one that is named twice, or a value out of range.
        """
        parts: list[Any] = [Crop() if crop is None else crop, *map(_operation, operations)]
        names = [part.name for part in parts]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"augment.operations: '{min(twice)}' is named twice; an operation has one place.")
        if _OLD in settings and {"gray", "jitter"} <= set(names):
            first = settings.pop(_OLD)
            if not isinstance(first, bool):
                raise UserError(f"View recipe: {_OLD} is {first!r}; it must be true or false.")
            gray = parts.pop(names.index("gray"))
            parts.insert([part.name for part in parts].index("jitter") + (not first), gray)
        known = set(chain(*(part.keys() for part in parts)))
        if unknown := next((key for key in settings if key not in known), None):
            raise UserError(f"View recipe: there is no setting '{unknown}'.{nearest(unknown, known)}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        for place, part in enumerate(parts):
            if own := {name: values[key] for key, name in part.keys().items() if key in values}:
                parts[place] = replace(part, **own)
        object.__setattr__(self, "crop", parts[0])
        object.__setattr__(self, "operations", tuple(parts[1:]))

    def __getattr__(self, key: str) -> Any:
        for part in () if key.startswith("_") else (self.crop, *self.operations):
            if name := part.keys().get(key):
                return getattr(part, name)
        raise AttributeError(f"a recipe has no setting '{key}'")

    def draw(
        self, seeds: Sequence[int], index: Tensor, height: int | Tensor, width: int | Tensor
    ) -> tuple[Tensor, dict[str, Drawn]]:
        """Draw the parameters of views of this recipe, view after view.

        They are drawn on the CPU, in float64: the same on every machine, and the subsets that an operation applies to
        are known without waiting for the device.

        Args:
            seeds: One per view; they differ between views and epochs.
            index: int64 ``[N]`` on the CPU. What is drawn for an image of a view depends on its index and the view's
                seed.
            height, width: Size of the source images in pixels: of all, or int64 ``[B]``, view after view.

        Returns:
            int64 ``[B,4]``, the boxes of the crop, and what each operation drew, by its name.
        """
        slots = [part.slots for part in (self.crop, *self.operations)]
        u = torch.cat([uniform(seed, index, [*chain(*slots)]) for seed in seeds])
        crop, *others = torch.split(u, [len(own) for own in slots], dim=1)
        drawn = {o.name: o.draw(own) for o, own in zip(self.operations, others, strict=True)}
        return self.crop.boxes(crop, height, width), drawn


def _operation(named: str | Operation) -> Operation:
    if isinstance(named, Operation):
        return named
    found = find(str(named), OPERATIONS)
    if found not in OPERATIONS:
        raise UserError(
            f"augment.operations: there is no operation '{named}', beside the crop, which always comes first."
            f"{hint() or nearest(str(named), OPERATIONS)}"
        )
    return OPERATIONS[found]()


Recipe = tuple[tuple[ViewRecipe, ...], ...]
"""One entry per size group (global crops, local crops); in it the views of the group, repeated in turn."""


def _like(recipe: ViewRecipe, **settings: Any) -> ViewRecipe:
    return ViewRecipe(recipe.operations, recipe.crop, **settings)


_SIMCLR = ViewRecipe(
    interpolation="bicubic", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_p=0.5
)  # strength 1.0; kernel a tenth of the side, made odd: 23 at 224
_MOCO_V1 = ViewRecipe(("flip", "gray", "jitter", "blur", "solarize"), scale=(0.2, 1.0), jitter_p=1.0, hue=0.4)
_MOCO_V2 = ViewRecipe(scale=(0.2, 1.0), blur_p=0.5)
_BYOL = ViewRecipe(interpolation="bicubic", saturation=0.2, blur_p=1.0)
# ReSSL's key sees a crop and a flip alone.
_WEAK = ViewRecipe(scale=(0.2, 1.0), jitter_p=0.0, gray_p=0.0)
# Global crops as BYOL's; the local ones are smaller and half of them blurred.
_DINO = _like(_BYOL, scale=(0.4, 1.0))
# One distribution for all views but the area of the crop (the table of the authors' README); crops as in torchvision.
_LEJEPA = ViewRecipe(scale=(0.3, 1.0), saturation=0.2, blur_p=0.5, solarize_p=0.2)
_SWAV = ViewRecipe(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_p=0.5)

# SimCLR's CIFAR setting (its README): half the strength and no blur.
_SIMCLR_SMALL = ViewRecipe(interpolation="bicubic")
# MoCo's CIFAR notebook: the default crop of torchvision, v2's colours, no blur.
_MOCO_V2_SMALL = ViewRecipe()
# solo-learn's BYOL on CIFAR: no blur, solarisation kept on the second view.
_BYOL_SMALL = _like(_BYOL, blur_p=0.0)
# Ours, after the small versions above: DINO without blur. The paper's crops suit any size.
_DINO_SMALL = _like(_DINO, blur_p=0.0)
# Ours: LeJEPA without blur.
_LEJEPA_SMALL = _like(_LEJEPA, blur_p=0.0)
# solo-learn's SwAV on CIFAR, which has no local crops. The local scale is ours: the paper's upper end, 0.14, would
# leave 12 of 32 pixels.
_SWAV_SMALL = _like(_SWAV, scale=(0.08, 1.0), interpolation="bicubic")
# W-MSE on CIFAR, STL and Tiny ImageNet. Its authors change the colours before they crop; here the crop comes first.
_WMSE_SMALL = _like(_SIMCLR_SMALL, scale=(0.2, 1.0), gray_p=0.1)
# Colours as DINO's, other crops; small versions are ours, without blur.
_IBOT, _DINOV2 = (_like(_DINO, scale=(least, 1.0)) for least in (0.25, 0.32))
_IBOT_SMALL, _DINOV2_SMALL = (_like(recipe, blur_p=0.0) for recipe in (_IBOT, _DINOV2))
# MSN: the target and the large anchor, and focal views; all blurred half of the time. The small version is ours.
_MSN = ViewRecipe(scale=(0.3, 1.0), blur_p=0.5)
_MSN_SMALL = _like(_MSN, blur_p=0.0)
# I-JEPA changes no colour and mirrors nothing.
_IJEPA = ViewRecipe((), scale=(0.3, 1.0))

# Of masked image modelling: one view that shows most of the image, no colours changed but in data2vec, which jitters
# each image before its crop. MAE's and data2vec's authors resize bicubic, SimMIM's bilinear.
_MAE = ViewRecipe(("flip",), scale=(0.2, 1.0), interpolation="bicubic")
_SIMMIM = ViewRecipe(("flip",), scale=(0.67, 1.0))
_CAPI = ViewRecipe(("flip",), scale=(0.6, 1.0), interpolation="bicubic")
_DATA2VEC = ViewRecipe(("flip", "jitter"), interpolation="bicubic", jitter_p=1.0, hue=0.0)

RECIPES: dict[str, Recipe] = {
    "simclr": ((_SIMCLR,),),
    "moco_v1": ((_MOCO_V1,),),
    "moco_v2": ((_MOCO_V2,),),
    "byol": ((_BYOL, _like(_BYOL, blur_p=0.1, solarize_p=0.2)),),
    "swav": ((_SWAV,), (_like(_SWAV, scale=(0.05, 0.14)),)),
    "dino": (
        (_DINO, _like(_DINO, blur_p=0.1, solarize_p=0.2)),
        (_like(_DINO, scale=(0.05, 0.4), blur_p=0.5),),
    ),
    "lejepa": ((_LEJEPA,), (_like(_LEJEPA, scale=(0.05, 0.3)),)),
    "ibot": (
        (_IBOT, _like(_IBOT, blur_p=0.1, solarize_p=0.2)),
        (_like(_IBOT, scale=(0.05, 0.25), blur_p=0.5),),
    ),
    "dinov2": (
        (_DINOV2, _like(_DINOV2, blur_p=0.1, solarize_p=0.2)),
        (_like(_DINOV2, scale=(0.05, 0.32), blur_p=0.5),),
    ),
    "msn": ((_MSN,), (_like(_MSN, scale=(0.05, 0.3)),)),
    "ijepa": ((_IJEPA,),),
    "wmse": ((_SIMCLR,),),  # on ImageNet-100
    "ressl": ((_MOCO_V2, _WEAK),),
    "mae": ((_MAE,),),
    "simmim": ((_SIMMIM,),),
    "data2vec": ((_DATA2VEC,),),
    "capi": ((_CAPI,),),
    "simclr_small": ((_SIMCLR_SMALL,),),
    "moco_v1_small": ((_MOCO_V1,),),  # has no blur, and the paper's crop suits any size
    "moco_v2_small": ((_MOCO_V2_SMALL,),),
    "wmse_small": ((_WMSE_SMALL,),),
    "ressl_small": ((_MOCO_V2_SMALL, _like(_WEAK, scale=(0.08, 1.0))),),  # without blur
    "byol_small": ((_BYOL_SMALL, _like(_BYOL_SMALL, solarize_p=0.2)),),
    "dino_small": (
        (_DINO_SMALL, _like(_DINO_SMALL, solarize_p=0.2)),
        (_like(_DINO_SMALL, scale=(0.05, 0.4)),),
    ),
    "lejepa_small": ((_LEJEPA_SMALL,), (_like(_LEJEPA_SMALL, scale=(0.05, 0.3)),)),
    "ibot_small": ((_IBOT_SMALL, _like(_IBOT_SMALL, solarize_p=0.2)), (_like(_IBOT_SMALL, scale=(0.05, 0.25)),)),
    "dinov2_small": (
        (_DINOV2_SMALL, _like(_DINOV2_SMALL, solarize_p=0.2)),
        (_like(_DINOV2_SMALL, scale=(0.05, 0.32)),),
    ),
    "msn_small": ((_MSN_SMALL,), (_like(_MSN_SMALL, scale=(0.05, 0.3)),)),
    "swav_small": ((_SWAV_SMALL,), (_like(_SWAV_SMALL, scale=(0.05, 0.3)),)),
}


def view_recipes(
    name: str,
    counts: Sequence[int],
    override: Mapping[str, Any] | None = None,
    local_override: Mapping[str, Any] | None = None,
    operations: Sequence[str] | None = None,
) -> list[ViewRecipe]:
    """Return the recipe of each view.

    Args:
        name: A key of ``RECIPES``.
        counts: Number of views in each size group.
        override: Values that replace the recipe's in every view, by key.
        local_override: The same for the views of the second size, over ``override``.
        operations: What follows the crop, in order; None is the recipe's own order.

    Raises:
        UserError: No such recipe, operation or key, a value out of range, or more size groups than the recipe has.
    """
    if name not in RECIPES:
        raise UserError(f"augment.recipe: there is no recipe '{name}'.{nearest(name, RECIPES)}")
    groups = RECIPES[name]
    if len(counts) > len(groups):
        several = ", ".join(sorted(key for key, value in RECIPES.items() if len(value) > 1))
        raise UserError(
            f"augment.sizes: recipe '{name}' describes {len(groups)} size(s) of crop and {len(counts)} are asked for; "
            f"choose a recipe with more ({several}) or fewer sizes."
        )
    order = None if operations is None else [_operation(word).name for word in operations]
    changes = _changes("override", override or {}, order)
    local_changes = {**changes, **_changes("local_override", local_override or {}, order)}
    recipes = []
    for number, (group, count) in enumerate(zip(groups, counts, strict=False)):
        for position in range(count):
            recipe = group[position % len(group)]
            own = {o.name: o for o in recipe.operations}
            parts = recipe.operations if order is None else [own.get(word, word) for word in order]
            recipes.append(ViewRecipe(parts, recipe.crop, **(local_changes if number else changes)))
    happening = {o.name for recipe in recipes for o in recipe.operations if o.p > 0}
    if never := [word for word in order or () if word not in happening]:
        message = f"augment.operations: the probability of {' and '.join(never)} is 0"
        warnings.warn(f"{message}; augment.override.{never[0]}_p sets it.", stacklevel=2)
    return recipes


def _changes(setting: str, values: Mapping[str, Any], order: Sequence[str] | None) -> dict[str, Any]:
    """Return those settings of an override whose operation is there."""
    kinds: list[type[Part]] = [Crop, *OPERATIONS.values()]
    owners = {key: kind.name for kind in kinds for key in list(kind.keys())} | {_OLD: ""}
    there = {Crop.name, *(STANDARD if order is None else order), *([""] if order is None else [])}
    for key in values:
        if key not in owners:
            raise UserError(f"augment.{setting}: a recipe has no '{key}'.{hint() or nearest(key, owners)}")
        if owners[key] not in there and order is None:
            raise UserError(f"augment.{setting}.{key}: augment.operations must name '{owners[key]}', and its place.")
    if order is None and _OLD in values:
        colours = "gray, jitter" if values[_OLD] else "jitter, gray"
        now = f"augment.operations=[flip, {colours}, blur, solarize]"
        warnings.warn(f"augment.{setting}.{_OLD} is {now} now; the old key goes on working.", stacklevel=3)
    if idle := [key for key in values if owners[key] not in there]:
        why = "as augment.operations leaves their operations out"
        warnings.warn(f"augment.{setting} is not used for {', '.join(idle)}, {why}.", stacklevel=3)
    return {key: value for key, value in values.items() if key not in idle}
