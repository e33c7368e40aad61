"""Gradients by the pixels and by every bias, which together are the whole score."""

from typing import Any

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.eval.ways import Scene, way
from selfsup.functional.attribution import spread

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
TOLERANCE = 1e-3


@way("fullgrad", complete=True)
def fullgrad(scene: Scene) -> Tensor:
    """Gradient times pixel plus gradient times bias of every layer; sums to the similarity (FullGrad, 1905.00780).

    The parts are added with their sign, so that nothing is lost; the paper's picture takes absolute values of each,
    which gives the sum up. A network with another activation than ReLU, or with attention, is not linear piece by
    piece; its parts do not sum to the score, and it is refused. A bias after the pooling has no place and is shared
    out evenly.
    """
    size = (scene.images.shape[2], scene.images.shape[3])
    whole, parts = gradient_parts(scene)
    area = size[0] * size[1]
    total = whole.sum(1)
    for part in parts:
        if part.ndim == 3 and all(have <= full for have, full in zip(part.shape[1:], size, strict=True)):
            total = total + spread(part, size)
        else:
            total = total + part.flatten(1).sum(1)[:, None, None] / area
    with torch.no_grad():
        value = scene.score(scene.images)
    error = ((total.sum((1, 2)) - value).abs() / value.abs().clamp_min(0.1)).max().item()
    if error > TOLERANCE:
        raise UserError(
            f"the network is not linear piece by piece: gradients by pixels and biases miss the similarity by "
            f"{100 * error:.1f} %"
        )
    return total


def gradient_parts(scene: Scene) -> tuple[Tensor, list[Tensor]]:
    """Return ``∇ₓs ⊙ x`` ``[B,C,H,W]``, and ``Σ_c ∇_b s ⊙ b`` of each layer with a bias, ``[B,h,w]`` or ``[B]``.

    s is :meth:`Scene.linear_score`. BatchNorm's bias is that of the whole affine map: ``β - γ μ / σ``.
    """
    score = scene.linear_score()
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        bias = _bias(module)
        if bias is None or not isinstance(output, Tensor):
            return None
        kept.append((output, bias))
        return output.clone()  # what follows may work in place

    layers = [m for m in scene.network.modules() if isinstance(m, (nn.Conv2d, nn.Linear, NORMS))]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with torch.enable_grad():
            images = scene.images.detach().clone().requires_grad_()
            value = score(images).sum()
            outputs = [output for output, _ in kept]
            gradients: Any = torch.autograd.grad(value, [images, *outputs], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    parts = []
    for (_, bias), gradient in zip(kept, gradients[1:], strict=True):
        if gradient is None:
            continue
        channels = 1 if gradient.ndim in (2, 4) else gradient.ndim - 1
        shape = [1] * gradient.ndim
        shape[channels] = -1
        parts.append((gradient * bias.detach().view(shape)).sum(channels))
    return (gradients[0] * images).detach(), parts


def _bias(module: Any) -> Tensor | None:
    if not isinstance(module, NORMS):
        bias: Tensor | None = module.bias
        return bias
    if module.running_mean is None or module.running_var is None:
        return None
    slope = (module.running_var + module.eps).rsqrt()
    slope = slope if module.weight is None else slope * module.weight
    shift: Tensor = -module.running_mean * slope
    if module.bias is not None:
        shift = shift + module.bias
    return shift
