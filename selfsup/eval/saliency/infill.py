"""The few places that, with what they tell of their surroundings, keep the similarity."""

from torch import Tensor

from selfsup.eval.ways import Scene, way
from selfsup.functional.attribution import infill_mask

PASSES = 300


@way("infill")
def infill(scene: Scene) -> Tensor:
    """The few places that keep the similarity when the rest is filled in from them (after FIDO, arXiv:1807.08024)."""
    return infill_mask(scene.score, scene.images, scene.passes(PASSES), generator=scene.generator())
