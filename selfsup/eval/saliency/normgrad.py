"""Activation times gradient of every stage, put together over the stages."""

from typing import Any

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.eval.stages import stages
from selfsup.eval.ways import Scene, way
from selfsup.functional.attribution import norm_grad, spread


@way("normgrad")
def normgrad(scene: Scene) -> Tensor:
    """‖activation‖ · ‖gradient‖ of each stage, scaled to [0, 1], their geometric mean (NormGrad, arXiv:2004.02866).

    The paper multiplies the stages; the root, which changes no order, keeps more than the largest values visible.
    """
    network: Any = getattr(scene.network, "network", scene.network)
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            return None
        kept.append(output)
        return output.clone()  # what follows may work in place

    found = stages(scene.network)
    handles = [module.register_forward_hook(keep) for module, _ in found.values()]
    try:
        with torch.enable_grad():
            images = scene.images.detach().clone().requires_grad_()
            value = scene.score(images).sum()
            gradients: Any = torch.autograd.grad(value, kept, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    size = (images.shape[2], images.shape[3])
    together = torch.ones(len(images), *size, dtype=torch.float32, device=images.device)
    widths = [channels for _, channels in found.values()]
    used = 0
    for output, gradient in zip(kept, gradients, strict=True):
        if gradient is None:
            continue
        activation, slope = (_as_map(x.detach().float(), network, widths) for x in (output, gradient))
        if activation.shape[2] > size[0] or activation.shape[3] > size[1]:
            continue
        one = spread(norm_grad(activation, slope), size)
        low, high = one.amin((1, 2), keepdim=True), one.amax((1, 2), keepdim=True)
        together = together * (one - low) / (high - low).clamp_min(1e-30)
        used += 1
    if not used:
        raise UserError("no stage of the network gives maps or tokens")
    return together ** (1 / used)


def _as_map(output: Tensor, network: Any, widths: list[int | None]) -> Tensor:
    """Return tokens or channels-last maps as ``[B,D,h,w]``."""
    if output.ndim == 4:
        last = output.shape[3] in widths and output.shape[1] not in widths
        return output.permute(0, 3, 1, 2) if last else output
    tokens = output[:, int(getattr(network, "num_prefix_tokens", 0)) :]
    rows, columns = network.patch_embed.grid_size
    return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, columns)
