"""What each paper does to an image before the network sees it.

Sources: google-research/simclr, facebookresearch/moco and its CIFAR notebook, deepmind-research/byol,
facebookresearch/swav and dino, and solo-learn's CIFAR configurations. Where an author's code measures the strength in
PIL terms, the torchvision argument of the same meaning is given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from selfsup.errors import UserError
from selfsup.registry import nearest

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class ViewRecipe:
    """Distribution of one view.

    Attributes:
        scale: Range of the crop's area as a fraction of the image, drawn uniformly.
        ratio: Range of the crop's width over its height, drawn log-uniformly.
        interpolation: ``bilinear`` or ``bicubic``, both antialiased.
        flip_p: Probability of a left-right mirror.
        jitter_p: Probability that brightness, contrast, saturation and hue change, in random order.
        brightness, contrast, saturation: The factor is uniform in [max(0, 1 - value), 1 + value].
        hue: The shift is uniform in [-value, value] turns of the colour circle; at most 0.5.
        gray_p: Probability of a grey image.
        gray_before_jitter: Grey comes before the jitter in place of after it.
        blur_p: Probability of a Gaussian blur.
        blur_sigma: Range in pixels of the standard deviation, drawn uniformly.
        blur_kernel: Side of the blur's window as a fraction of the view's, made odd and at least 3 pixels.
        solarize_p: Probability that values at or above ``solarize_threshold`` are inverted.
        solarize_threshold: In [0, 1].
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    flip_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    gray_p: float = 0.2
    gray_before_jitter: bool = False
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: float = 0.1
    solarize_p: float = 0.0
    solarize_threshold: float = 0.5

    def __post_init__(self) -> None:
        def check(name: str, fits: bool, wanted: str) -> None:
            if not fits:
                raise UserError(f"View recipe: {name} is {getattr(self, name)!r}; it must be {wanted}.")

        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                check(field.name, isinstance(value, bool), "true or false")
            elif isinstance(field.default, float):
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                check(field.name, number and value >= 0, "a number, at least 0")
            elif isinstance(field.default, tuple):
                pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(x, (int, float)) for x in value)
                check(field.name, pair and 0 < value[0] <= value[1], "a pair: low and high, above 0")
            if field.name.endswith("_p"):
                check(field.name, value <= 1, "a probability, at most 1")
        check("scale", self.scale[1] <= 1, "a pair of fractions, at most 1")
        check("interpolation", self.interpolation in get_args(Interpolation), "'bilinear' or 'bicubic'")
        check("hue", self.hue <= 0.5, "at most 0.5 turns")
        check("blur_kernel", self.blur_kernel <= 1, "a fraction of the view's side, at most 1")
        check("solarize_threshold", self.solarize_threshold <= 1, "in [0, 1]")


Recipe = tuple[tuple[ViewRecipe, ...], ...]
"""One entry per size group (global crops, local crops); in it the views of the group, repeated in turn."""

_SIMCLR = ViewRecipe(
    interpolation="bicubic", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_p=0.5
)  # strength 1.0; kernel a tenth of the side, made odd: 23 at 224
_MOCO_V1 = ViewRecipe(scale=(0.2, 1.0), jitter_p=1.0, hue=0.4, gray_before_jitter=True)
_MOCO_V2 = ViewRecipe(scale=(0.2, 1.0), blur_p=0.5)
_BYOL = ViewRecipe(interpolation="bicubic", saturation=0.2, blur_p=1.0)
# Global crops as BYOL's; the local ones are smaller and half of them blurred.
_DINO = replace(_BYOL, scale=(0.4, 1.0))
_SWAV = ViewRecipe(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur_p=0.5)

# SimCLR's CIFAR setting (its README): half the strength and no blur.
_SIMCLR_SMALL = ViewRecipe(interpolation="bicubic")
# MoCo's CIFAR notebook: the default crop of torchvision, v2's colours, no blur.
_MOCO_V2_SMALL = ViewRecipe()
# solo-learn's BYOL on CIFAR: no blur, solarisation kept on the second view.
_BYOL_SMALL = replace(_BYOL, blur_p=0.0)
# Ours, after the small versions above: DINO without blur. The paper's crops suit any size.
_DINO_SMALL = replace(_DINO, blur_p=0.0)
# solo-learn's SwAV on CIFAR, which has no local crops. The local scale is ours: the paper's upper end, 0.14, would
# leave 12 of 32 pixels.
_SWAV_SMALL = replace(_SWAV, scale=(0.08, 1.0), interpolation="bicubic")
# W-MSE on CIFAR, STL and Tiny ImageNet. Its authors change the colours before they crop; here the crop comes first.
_WMSE_SMALL = replace(_SIMCLR_SMALL, scale=(0.2, 1.0), gray_p=0.1)

RECIPES: dict[str, Recipe] = {
    "simclr": ((_SIMCLR,),),
    "moco_v1": ((_MOCO_V1,),),
    "moco_v2": ((_MOCO_V2,),),
    "byol": ((_BYOL, replace(_BYOL, blur_p=0.1, solarize_p=0.2)),),
    "swav": ((_SWAV,), (replace(_SWAV, scale=(0.05, 0.14)),)),
    "dino": (
        (_DINO, replace(_DINO, blur_p=0.1, solarize_p=0.2)),
        (replace(_DINO, scale=(0.05, 0.4), blur_p=0.5),),
    ),
    "wmse": ((_SIMCLR,),),  # on ImageNet-100
    "simclr_small": ((_SIMCLR_SMALL,),),
    "moco_v1_small": ((_MOCO_V1,),),  # has no blur, and the paper's crop suits any size
    "moco_v2_small": ((_MOCO_V2_SMALL,),),
    "wmse_small": ((_WMSE_SMALL,),),
    "byol_small": ((_BYOL_SMALL, replace(_BYOL_SMALL, solarize_p=0.2)),),
    "dino_small": (
        (_DINO_SMALL, replace(_DINO_SMALL, solarize_p=0.2)),
        (replace(_DINO_SMALL, scale=(0.05, 0.4)),),
    ),
    "swav_small": ((_SWAV_SMALL,), (replace(_SWAV_SMALL, scale=(0.05, 0.3)),)),
}


def view_recipes(
    name: str,
    counts: Sequence[int],
    override: Mapping[str, Any] | None = None,
    local_override: Mapping[str, Any] | None = None,
) -> list[ViewRecipe]:
    """Return the recipe of each view.

    Args:
        name: A key of ``RECIPES``.
        counts: Number of views in each size group.
        override: Values that replace the recipe's in every view, by field name of ``ViewRecipe``.
        local_override: The same for the views of the second size, over ``override``.

    Raises:
        UserError: No such recipe or field, a value out of range, or more size groups than the recipe describes.
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
    changes = _changes("override", override)
    local_changes = {**changes, **_changes("local_override", local_override)}
    return [
        replace(group[position % len(group)], **(local_changes if number else changes))
        for number, (group, count) in enumerate(zip(groups, counts, strict=False))
        for position in range(count)
    ]


def _changes(setting: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return overrides as ``ViewRecipe`` takes them."""
    fields = {field.name for field in dataclasses.fields(ViewRecipe)}
    for key in values or {}:
        if key not in fields:
            raise UserError(f"augment.{setting}: a recipe has no '{key}'.{nearest(key, fields)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in (values or {}).items()}
