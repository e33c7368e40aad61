"""Which of a network's features a probe sees: the pooled one, or the last blocks side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.eval.features import FeatureSet
from selfsup.eval.stages import stages

POOLED = "pooled"  # the name of the backbone's own feature among the choices


class ChosenFeatures(nn.Module):
    """A network whose output is each choice of its features, side by side.

    ``last_N`` is the last ``N`` stages of a convolutional network, each averaged over places, or the class tokens of
    the last ``N`` blocks of a transformer behind its final norm (the mean of the patch tokens where the network's own
    feature is no class token, as in masked image modelling), as DINO evaluates ViT-S with ``N = 4`` (Caron et al.,
    arXiv:2104.14294). ``last_N_mean`` adds the mean of the last block's patch tokens, as for ViT-B there and in DINOv2;
    of networks without a class token it is ``last_N``.

    Args:
        backbone: Maps float ``[B,C,H,W]`` to ``[B,D]``.
        choices: ``pooled``, ``last_N`` or ``last_N_mean``.

    Raises:
        UserError: A choice that does not exist, or more stages than the network has.
    """

    def __init__(self, backbone: nn.Module, choices: Sequence[str]) -> None:
        super().__init__()
        self.backbone = backbone
        self.choices = tuple(choices)
        self.widths: list[int] = []  # of each choice, known after the first pass
        self.normalization = getattr(backbone, "normalization", None)
        self.in_channels = getattr(backbone, "in_channels", None)
        network: Any = getattr(backbone, "network", backbone)
        self._prefix = int(getattr(network, "num_prefix_tokens", 0))
        pooling = getattr(network, "global_pool", "token")
        self._has_class = pooling == "token" and getattr(network, "cls_token", None) is not None
        self._norm = network.norm if isinstance(getattr(network, "norm", None), nn.Module) else nn.Identity()
        self._stages = [(module, channels) for module, channels in stages(backbone).values()]
        for choice in choices:
            found = re.fullmatch(r"last_(\d+)(_mean)?", choice)
            if choice != POOLED and found is None:
                raise UserError(
                    f"eval.linear_probe.features: there is no '{choice}'; "
                    f"use {POOLED}, last_N or last_N_mean, such as last_4."
                )
            if found is not None and not 1 <= int(found[1]) <= len(self._stages):
                raise UserError(f"eval.linear_probe.features: '{choice}' of a network with {len(self._stages)} stages.")

    def forward(self, images: Tensor) -> Tensor:
        """Return float ``[B, Σ widths]``."""
        outputs: dict[int, Tensor] = {}

        def keep(place: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
                outputs[place] = output

            return hook

        handles = [module.register_forward_hook(keep(place)) for place, (module, _) in enumerate(self._stages)]
        try:
            pooled = cast(Tensor, self.backbone(images))
        finally:
            for handle in handles:
                handle.remove()
        features = [self._choose(choice, pooled, outputs) for choice in self.choices]
        self.widths = [feature.shape[1] for feature in features]
        return torch.cat(features, dim=1)

    def split(self, features: FeatureSet) -> dict[str, FeatureSet]:
        """Return the choices of extracted features apart, by name."""
        parts = torch.split(features.features, self.widths, dim=1)
        return {
            name: FeatureSet(part, features.labels, features.index)
            for name, part in zip(self.choices, parts, strict=True)
        }

    def _choose(self, choice: str, pooled: Tensor, outputs: dict[int, Tensor]) -> Tensor:
        if choice == POOLED:
            return pooled
        count = int(choice.split("_")[1])
        last = range(len(self._stages) - count, len(self._stages))
        pieces = [self._summary(outputs[place], self._stages[place][1]) for place in last]
        tokens = outputs[len(self._stages) - 1]
        if choice.endswith("_mean") and tokens.ndim == 3 and self._has_class:
            pieces.append(self._norm(tokens)[:, self._prefix :].mean(1))
        return torch.cat(pieces, dim=1)

    def _summary(self, output: Tensor, channels: int | None) -> Tensor:
        if output.ndim == 3:
            tokens = self._norm(output)
            return cast(Tensor, tokens[:, 0] if self._has_class else tokens[:, self._prefix :].mean(1))
        if output.ndim == 4:
            channels_last = channels is not None and output.shape[1] != channels and output.shape[3] == channels
            return output.mean((1, 2) if channels_last else (2, 3))
        return output


def is_transformer(backbone: nn.Module) -> bool:
    """Whether the network has a class token."""
    return int(getattr(getattr(backbone, "network", backbone), "num_prefix_tokens", 0)) > 0
