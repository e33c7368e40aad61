"""The smallest mask whose blurring lowers the similarity."""

from torch import Tensor

from selfsup.eval.ways import Scene, way
from selfsup.functional.attribution import deletion_mask

PASSES = 300


@way("deletion")
def deletion(scene: Scene) -> Tensor:
    """The smallest smooth mask whose blurring lowers the similarity most (meaningful perturbation, 1704.03296)."""
    return deletion_mask(scene.score, scene.images, scene.passes(PASSES))
