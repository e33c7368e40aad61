"""Random masks: nothing but the values of the score is used."""

from torch import Tensor

from selfsup.eval.ways import Scene, way
from selfsup.functional.saliency import masking_map

PASSES = 1000


@way("masking")
def masking(scene: Scene) -> Tensor:
    """What seeing a place adds to the similarity, over random masks; a black box will do (RISE, D-RISE: 2006.03204)."""
    return masking_map(scene.score, scene.images, scene.passes(PASSES, 2), generator=scene.generator())
