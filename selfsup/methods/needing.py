"""What a method needs of views, labels and its objective, and how it refuses what does not fit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from selfsup.errors import UserError
from selfsup.functional import pair_nce
from selfsup.methods.holding import Holding
from selfsup.methods.parts import Parts
from selfsup.negatives import Negatives
from selfsup.objectives import Embeddings, Objective
from selfsup.registry import OVER, Registry, fits, methods, negatives, objectives
from selfsup.types import Batch, StepOutput


class Needing(Holding):
    """The part of a method that sees to it.

    Attributes:
        objective: What is minimised in place of the method's own loss; None is that.
        negatives: What changes queries, keys and negatives before; None leaves them as they are.
    """

    #: Fewest and most views that ``step`` takes; None is any number.
    view_count: tuple[int, int | None] = (2, 2)
    #: Whether ``step`` reads ``batch.label``.
    needs_labels = False
    #: Whether ``step`` keeps something of each image by ``batch.index``, which must then be given.
    needs_index = False
    #: Whether the backbone may see the batch in chunks (``trainer.chunk_size``).
    chunkable = True

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective | None = None
        self.negatives: Negatives | None = None

    def take(self, parts: Parts) -> None:
        """Take the objective, and what it needs with it, and refuse parts that do not fit.

        Raises:
            UserError: One does not; the message names the setting.
        """
        learner = type(self).__name__
        if parts.objective is not None and parts.objective.name != "none":
            over = self._check_fit(objectives, parts.objective.name)
            objective: Objective = objectives[parts.objective.name].target(parts.objective, parts.index)
            if objective.needs_labels and not self.needs_labels:
                self.needs_labels, learner = True, f"objective={parts.objective.name}"
            self.needs_index |= objective.needs_index
            if "queue" not in over:
                self.view_count = objective.view_count
            self.objective = objective
        if parts.negatives is not None and parts.negatives.name != "none":
            self._check_fit(negatives, parts.negatives.name)
            self.negatives = negatives[parts.negatives.name].target(parts.negatives)
        self.check_count(
            len(parts.views.sizes), "augment.counts asks for ", "; choose another augment= or set augment.counts"
        )
        if self.needs_labels and not parts.labelled:
            raise UserError(f"{learner} learns from labels and these images have none; choose other data.")
        if parts.backbone.chunk_size is not None and not self.chunkable:
            raise UserError(
                f"{type(self).__name__} needs its batch in one pass, so leave trainer.chunk_size out; "
                "trainer.activation_checkpointing saves memory too."
            )

    def check_count(self, count: int, given: str = "there are ", way_out: str = "") -> None:
        """Refuse a number of views that the method, or its objective, does not take.

        Raises:
            UserError: It is too small or too large.
        """
        fewest, most = self.view_count
        if count < fewest or (most is not None and count > most):
            wanted = f"{fewest}" if fewest == most else f"at least {fewest}"
            raise UserError(f"{given}{count} view(s) and {type(self).__name__} takes {wanted}{way_out}.")

    def apply_objective(
        self,
        views: Tensor,
        batch: Batch,
        queue: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
    ) -> StepOutput:
        """Return what the objective gives for embeddings, after what changes negatives.

        Args:
            views: Embeddings ``[V,N,D]``; with a queue those of query and key.
            batch: The images.
            queue: Keys of earlier images ``[K,D]``.
            generator: With a queue: random numbers of the step, the same on every rank.
            temperature: With a queue: of the method's own InfoNCE, where there is no objective.
        """
        embeddings = Embeddings(views, batch.index, batch.label if self.needs_labels else None, queue)
        if self.negatives is not None:
            assert generator is not None
            embeddings = self.negatives(embeddings, generator, self.current_epoch)
        if self.objective is None:
            assert temperature is not None
            return StepOutput(pair_nce(embeddings.pairs(), temperature))
        output: StepOutput = self.objective(embeddings)
        return output

    def _check_fit(self, registry: Registry[Any], name: str) -> tuple[str, ...]:
        """Return over what the method contrasts, after a look whether what is named goes with it."""
        entry, method = registry[name], methods.of(type(self))
        if not fits(method.over, entry.over):
            can = " or ".join(OVER[word] for word in entry.over)
            has = f"contrasts {' and '.join(OVER[word] for word in method.over)}" if method.over else "takes no other"
            which = ", ".join(other for other in methods if fits(methods[other].over, entry.over))
            raise UserError(
                f"{registry.group}={name} is over {can}, and {method.name} {has}; it goes with method={which}."
            )
        return method.over
