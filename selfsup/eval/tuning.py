"""How whole networks are fine-tuned: learning rates that fall from layer to layer, and over the steps."""

from __future__ import annotations

import math
from typing import Any

from timm.models import group_parameters
from torch import nn

WARM_UP = 0.1  # share of the steps over which the learning rate rises


def warm_cosine(step: int, steps: int) -> float:
    """Return the factor on the learning rate: it rises over a tenth of the steps and falls along a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def layer_depths(network: nn.Module) -> dict[str, int]:
    """Number the layers of a network from the images on: the layer of each parameter, from 0, by the parameter's name.

    timm networks say what their layers are (a block is one). Elsewhere a weight begins a layer, and the biases and
    scales that follow belong to it.
    """
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is not None:
        named = dict(group_parameters(network, matcher(coarse=False), reverse=True))
        rank = {layer: place for place, layer in enumerate(sorted(set(named.values())))}
        return {name: rank[named[name]] for name, _ in network.named_parameters()}
    depth, found = -1, {}
    for name, parameter in network.named_parameters():
        depth += parameter.ndim > 1 or depth < 0
        found[name] = depth
    return found


def layer_groups(
    network: nn.Module, learning_rate: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimiser: ``learning_rate · layer_decay^(L - l)`` for layer ``l`` of ``L``.

    What ``network`` has beside its ``backbone`` has the learning rate itself; the layer below it is ``L - 1``.
    """
    backbone: Any = network.backbone
    inner: nn.Module = getattr(backbone, "network", backbone)
    depths = layer_depths(inner)
    layers = 1 + max(depths.values(), default=-1)
    inside = {id(parameter): depths[name] for name, parameter in inner.named_parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        if parameter.requires_grad:
            groups.setdefault((inside.get(id(parameter), layers), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay ** (layers - layer),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (layer, decayed), parameters in groups.items()
    ]
