"""TrAct: steps of the first layer that move its outputs as their gradient says, whatever the statistics of the images.

The gradient of a first layer's weight is large for images that are bright or rich in contrast and small for others,
though the rest of the network sees the layer's outputs alone. Petersen, Borgelt and Ermon (2024), "TrAct: Making
First-layer Pre-Activations Trainable", arXiv 2410.23970.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from selfsup.distributed import world
from selfsup.errors import UserError

VALUES_AT_A_TIME = 2**24  # numbers of unfolded patches: 64 MiB


class TrAct:
    r"""Multiplies the gradient of the first layer's weight by the inverse of the second moments of the layer's inputs.

    .. math:: G^T a \left(\frac{a^T a}{b} + \lambda I\right)^{-1}

    with the inputs ``a`` ``[b,n]``, for a convolution the patches at all positions of all images, and the gradient
    ``G`` ``[b,out]`` of the outputs. The gradient of the bias stays as it is. ``a`` is of all images of a step: of all
    its views, accumulated batches and ranks. (The authors' code takes each call of the layer on each rank by itself.)

    Args:
        network: Its first convolution or linear layer is the first layer.
        damping: ``λ``, 0.1 in the paper.

    Raises:
        UserError: The network has no such layer, or one whose weight this does not hold for.
    """

    def __init__(self, network: nn.Module, damping: float) -> None:
        self.damping = damping
        self.layer = first_layer(network)
        self._moments: Tensor | None = None
        self._rows = 0
        # sums and counts would only break compiled graphs, or multiply them
        self._hook = self.layer.register_forward_pre_hook(torch.compiler.disable(self._look))  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Look at the layer no more."""
        self._hook.remove()

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # a copy of the network has the hook too
        if layer is self.layer and torch.is_grad_enabled() and layer.training and self.layer.weight.requires_grad:
            with torch.no_grad():
                moments, rows = second_moments(self.layer, inputs[0])
                self._moments = moments if self._moments is None else self._moments.add_(moments)
                self._rows += rows

    @torch.no_grad()
    def precondition(self) -> None:
        """Change the gradient, when that of the whole step is there, and forget the inputs. Every rank must call it."""
        moments, gradient = self._moments, self.layer.weight.grad
        if moments is None or gradient is None:
            return
        if isinstance(gradient, DTensor):
            raise UserError("optimizer.tract needs the whole weight of the first layer; use trainer.strategy=ddp.")
        together = torch.cat([moments.flatten(), moments.new_tensor([self._rows])])
        self._moments, self._rows = None, 0
        if (group := world()) is not None:
            dist.all_reduce(together, group=group)
        damped = together[:-1].view_as(moments) / together[-1]
        damped.diagonal().add_(self.damping)
        flat = gradient.flatten(1).to(damped.dtype)
        gradient.copy_(torch.linalg.solve(damped, flat, left=False).view_as(gradient))


def first_layer(network: nn.Module) -> nn.Conv2d | nn.Linear:
    """Return the convolution or linear layer that a network begins with.

    Raises:
        UserError: There is none, or one that is more than a product of its inputs and its weight.
    """
    found = next((module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)), None)
    if found is None:
        raise UserError("optimizer.tract: the network has no convolution and no linear layer; leave it out.")
    plain = type(found) in (nn.Conv2d, nn.Linear) and found.weight.requires_grad
    if isinstance(found, nn.Conv2d):
        plain = plain and found.groups == 1 and found.padding_mode == "zeros" and not isinstance(found.padding, str)
    if not plain:
        raise UserError(
            f"optimizer.tract: the first layer, {found}, is frozen, or no plain convolution or linear layer; leave it "
            "out."
        )
    return found


def second_moments(layer: nn.Conv2d | nn.Linear, inputs: Tensor) -> tuple[Tensor, int]:
    """Return ``aᵀa`` ``[n,n]`` of a layer's inputs and the number ``b`` of rows of ``a``, in float32 or float64."""
    inputs = inputs.double() if inputs.dtype == torch.float64 else inputs.float()
    with torch.autocast(inputs.device.type, enabled=False):
        if isinstance(layer, nn.Linear):
            rows = inputs.flatten(0, -2)
            return rows.T @ rows, len(rows)
        width = layer.weight[0].numel()
        total, count = inputs.new_zeros(width, width), 0
        step = max(1, VALUES_AT_A_TIME // (width * max(1, inputs.shape[-2:].numel())))
        for some in torch.split(inputs, step):
            assert not isinstance(layer.padding, str)  # of a first layer it is not
            patches = F.unfold(some, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            rows = patches.transpose(0, 1).flatten(1)
            total.addmm_(rows, rows.T)
            count += rows.shape[1]
    return total, count
