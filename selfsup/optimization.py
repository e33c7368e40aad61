"""Optimisers by name, learning rates that follow the batch, and the schedule."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import timm.optim
import torch
from timm.models import group_parameters
from torch import nn

from selfsup.errors import UserError
from selfsup.lars import Lars
from selfsup.registry import nearest
from selfsup.settings import Section, setting


@dataclass
class OptimizerConfig(Section):
    """How the weights move.

    Attributes:
        name: ``lars``, which is ours (:class:`~selfsup.lars.Lars`), or an optimiser of timm: ``momentum`` (SGD with
            plain momentum), ``sgd`` (with Nesterov's), ``adamw``, ``lamb``, ``lion``, …
        lr: Learning rate for a batch of ``reference_batch`` images.
        scaling: How the learning rate follows the batch: ``linear``, ``sqrt`` or ``none``.
        reference_batch: The batch that ``lr`` is meant for.
        weight_decay: Decay of the weights.
        exclude_1d: Leave biases and the scales of normalisation layers out of the decay (LARS then does not adapt
            them either).
        no_decay: Tokens and positions that do not decay, by name, wherever they are: ``class_token``, ``registers``,
            ``positions``, ``mask_token``. They have three dimensions, so ``exclude_1d`` leaves them in; MAE and DINOv2
            let them decay, BEiT and SimMIM do not.
        layer_decay: Factor on the learning rate from one layer of the backbone to the one before it, counted from the
            heads, which keep the whole rate: with n layers the last has the factor once and the stem (patches,
            positions, class token, registers, mask token) n + 1 times. Layers are timm's: blocks of a transformer or
            a ResNet. 1 is one rate for all. DINOv2 has 0.9, MAE's fine-tuning 0.65.
        patch_embed_lr: Further factor on the rate of a transformer's patch embedding; DINOv2 has 0.2.
        clip_by: What the norm of ``trainer.gradient_clip`` is taken of: ``all`` gradients together, those of each
            ``module`` of the method (backbone, heads) apart, as in DINOv2, or of each ``tensor``, as in DINO and iBOT.
        tract: Multiply the gradient of the first layer's weight by the inverse of its inputs' second moments plus this
            number (TrAct, see :class:`~selfsup.first_layer.TrAct`), so that bright images and those rich in contrast
            move it no more than others. The paper has 0.1, with the rates as they were. None leaves it as it is.
        momentum: For optimisers that have one.
        warmup_epochs: Epochs over which the learning rate rises linearly from zero; at most half of the training.
        schedule: After the warm-up: ``cosine``, ``constant``, or ``steps``, which multiplies the rate by ``drop`` at
            every one of ``milestones``.
        final_lr: Learning rate at the end of the cosine, as a fraction of the scaled one.
        milestones: Epochs of the drops.
        drop: Factor of a drop.
        final_weight_decay: Decay that ``weight_decay`` moves to along a cosine; None keeps it (DINO moves it).
        kwargs: Further arguments of the optimiser, for ``lars`` those in ``Lars.SETTINGS``.
    """

    section: ClassVar[str] = "optimizer"

    name: str = "momentum"
    lr: float = setting(0.03, least=0)
    scaling: str = setting("linear", choices=("linear", "sqrt", "none"))
    reference_batch: int = setting(256, least=1)
    weight_decay: float = setting(1e-4, least=0)
    exclude_1d: bool = True
    no_decay: list[str] = setting([], choices=("class_token", "registers", "positions", "mask_token"))
    layer_decay: float = setting(1.0, above=0, most=1)
    patch_embed_lr: float = setting(1.0, least=0)
    clip_by: str = setting("all", choices=("all", "module", "tensor"))
    tract: float | None = setting(None, above=0)
    momentum: float = setting(0.9, least=0)
    warmup_epochs: float = setting(0.0, least=0)
    schedule: str = setting("cosine", choices=("cosine", "steps", "constant"))
    final_lr: float = setting(0.0, least=0)
    milestones: list[float] = field(default_factory=list)
    drop: float = setting(0.1, least=0)
    final_weight_decay: float | None = setting(None, least=0)
    kwargs: dict[str, Any] = field(default_factory=dict)


def scaled_lr(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning rate for ``batch_size`` images a step (over all ranks and accumulated batches)."""
    ratio = batch_size / config.reference_batch
    factors = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}
    return config.lr * factors[config.scaling]


