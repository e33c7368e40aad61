"""Settings of the training views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from selfsup.settings import Section, Sides, setting


@dataclass
class AugmentConfig(Section):
    """Which views a batch is turned into.

    Attributes:
        recipe: Name of a recipe (``simclr``, ``moco_v1``, ``moco_v2``, ``byol``, ``swav``, ``dino``, …, or one with
            ``_small``).
        small: Use the recipe's version for small images; None decides by ``data.image_size`` (at most 64).
        sizes: Side of the views, one entry per group; None is ``data.image_size`` for the first group and 3/7 of it
            for a second (96 of 224), rounded to whole patches for a vision transformer.
        counts: Number of views of each size.
        override: Recipe values to replace in every view, by setting: ``{scale: [0.2, 1], hue: 0.2, blur_p: 0.0}``.
        local_override: The same for the views of the second size, over ``override`` (``{scale: [0.1, 0.3]}``).
        operations: What follows the crop, in order: ``[flip, jitter, gray, blur, solarize]``, some of these, or your
            own. How likely and how strong each is, the recipe and ``override`` say. None is the recipe's own order.
        extra: Kornia augmentations inserted before normalisation: ``[{name: RandomErasing, params: {p: 0.5}}]``.
        compile: Compile jitter and grey when the first batch comes; without a working compiler the views are
            made as without it, and a line says so. Pixels differ by rounding alone. None: in trainings so long that
            it pays (``COMPILING_PAYS`` pixels of views and more).
    """

    section: ClassVar[str] = "augment"

    recipe: str = "simclr"
    small: bool | None = None
    sizes: list[Sides] | None = setting(None, least=2)
    counts: list[int] = setting([2], least=1)
    override: dict[str, Any] = field(default_factory=dict)
    local_override: dict[str, Any] = field(default_factory=dict)
    operations: list[str] | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)
    compile: bool | None = None
