"""Settings of the evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)


@dataclass
class EvalConfig:
    """How a checkpoint is evaluated.

    The kNN accuracy that is reported as *the* kNN accuracy is that of the first of ``knn_k`` and the first of
    ``temperatures``: fixed in advance, so that nothing is chosen on the test images. The other combinations are
    recorded beside it and need no further search.

    Attributes:
        knn_k: Numbers of neighbours.
        temperatures: Temperatures of the kNN vote.
        probe_learning_rates: Learning rates of the linear probe; each is paired with every weight decay.
        probe_weight_decays: Weight decays of the linear probe.
        probe_epochs: Passes of the linear probe over the training features.
        probe_batch_size: Features in a step of the linear probe.
        batch_size: Images in a forward pass of the backbone. It changes the speed, not the result.
        cache: Keep the features in the run folder, so that a second evaluation of the same weights skips extraction.
        figures: Draw the figures.
    """

    knn_k: list[int] = field(default_factory=lambda: [20, 200])
    temperatures: list[float] = field(default_factory=lambda: [0.07])
    probe_learning_rates: list[float] = field(default_factory=lambda: list(LEARNING_RATES))
    probe_weight_decays: list[float] = field(default_factory=lambda: list(WEIGHT_DECAYS))
    probe_epochs: int = 100
    probe_batch_size: int = 256
    batch_size: int = 256
    cache: bool = True
    figures: bool = True