def cosine_schedule(start: float, end: float, fraction: float) -> float:
    """Return the value at ``fraction`` in [0, 1] of a half cosine from ``start`` to ``end``."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


def linear_schedule(start: float, end: float, fraction: float) -> float:
    """Return the value at ``fraction`` in [0, 1] of a straight line from ``start`` to ``end``."""
    return start + (end - start) * fraction


def learning_rate_factors(
    config: OptimizerConfig, steps: int, epochs: int, optimizer: torch.optim.Optimizer
) -> list[Callable[[int], float]]:
    """Return, for each parameter group, the factor on its learning rate as a function of the step.

    Args:
        config: The schedule; its epochs become steps here.
        steps, epochs: Length of the training.
        optimizer: Groups that have ``constant_lr`` set keep the factor 1.
    """
    warmup = min(round(config.warmup_epochs * steps / epochs), steps // 2)
    drops = [round(epoch * steps / epochs) for epoch in config.milestones]
    after: dict[str, Callable[[int], float]] = {
        "cosine": lambda step: cosine_schedule(1, config.final_lr, min(1, (step - warmup) / max(1, steps - warmup))),
        "steps": lambda step: config.drop ** sum(step >= at for at in drops),
        "constant": lambda step: 1.0,
    }

    def factor(step: int) -> float:
        return step / warmup if step < warmup else after[config.schedule](step)

    return [(lambda step: 1.0) if group.get("constant_lr") else factor for group in optimizer.param_groups]


class Schedule(torch.optim.lr_scheduler.LambdaLR):
    """The learning rates of a training, step by step, as its settings give them.

    A checkpoint that is loaded brings the step, and to the optimiser what it has learnt. The settings of the optimiser
    (rates, decay, momentum) stay those it was built with, so that what a resumed run prints is what it trains with.

    Args:
        optimizer: Its learning rates are those of the first step after the warm-up.
        factors: As :func:`learning_rate_factors`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factors: list[Callable[[int], float]]) -> None:
        super().__init__(optimizer, factors)
        optimizer.register_load_state_dict_pre_hook(_keep_settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a step of a training that may have had other rates."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [
            base * factor(self.last_epoch) for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _keep_settings(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Put the present settings into a state that is about to be loaded.

    Arguments of the optimiser, and what ``Method.param_groups`` and the schedule add, are settings. Whatever else some
    optimisers keep in a group (a count of steps, an estimate of the rate) is state.
    """
    inner = getattr(optimizer, "base_optimizer", optimizer)  # timm's Lookahead wraps another
    names = {*inspect.signature(type(inner).__init__).parameters, *getattr(inner, "SETTINGS", ())}
    names |= {"initial_lr", "lr_scale", "constant_lr", "adapt"}
    settings = [{k: v for k, v in group.items() if k in names - {"params"}} for group in optimizer.param_groups]
    if len(settings) != len(state["param_groups"]):
        return state  # torch says what is wrong
    groups = [{**loaded, **own} for loaded, own in zip(state["param_groups"], settings, strict=True)]
    return {**state, "param_groups": groups}


def decay_groups(module: nn.Module, weight_decay: float, exclude_1d: bool) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that decay and, with ``exclude_1d``, 1-D ones that do not.

    LARS does not adapt the latter (``adapt``, which other optimisers do not read).
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not exclude_1d:
        return [{"params": parameters, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "adapt": False},
    ]
    return [group for group in groups if group["params"]]


def refined_groups(
    groups: list[dict[str, Any]], module: nn.Module, backbone: nn.Module, config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Split parameter groups by how deep parameters lie and by what their names say, as the settings ask.

    The first of what a group is split into has the highest rate. Without such settings the groups stay what they are.

    Args:
        groups: See ``Method.param_groups``; a ``lr_scale`` that is there is multiplied.
        module: Has the parameters of all groups.
        backbone: timm's network in it.
        config: ``layer_decay``, ``patch_embed_lr`` and ``no_decay`` count.

    Raises:
        UserError: A network that does not say how deep its layers lie, or has no patch embedding.
    """
    if config.layer_decay == 1 and config.patch_embed_lr == 1 and not config.no_decay:
        return groups
    factors = _rate_factors(module, backbone, config)
    exempt = {
        parameter
        for name, parameter in module.named_parameters()
        if any(set(name.split(".")) & set(_TOKENS[kind]) for kind in config.no_decay)
    }
    refined = []
    for group in groups:
        split: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            decays = parameter not in exempt
            split.setdefault((factors.get(parameter, 1.0), decays), []).append(parameter)
        for (factor, decays), parameters in sorted(split.items(), key=lambda item: item[0], reverse=True):
            own = {**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * factor}
            refined.append(own if decays else {**own, "weight_decay": 0.0})
    return refined


#: Names of tokens and positions in timm's transformers and in ours, by what ``no_decay`` calls them.
_TOKENS = {
    "class_token": ("cls_token",),
    "registers": ("reg_token", "register_tokens"),
    "positions": ("pos_embed", "relative_position_bias_table"),
    "mask_token": ("mask_token",),
}


def _rate_factors(module: nn.Module, backbone: nn.Module, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """Return the factors on the learning rate of the backbone's parameters and of the mask token."""
    parameters = dict(backbone.named_parameters())
    factors = dict.fromkeys(parameters.values(), 1.0)
    if config.layer_decay < 1:
        matcher = getattr(backbone, "group_matcher", None)
        if matcher is None:
            raise UserError(
                f"optimizer.layer_decay={config.layer_decay}: {type(backbone).__name__} does not say how deep its "
                "layers lie (group_matcher); set optimizer.layer_decay=1, or take a network of timm."
            )
        depth = group_parameters(backbone, matcher(coarse=False), reverse=True)
        heads = max(depth.values()) + 1
        for name, parameter in parameters.items():
            if name.split(".")[0] not in ("norm", "fc_norm"):  # behind the last block, as the heads are
                factors[parameter] = config.layer_decay ** (heads - depth[name])
        for name, parameter in module.named_parameters():
            if name.startswith("mask_token."):  # of the method itself: it takes the place of embedded patches
                factors[parameter] = config.layer_decay**heads
    if config.patch_embed_lr != 1:
        embedding = [parameter for name, parameter in parameters.items() if "patch_embed" in name.split(".")]
        if not embedding:
            raise UserError(
                f"optimizer.patch_embed_lr={config.patch_embed_lr}: {type(backbone).__name__} has no patch embedding; "
                "set it to 1."
            )
        for parameter in embedding:
            factors[parameter] *= config.patch_embed_lr
    return factors


def clip_gradients(module: nn.Module, largest: float, apart: str) -> None:
    """Scale gradients down to a norm of ``largest``, those of each ``module`` below this one or of each ``tensor``.

    Gradients of parameters that are the module's own are taken together.
    """
    children = [list(child.parameters()) for child in module.children()]
    parts = [*children, list(module.parameters(recurse=False))]
    if apart == "tensor":
        parts = [[parameter] for parameter in module.parameters()]
    for part in parts:
        if any(parameter.grad is not None for parameter in part):
            nn.utils.clip_grad_norm_(part, largest)


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimizerConfig, lr: float, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Build the optimiser over parameter groups, see ``Method.param_groups``.

    Args:
        groups: Parameters, on the device they are trained on.
        config: The optimiser and its settings.
        lr: Learning rate, scaled.
        fused: Let torch's Adam and AdamW move all weights in one call, where the device can. The others take timm's or
            torch's default: lists of tensors at a time on a GPU.

    Raises:
        UserError: Unknown name, or arguments that it does not take.
    """
    known = timm.optim.list_optimizers()
    if config.name not in known:
        raise UserError(f"optimizer.name: timm has no optimiser '{config.name}'.{nearest(config.name, known)}")
    groups = [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    kwargs = dict(config.kwargs)
    if fused and not kwargs.keys() & {"fused", "foreach"} and _can_fuse(config.name, groups):
        kwargs["fused"] = True
    try:
        if config.name == "lars":
            return Lars(groups, lr=lr, momentum=config.momentum, weight_decay=config.weight_decay, **kwargs)
        optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
            groups, opt=config.name, lr=lr, weight_decay=config.weight_decay, momentum=config.momentum, **kwargs
        )
    except (TypeError, ValueError, ImportError, AssertionError) as error:
        raise UserError(f"optimizer: '{config.name}' cannot be built with these settings: {error}") from error
    return optimizer


def _can_fuse(name: str, groups: list[dict[str, Any]]) -> bool:
    optimizer = timm.optim.get_optimizer_class(name, bind_defaults=False)
    # not SGD: fused, it fails on a weight that was frozen in the first steps and has no momentum yet
    if optimizer not in (torch.optim.Adam, torch.optim.AdamW):
        return False
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
