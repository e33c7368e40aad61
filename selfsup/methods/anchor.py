"""An anchor: features are held to those of the weights that training started from, whatever the method."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfsup.distributed import world
from selfsup.errors import UserError
from selfsup.functional import gram_distance, negative_cosine
from selfsup.nn import Backbone, Tokens
from selfsup.types import StepOutput

Found = Tensor | Tokens | tuple[Tensor, Tensor]
#: How a pass was made, its images, and what the backbone gave.
Pass = tuple[str, Tensor, Found]


class Anchor(nn.Module):
    r"""A copy of the backbone as it was at the start, and how far the backbone's features may go from there.

    Whatever images the method runs whole through the backbone with gradients, the copy sees too, in evaluation mode.
    Maps and patches become their mean. With :math:`f_i` the features and :math:`g_i` those of the copy, ``cosine`` adds
    :math:`w\,\bigl(1 - \frac{1}{N} \sum_i \cos(f_i, g_i)\bigr)` to the loss and ``gram``
    :math:`w` :func:`~selfsup.functional.gram_distance`, over all views of the images of all ranks.

    Args:
        original: The copy; it is frozen, and stays in evaluation mode.
        kind: ``cosine`` or ``gram``.
        weight: ``w``.
    """

    def __init__(self, original: Backbone, kind: str, weight: float) -> None:
        super().__init__()
        self.original, self.kind, self.weight = original.requires_grad_(False), kind, weight
        self.train(False)

    def train(self, mode: bool = True) -> Anchor:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def hold(self, backbone: Backbone, step: Callable[..., StepOutput], *args: Any) -> StepOutput:
        """Return what a method's step returns, with the anchor added to its loss and its logs.

        Raises:
            UserError: The step runs the backbone in a way that cannot be followed.
        """
        with _watching(backbone) as passes:
            output = step(*args)
        if not passes:
            raise UserError(
                "backbone.anchor: this method does not run its backbone on whole views, so there are no features to "
                "hold; leave backbone.anchor out."
            )
        value = self(passes)
        return StepOutput(output.loss + self.weight * value, {**output.logs, "anchor": value})

    def forward(self, passes: Sequence[Pass]) -> Tensor:
        """Return the distance of the features of all passes from the copy's."""
        with torch.no_grad():
            before = torch.cat([_pooled(self._again(entry, images)) for entry, images, _ in passes])
        features = torch.cat([_pooled(found) for _, _, found in passes])
        if self.kind == "gram":
            return gram_distance(features, before, world())
        return 1 + negative_cosine(features, before)

    def _again(self, entry: str, images: Tensor) -> Found:
        # a call, not forward itself, so that what is sharded is put together
        again: Callable[[Tensor], Found] = self.original if entry == "forward" else getattr(self.original, entry)
        return again(images)


def _pooled(found: Found) -> Tensor:
    if isinstance(found, Tokens):
        return found.patches.mean(dim=1)
    if isinstance(found, tuple):
        return found[0]
    return found if found.ndim == 2 else found.mean(dim=(2, 3))


@contextlib.contextmanager
def _watching(backbone: Backbone) -> Iterator[list[Pass]]:
    """Note the passes through a backbone that gradients flow back through."""
    passes: list[Pass] = []

    def watched(entry: str) -> Callable[..., Any]:
        inner: Callable[..., Any] = getattr(backbone, entry)

        def run(images: Tensor, *masks: Tensor | None, **others: Any) -> Any:
            found = inner(images, *masks, **others)
            whole = all(mask is None for mask in (*masks, others.get("mask"), others.get("keep")))
            if whole and torch.is_grad_enabled():
                passes.append((entry, images, found))
            return found

        return run

    entries = ("forward", "forward_dense", "forward_both", "forward_tokens")
    own = {entry: vars(backbone).get(entry) for entry in entries}  # compiled, or sharded
    try:
        for entry in entries:
            setattr(backbone, entry, watched(entry))
        yield passes
    finally:
        for entry, before in own.items():
            delattr(backbone, entry)
            if before is not None:
                setattr(backbone, entry, before)
