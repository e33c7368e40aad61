"""The exact shares of the cells of the last feature map."""

from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.eval.ways import Scene, way
from selfsup.functional.saliency import similarity_maps


@way("similarity", complete=True)
def similarity(scene: Scene) -> Tensor:
    """The cosine split exactly over the cells of the last map, of networks that pool by the mean (arXiv:1901.00536)."""
    network: Any = scene.network
    if not hasattr(network, "forward_dense"):
        raise UserError("the network has no feature map (forward_dense)")
    with torch.no_grad():
        maps = network.forward_dense(scene.images).float()
        pooled = network(scene.images).float()
    if not torch.allclose(maps.mean((2, 3)), pooled, rtol=1e-3, atol=1e-3 * float(pooled.abs().max())):
        raise UserError("the network's feature is not the mean of its map")
    return similarity_maps(maps, scene.target[:, :, None, None])[0]
