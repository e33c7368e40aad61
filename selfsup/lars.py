"""LARS: the step of each weight is a fixed fraction of the weight's own length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose directions are scaled by the length of the weight, in the forms that papers use.

    With d = g + decay · w, a weight moves along d · trust_coeff · ‖w‖ / ‖d‖, with and without decay. A weight of
    zeros has no length to go by and moves along d, as does every weight of a group whose ``adapt`` is false.

    Source: You et al., "Large Batch Training of Convolutional Networks", 2017. The codes of SimCLR, BYOL, MoCo v3,
    Barlow Twins, VICReg and PixPro divide by ‖d‖; SwAV and the linear probe of SimSiam use apex's LARC.

    Args:
        params: Parameters, or groups of them; a group may have settings of its own.
        lr: Learning rate.
        momentum: Of SGD.
        weight_decay: Decay.
        settings: Any of ``SETTINGS``:
            ``adapt``: Scale the directions. False leaves plain SGD.
            ``trust_coeff``: Length of a step at rate 1, as a fraction of the weight's.
            ``eps``: Added to the norm that is divided by.
            ``norms_apart``: Divide by ‖g‖ + decay · ‖w‖, as LARC does.
            ``trust_clip``: Step no farther than plain SGD would, as LARC does where it clips.
            ``rate_in_momentum``: Multiply by the rate before the momentum is added up, as SimCLR's code does; while
                the rate changes, older directions then go on at the rate of their own step.
            ``nesterov``: Nesterov's momentum.

    Raises:
        ValueError: A rate, a momentum or a decay below zero.
        TypeError: A setting that is not there.
    """

    SETTINGS: ClassVar[dict[str, Any]] = {
        "adapt": True,
        "trust_coeff": 0.001,
        "eps": 0.0,
        "norms_apart": False,
        "trust_clip": False,
        "rate_in_momentum": False,
        "nesterov": False,
    }

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, **settings: Any
    ) -> None:
        if min(lr, momentum, weight_decay) < 0:
            raise ValueError(f"learning rate {lr}, momentum {momentum} and decay {weight_decay} cannot be negative")
        if unknown := settings.keys() - self.SETTINGS.keys():
            raise TypeError(f"there is no argument '{min(unknown)}'; it takes {', '.join(self.SETTINGS)}")
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**own, **self.SETTINGS, **settings})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._move(weights, group)
        return loss

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Move the weights of a group, all in one call of each kind."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        decay, lr, momentum = group["weight_decay"], group["lr"], group["momentum"]
        steps = list(torch._foreach_add(gradients, weights, alpha=decay))  # new tensors: the gradients stay
        if group["adapt"]:
            ratios = self._ratios(weights, gradients if group["norms_apart"] else steps, group)
            torch._foreach_mul_(steps, ratios)
        inside = group["rate_in_momentum"]
        if inside:
            torch._foreach_mul_(steps, lr)
        if momentum:
            states = [self.state[weight] for weight in weights]
            for state, weight in zip(states, weights, strict=True):
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
            buffers = [state["momentum_buffer"] for state in states]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, steps)
            if group["nesterov"]:
                torch._foreach_add_(steps, buffers, alpha=momentum)
            else:
                steps = buffers
        torch._foreach_add_(weights, steps, alpha=-1.0 if inside else -lr)

    @staticmethod
    def _ratios(weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Return the factor on the direction of each weight."""
        decay = group["weight_decay"] if group["norms_apart"] else 0.0
        lengths = torch._foreach_norm(weights), torch._foreach_norm(directions)
        ratios = []
        for length, direction in zip(*lengths, strict=True):
            ratio = group["trust_coeff"] * length / (direction + decay * length + group["eps"])
            if group["trust_clip"]:
                ratio = (ratio / group["lr"]).clamp(max=1)
            known = torch.where(length > 0, ratio, torch.ones_like(ratio))
            # LARC leaves a weight without a gradient alone, its decay too
            ratios.append(torch.where(direction > 0, known, torch.zeros_like(ratio)))
        return ratios
