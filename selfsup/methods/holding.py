"""What of a method stays as it is in a step: a backbone at rest, frozen parameters, features held by an anchor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import pytorch_lightning as pl
from torch import nn

from selfsup.methods.anchor import Anchor
from selfsup.nn import Backbone
from selfsup.types import Batch, StepOutput, View


class Holding(pl.LightningModule):
    """The part of a method that sees to it.

    Attributes:
        backbone: The network that learns.
        anchor: Holds its features to those it had at the start; None leaves them free.
    """

    backbone: Backbone

    def __init__(self) -> None:
        super().__init__()
        self.anchor: Anchor | None = None

    def step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return the loss of a batch, and scalars to log."""
        raise NotImplementedError

    def frozen_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters that the present step must leave as they are; their gradients are dropped."""
        return ()

    @final
    def frozen(self) -> list[nn.Parameter]:
        """Return all of these: the method's own, and those of a backbone that rests."""
        resting = self.backbone.parameters() if self.backbone.resting else ()
        return [parameter for parameter in (*resting, *self.frozen_parameters()) if parameter.requires_grad]

    @final
    def rest(self, epoch: int) -> None:
        """Let the backbone, and its copies in momentum encoders, rest in the first epochs, and learn afterwards."""
        if self.backbone.freeze_epochs:
            for module in self.modules():
                if isinstance(module, Backbone):
                    module.rest(epoch < self.backbone.freeze_epochs)

    @final
    def held_step(self, views: tuple[View, ...], batch: Batch) -> StepOutput:
        """Return what ``step`` returns, with the anchor's loss where there is one and the backbone learns."""
        if self.anchor is None or self.backbone.resting:
            return self.step(views, batch)
        return self.anchor.hold(self.backbone, self.step, views, batch)

    @final
    def on_after_backward(self) -> None:
        """Drop the gradients of what is frozen. (Without them no optimiser decays or moves it.)"""
        for parameter in self.frozen():
            parameter.grad = None
