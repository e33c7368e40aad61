"""What of a backbone learns in a run that goes on from weights: layers that stay, adapters, an anchor."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from selfsup.config import TrainConfig
from selfsup.errors import UserError
from selfsup.methods import Anchor, Method
from selfsup.nn import Backbone, BackboneConfig, adapt, drop_images, freeze
from selfsup.settings.checkpoints import OWN
from selfsup.wording import counted


def check_held(config: TrainConfig) -> None:
    """Refuse settings that need weights to go on from where there are none, or that leave no epoch to learn in.

    Raises:
        UserError: It names them.
    """
    backbone, epochs = config.backbone, config.trainer.max_epochs
    needing = {
        "freeze_epochs": backbone.freeze_epochs,
        "anchor": backbone.anchor,
        "adapter_rank": backbone.adapter_rank,
    }
    asked = [f"backbone.{name}={value}" for name, value in needing.items() if value]
    if asked and backbone.from_ is None and backbone.name != OWN:
        raise UserError(
            f"{' and '.join(asked)} hold{'s' * (len(asked) == 1)} on to weights that there are, and these are random: "
            "set backbone.from, or leave it out."
        )
    if backbone.freeze_epochs >= epochs:
        raise UserError(
            f"backbone.freeze_epochs={backbone.freeze_epochs} leaves the backbone no epoch to learn in, as "
            f"trainer.max_epochs={epochs}; lower it."
        )


def hold(backbone: Backbone, config: BackboneConfig) -> tuple[Backbone | None, dict[str, Any]]:
    """Let of a backbone, in place, learn what the settings let learn, and of each batch what they leave.

    Returns:
        A copy of it as it was, where there is an anchor, and what is to be said and kept: numbers of weights, names.

    Raises:
        UserError: As :func:`~selfsup.nn.freeze`, :func:`~selfsup.nn.adapt` and :func:`~selfsup.nn.drop_images`.
    """
    if config.subset_drop_path:
        drop_images(backbone, config.subset_drop_path)
    original = copy.deepcopy(backbone) if config.anchor is not None else None
    backbone.freeze_epochs = config.freeze_epochs
    frozen = freeze(backbone, config.freeze) if config.freeze else []
    before = sum(parameter.numel() for parameter in backbone.parameters())
    adapted = 0 if config.adapter_rank is None else adapt(backbone, config.adapter_rank, config.adapter_alpha)
    learning = sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)
    return original, {
        "weights": before,
        "learning": learning,
        "frozen": frozen,
        "adapted_layers": adapted,
        "freeze_epochs": config.freeze_epochs,
        "anchor": config.anchor,
        "anchor_weight": config.anchor_weight if config.anchor is not None else None,
    }


def attach_anchor(method: Method, original: Backbone | None, config: BackboneConfig) -> None:
    """Give a method its anchor, where there is one."""
    if original is not None and config.anchor is not None:
        method.anchor = Anchor(original, config.anchor, config.anchor_weight)


def held_lines(held: Mapping[str, Any]) -> list[str]:
    """Return what a run that starts says of what does not learn, or is held."""
    lines = []
    weights, learning, frozen = held["weights"], held["learning"], held["frozen"]
    if frozen:
        lines.append(
            f"frozen (backbone.freeze): {counted(len(frozen), 'tensor')} with {weights - learning:,} of {weights:,} "
            f"weights: {', '.join(frozen[:5])}{f' and {len(frozen) - 5} more' if len(frozen) > 5 else ''}; they get no "
            "gradient and no decay, and their layers run as in evaluation, BatchNorm statistics unchanged"
        )
    if held["adapted_layers"]:
        lines.append(
            f"adapters (backbone.adapter_rank): {learning:,} weights learn, in "
            f"{counted(held['adapted_layers'], 'linear layer')}; the {weights:,} weights of the backbone stay, and it "
            "runs as in evaluation"
        )
    if held["freeze_epochs"]:
        lines.append(
            f"heads alone learn for {counted(held['freeze_epochs'], 'epoch')} (backbone.freeze_epochs): the backbone "
            "stays as it is, BatchNorm statistics too"
        )
    if held["anchor"] is not None:
        lines.append(
            f"anchor (backbone.anchor): {held['anchor']} distance from the features at the start, times "
            f"{held['anchor_weight']:g}"
        )
    return lines
